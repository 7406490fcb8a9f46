"""`mlpdeploy::WeightedCycleMlp` as standard operators on planes (N, C, H, W), where convolutions are at home.

Each branch is a 1x1 convolution; two have a depthwise convolution before them, whose kernels have one 1 for each
channel. The gates need the mean over the image of the branches' sum, which is the sum of three means. Exact but for the
order of summation.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mlpdeploy.export.passes.building import NodeBuilder, lower_each, mixed_tensor, softmax_gates
from mlpdeploy.export.passes.rewrite import PassReport, constant
from mlpdeploy.ops.cycle_mlp import CYCLE, NAME, offsets

_TO_PLANES, _TO_TOKENS = (0, 3, 1, 2), (0, 2, 3, 1)
_REACH = CYCLE // 2


def lower_cycle_mlp(model: ir.Model) -> PassReport:
    """Lower every WeightedCycleMlp of the model."""
    return lower_each(model, NAME, _Lowering, "lower_cycle_mlp")


class _Lowering(NodeBuilder):
    """Builds the nodes for one WeightedCycleMlp, in order."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        super().__init__(model, node)
        self.channels = node.attributes.get_int("channels", 0)
        x = node.inputs[0]
        assert x is not None and x.shape is not None
        self.rows, self.grid = x.shape[0], list(x.shape)[1:3]

    def nodes(self) -> list[ir.Node]:
        x, w_weight, w_bias, h_weight, h_bias, c_weight = self.node.inputs[:6]
        assert x is not None
        scope = str(self.node.name).rpartition("/")[0]
        c_planes = constant(
            self.model, f"{scope}.mlp_c.weight.lowered", self.array(c_weight).reshape(self.channels, -1, 1, 1)
        )
        planes = self.shaped(self.transpose(x, _TO_PLANES), *self.grid)
        branches = [
            self.conv(self.moved(planes, "w"), w_weight, w_bias),
            self.conv(self.moved(planes, "h"), h_weight, h_bias),
            self.conv(planes, c_planes),
        ]
        means = [self.shaped(self.add("GlobalAveragePool", [branch]), 1, 1) for branch in branches]
        gates = [
            self.reshape(gate, (-1, self.channels, 1, 1))
            for gate in softmax_gates(self, means, self.node.inputs[6:10], self.channels)
        ]
        weighted = [self.add("Mul", [branch, gate]) for branch, gate in zip(branches, gates, strict=True)]
        total = self.add("Add", [self.add("Add", weighted[:2]), weighted[2]])
        total.name = mixed_tensor(self.node)
        self.transpose(total, _TO_TOKENS)
        return self.new

    def shaped(self, value: ir.Value, height: int | ir.SymbolicDim, width: int | ir.SymbolicDim) -> ir.Value:
        """Return a value, after telling it that it is planes of this size."""
        value.shape = ir.Shape([self.rows, self.channels, height, width])
        return value

    def conv(self, x: ir.Value, *weights: ir.Value | None) -> ir.Value:
        return self.shaped(self.add("Conv", [x, *weights], {"kernel_shape": [1, 1]}), *self.grid)

    def moved(self, planes: ir.Value, axis: str) -> ir.Value:
        """Return the planes after their channels have moved along an axis, `w` or `h`."""
        kernel = np.zeros((self.channels, CYCLE), self.array(self.node.inputs[1]).dtype)
        kernel[np.arange(self.channels), np.array(offsets(self.channels)) + _REACH] = 1
        sides = (1, CYCLE) if axis == "w" else (CYCLE, 1)
        pads = [side // 2 for side in sides]
        name = f"axial_shift_cycle_{axis}_{self.channels}"
        weight = constant(self.model, name, kernel.reshape(self.channels, 1, *sides))
        attributes = {"kernel_shape": list(sides), "pads": [*pads, *pads], "group": self.channels}
        return self.shaped(self.add("Conv", [planes, weight], attributes), *self.grid)
