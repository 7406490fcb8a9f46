"""`mlpdeploy::WeightedPermuteMlp` as standard operators, with the cheapest transposes.

The paper's form moves five-dimensional blocks: (N, H, W, g, S) -> (N, g, W, H, S) and back. Instead, with x seen as
(N, H, W*C), one plain transpose gives (N, W*C, H), whose rows of H*S = C values belong to one (w, g) and run over
(s, h) rather than (h, s). The projection's rows and columns are permuted to match, once, when the model is lowered:

    W'[(s', h'), (s, h)] = W[(h', s'), (h, s)]

Likewise along the width, image row by image row: (N*H, W, C) -> (N*H, C, W). Where a segment has 16 channels or more,
moving whole segments is cheaper for the width, and halving the rows gives the runtime's transpose two loops to share.

The gates need the mean over the image of the branches' sum: the sum of three products with a row of 1 / (H*W) makes no
full-size sum. The second gate layer's outputs are reordered from (C, 3) to (3, C), so that its softmax needs no
transpose. Exact but for the order of summation.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mlpdeploy.export.passes.building import NodeBuilder, lower_each, mixed_tensor, softmax_gates
from mlpdeploy.export.passes.rewrite import PassReport, constant
from mlpdeploy.ops.permute_mlp import NAME

_WIDE_SEGMENT = 16  # channels: from here on moving segments beats transposing single values


def moves_segments(each: int, height: int) -> bool:
    """Return whether whole segments of `each` channels are moved for the width, and not single values."""
    return each >= _WIDE_SEGMENT and height % 2 == 0


def lower_permute_mlp(model: ir.Model) -> PassReport:
    """Lower every WeightedPermuteMlp of the model."""
    return lower_each(model, NAME, _Lowering, "lower_permute_mlp")


class _Lowering(NodeBuilder):
    """Builds the nodes for one WeightedPermuteMlp, in order."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        super().__init__(model, node)
        self.height, self.width, self.channels, self.segments = (
            node.attributes.get_int(name, 0) for name in ("height", "width", "channels", "segments")
        )
        self.each = self.channels // self.segments

    def nodes(self) -> list[ir.Node]:
        x = self.node.inputs[0]
        assert x is not None
        tokens = self.height * self.width
        flat = self.reshape(x, (-1, self.channels))
        branches = [self.along_height(flat), self.along_width(flat), self.matmul(flat, self.weight(3).T, "mlp_c")]
        images = [self.reshape(branch, (-1, tokens, self.channels)) for branch in branches]
        gates = self.gates(images)
        weighted = [self.add("Mul", [image, gate]) for image, gate in zip(images, gates, strict=True)]
        total = self.add("Add", [self.add("Add", weighted[:2]), weighted[2]])
        total.name = mixed_tensor(self.node)
        self.reshape(total, (-1, self.height, self.width, self.channels))
        return self.new

    def along_height(self, x: ir.Value) -> ir.Value:
        moved = self.transpose(self.reshape(x, (-1, self.height, self.width * self.channels)), (0, 2, 1))
        weight = _reordered(self.weight(1), self.height, self.each).T
        mixed = self.matmul(self.reshape(moved, (-1, self.channels)), weight, "mlp_h")
        cells = self.reshape(mixed, (-1, self.width * self.channels, self.height))
        return self.transpose(cells, (0, 2, 1))

    def along_width(self, x: ir.Value) -> ir.Value:
        if moves_segments(self.each, self.height):
            split = self.reshape(x, (2, -1, self.width, self.segments, self.each))
            moved = self.transpose(split, (1, 3, 0, 2, 4))
            mixed = self.matmul(self.reshape(moved, (-1, self.channels)), self.weight(2).T, "mlp_w")
            cells = self.reshape(mixed, (-1, self.segments, 2, self.width, self.each))
            return self.transpose(cells, (2, 0, 3, 1, 4))
        moved = self.transpose(self.reshape(x, (-1, self.width, self.channels)), (0, 2, 1))
        weight = _reordered(self.weight(2), self.width, self.each).T
        mixed = self.matmul(self.reshape(moved, (-1, self.channels)), weight, "mlp_w")
        return self.transpose(self.reshape(mixed, (-1, self.channels, self.width)), (0, 2, 1))

    def gates(self, images: list[ir.Value]) -> list[ir.Value]:
        """Return three (N, 1, C) gates that sum to one for each channel."""
        tokens, dtype = self.height * self.width, self.weight(1).dtype
        ones = constant(self.model, f"mean_over_{tokens}", np.full((1, tokens), 1 / tokens, dtype))
        means = [self.add("MatMul", [ones, image]) for image in images]
        return softmax_gates(self, means, self.node.inputs[4:8], self.channels)

    def weight(self, index: int) -> np.ndarray:
        return self.array(self.node.inputs[index])

    def matmul(self, x: ir.Value, weight: np.ndarray, name: str) -> ir.Value:
        scope = str(self.node.name).rpartition("/")[0]
        return self.add("MatMul", [x, constant(self.model, f"{scope}.{name}.weight.lowered", weight)])


def _reordered(weight: np.ndarray, outer: int, inner: int) -> np.ndarray:
    """Return W' of the module docstring: rows and columns (outer, inner) reordered to (inner, outer)."""
    order = np.arange(outer * inner).reshape(outer, inner).T.ravel()
    return weight[np.ix_(order, order)]
