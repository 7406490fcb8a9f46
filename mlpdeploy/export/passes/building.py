"""Building the nodes that take one node's place, named after it, and the gates that two families have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from mlpdeploy.export.passes.lower_gelu import GELU_OPSET, expanded_gelu
from mlpdeploy.export.passes.rewrite import (
    PassReport,
    array_of,
    constant,
    like,
    opset_of,
    replace,
    shape_constant,
)
from mlpdeploy.ops.axial_shift import DOMAIN


def mixed_tensor(mixer: ir.Node) -> str:
    """Return the name of the sum that becomes a mixer's result: what a calibration knows it by."""
    return f"{mixer.name}/mixed:0"


class NodeBuilder(ABC):
    """Collects the nodes for one node, in order.

    Attributes:
        model: which constants are put into.
        node: whose place they will take.
        new: what was added until now.
    """

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.model, self.node = model, node
        self.new: list[ir.Node] = []

    @abstractmethod
    def nodes(self) -> list[ir.Node]:
        """Return the replacement; its last node's output is the operator's."""

    def add(self, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, object] | None = None) -> ir.Value:
        """Add a node with one output, and return that."""
        node = ir.node(op, inputs, attributes, name=f"{self.node.name}/{len(self.new)}_{op}")  # type: ignore[arg-type]
        node.outputs[0].name = f"{node.name}:0"
        assert self.node.inputs[0] is not None
        node.outputs[0].type = self.node.inputs[0].type
        self.new.append(node)
        return node.outputs[0]

    def reshape(self, x: ir.Value, sizes: tuple[int, ...]) -> ir.Value:
        """Add a Reshape."""
        value = self.add("Reshape", [x, shape_constant(self.model, sizes)])
        value.shape = ir.Shape([None if size == -1 else size for size in sizes])
        return value

    def transpose(self, x: ir.Value, perm: tuple[int, ...]) -> ir.Value:
        """Add a Transpose."""
        return self.add("Transpose", [x], {"perm": list(perm)})

    def gelu(self, x: ir.Value) -> ir.Value:
        """Add a Gelu, or what stands for it in an older opset."""
        if opset_of(self.model) >= GELU_OPSET:
            return self.add("Gelu", [x])
        self.new += expanded_gelu(self.model, x, f"{self.node.name}/gate")
        return like(self.new[-1], x)

    def array(self, value: ir.Value | None) -> np.ndarray:
        """Return the array behind a constant."""
        array = array_of(value)
        assert array is not None
        return array


def lower_each(model: ir.Model, operator: str, lowering: type[NodeBuilder], name: str) -> PassReport:
    """Put what `lowering` builds in the place of every node of an operator of ours; return the pass's report."""
    report = PassReport(name)
    for node in [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, operator)]:
        new = lowering(model, node).nodes()
        replace(model, [node], new, [like(new[-1], node.outputs[0])])
        report.changed.append(str(node.name))
    return report


def softmax_gates(
    build: NodeBuilder, means: list[ir.Value], layers: Sequence[ir.Value | None], channels: int
) -> list[ir.Value]:
    """Add the gates of three branches, and return them: (N, 1, channels) each, whose sum is one for each channel.

    The second layer's outputs are reordered from (channels, 3) to (3, channels): so the softmax needs no transpose.

    Args:
        means: of each branch over the image.
        layers: weight and bias of the first layer and of the second one, whose output 3 c + k is branch k's logit.
    """
    mean = build.reshape(build.add("Sum", means), (-1, channels))
    hidden = build.add("Gemm", [mean, *layers[:2]], {"transB": 1})
    active = build.gelu(hidden)
    order = np.arange(3 * channels).reshape(channels, 3).T.ravel()
    second = [
        constant(build.model, f"{layer.name}.by_branch", build.array(layer)[order])  # type: ignore[union-attr]
        for layer in layers[2:]
    ]
    logits = build.add("Gemm", [active, *second], {"transB": 1})
    stacked = build.reshape(logits, (-1, 3, channels))
    softmax = build.add("Softmax", [stacked], {"axis": 1})
    split = ir.node("Split", [softmax], {"axis": 1, "num_outputs": 3}, num_outputs=3, name=f"{build.node.name}/split")
    for index, output in enumerate(split.outputs):
        output.name, output.type = f"{split.name}:{index}", softmax.type
    build.new.append(split)
    return list(split.outputs)
