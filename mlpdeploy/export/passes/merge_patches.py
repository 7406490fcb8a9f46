"""Patch merging as one strided convolution.

Before: the four pixels of each 2x2 patch are sliced out (`x[r::2, c::2]`), concatenated along the channels,
normalized by GroupNorm1 and mixed by a 1x1 convolution W: (D, 4C).

After: GroupNorm1 without affine part on x itself, then a 2x2 convolution of stride 2,

    K[d, c, r, s] = W[d, i*C + c] * scale[i*C + c]        where slice i starts at row r, column s
    b[d]          = W[d] . bias (+ the convolution's own bias)

Exact: mean and variance over a sample do not depend on the order of its elements. The folded values are computed in
float64 and rounded once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mlpdeploy.export.passes.rewrite import PassReport, array_of, constant, like, replace
from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.group_norm import NAME


def merge_patches(model: ir.Model) -> PassReport:
    """Rewrite every Slice-Concat-GroupNorm1-Conv1x1 of the model; exact up to one rounding of the weights."""
    report = PassReport("merge_patches")
    for concat in [node for node in model.graph if node.op_type == "Concat"]:
        corners = [_corner(value) for value in concat.inputs]
        found = [corner for corner in corners if corner is not None]
        if len(found) < len(corners) or len({id(source) for source, _ in found}) != 1:
            report.refused[str(concat.name)] = "its inputs are not corners of 2x2 patches of one tensor"
            continue
        positions = [position for _, position in found]
        if sorted(positions) != [(0, 0), (0, 1), (1, 0), (1, 1)]:
            report.refused[str(concat.name)] = "its inputs are not the four corners, each once"
            continue
        norm = _only_user(concat.outputs[0])
        conv = _only_user(norm.outputs[0]) if norm is not None else None
        if norm is None or conv is None or (norm.domain, norm.op_type) != (DOMAIN, NAME) or conv.op_type != "Conv":
            report.refused[str(concat.name)] = "it is not followed by GroupNorm1 and one convolution"
            continue
        source = found[0][0]
        if any(isinstance(size, int) and size % 2 for size in list(source.shape or ())[2:]):
            report.refused[str(concat.name)] = "its size is odd, and a strided convolution would drop the border"
            continue
        _merge(model, source, positions, concat, norm, conv)
        report.changed.append(str(concat.name))
    return report


def _merge(
    model: ir.Model,
    source: ir.Value,
    positions: list[tuple[int, int]],
    concat: ir.Node,
    norm: ir.Node,
    conv: ir.Node,
) -> None:
    scale, bias, weight = (array_of(v) for v in (norm.inputs[1], norm.inputs[2], conv.inputs[1]))
    assert scale is not None and bias is not None and weight is not None
    dtype, channels = weight.dtype, weight.shape[1] // 4
    matrix = weight[:, :, 0, 0].astype(np.float64)
    scaled = matrix * scale.astype(np.float64)
    kernel = np.zeros((weight.shape[0], channels, 2, 2))
    for index, (row, column) in enumerate(positions):
        kernel[:, :, row, column] = scaled[:, index * channels : (index + 1) * channels]
    folded_bias = matrix @ bias.astype(np.float64)
    if len(conv.inputs) > 2:
        own = array_of(conv.inputs[2])
        assert own is not None
        folded_bias = folded_bias + own
    name = str(conv.inputs[1].name).removesuffix(".weight")  # type: ignore[union-attr]
    plain_norm = ir.node(
        NAME,
        [
            source,
            constant(model, f"ones_{channels}", np.ones(channels, dtype)),
            constant(model, f"zeros_{channels}", np.zeros(channels, dtype)),
        ],
        norm.attributes,
        domain=DOMAIN,
        name=f"{norm.name}/normalize",
    )
    strided = ir.node(
        "Conv",
        [
            like(plain_norm, source),
            constant(model, f"{name}.merged.weight", kernel.astype(dtype)),
            constant(model, f"{name}.merged.bias", folded_bias.astype(dtype)),
        ],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        name=conv.name,
    )
    replace(model, [concat, norm, conv], [plain_norm, strided], [strided.outputs[0]])


def _corner(value: ir.Value | None) -> tuple[ir.Value, tuple[int, int]] | None:
    """Return (the sliced tensor, (row, column)) if the value is x[:, :, row::2, column::2]."""
    starts = {2: 0, 3: 0}
    steps = {2: 1, 3: 1}
    while value is not None and value.producer() is not None and value.producer().op_type == "Slice":  # type: ignore[union-attr]
        node = value.producer()
        assert node is not None
        begin, end, axes, step = (array_of(v) for v in [*node.inputs[1:], None, None][:4])
        if begin is None or end is None or axes is None or step is None or len(axes) != 1:
            return None
        axis = int(axes[0])
        if axis in starts and int(step[0]) == 2 and steps[axis] == 1 and int(end[0]) >= 1 << 30:
            starts[axis], steps[axis] = int(begin[0]), 2
        elif int(begin[0]) != 0 or int(step[0]) != 1 or int(end[0]) < 1 << 30:
            return None
        value = node.inputs[0]
    if value is None or steps != {2: 2, 3: 2}:
        return None
    return value, (starts[2], starts[3])


def _only_user(value: ir.Value) -> ir.Node | None:
    users = {use.node for use in value.uses()}
    return next(iter(users)) if len(users) == 1 and not value.is_graph_output() else None
