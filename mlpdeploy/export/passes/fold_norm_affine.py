"""The affine part of a GroupNorm1 folded into the 1x1 convolutions that follow.

    conv(n * scale + bias) = W (n * scale + bias) + b = (W diag(scale)) n + (W bias + b)

Before: GroupNorm1(x, scale, bias), used by 1x1 convolutions only. After: GroupNorm1 with ones and zeros, and
convolutions with W' = W diag(scale), b' = W bias + b, computed in float64 and rounded once. A convolution that pads is
left alone: the border would see zeros where the norm had put its bias.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mlpdeploy.export.passes.rewrite import PassReport, array_of, constant
from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.group_norm import NAME


def fold_norm_affine(model: ir.Model) -> PassReport:
    """Fold wherever all users allow it; exact up to one rounding of the weights."""
    report = PassReport("fold_norm_affine")
    for norm in [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, NAME)]:
        scale, bias = array_of(norm.inputs[1]), array_of(norm.inputs[2])
        if scale is None or bias is None:
            report.refused[str(norm.name)] = "its scale or bias is not constant"
            continue
        if is_plain(norm):
            continue
        users = [use.node for use in norm.outputs[0].uses()]
        reason = _why_not(norm, users)
        if reason:
            report.refused[str(norm.name)] = reason
            continue
        for conv in users:
            _fold(model, conv, scale.astype(np.float64), bias.astype(np.float64))
        norm.replace_input_with(1, constant(model, f"ones_{len(scale)}", np.ones_like(scale)))
        norm.replace_input_with(2, constant(model, f"zeros_{len(bias)}", np.zeros_like(bias)))
        norm.name = f"{norm.name}/normalize"
        norm.outputs[0].name = f"{norm.name}:0"
        report.changed.append(str(norm.name))
    return report


def is_plain(norm: ir.Node) -> bool:
    """Return whether a GroupNorm1 has ones for its scale and zeros for its bias."""
    scale, bias = array_of(norm.inputs[1]), array_of(norm.inputs[2])
    return scale is not None and bias is not None and bool((scale == 1).all()) and not bias.any()


def _why_not(norm: ir.Node, users: list[ir.Node]) -> str:
    """Return why the affine part cannot move into the users, or an empty string."""
    if norm.outputs[0].is_graph_output():
        return "its result is an output of the model"
    for user in users:
        if user.op_type != "Conv":
            return f"its result goes to {user.op_type}, not only to 1x1 convolutions"
        weight = array_of(user.inputs[1])
        if weight is None or weight.shape[2:] != (1, 1) or user.attributes.get_int("group", 1) != 1:
            return "its result goes to a convolution that is not 1x1"
        if any(user.attributes.get_ints("pads", ())):
            return "its result goes to a convolution that pads"
    return ""


def _fold(model: ir.Model, conv: ir.Node, scale: np.ndarray, bias: np.ndarray) -> None:
    weight = array_of(conv.inputs[1])
    assert weight is not None
    own = array_of(conv.inputs[2]) if len(conv.inputs) > 2 else None
    name = str(conv.inputs[1].name).removesuffix(".weight")  # type: ignore[union-attr]
    matrix = weight.astype(np.float64)
    folded = (matrix * scale[None, :, None, None]).astype(weight.dtype)
    offset = matrix[:, :, 0, 0] @ bias + (0 if own is None else own.astype(np.float64))
    conv.replace_input_with(1, constant(model, f"{name}.folded.weight", folded))
    if len(conv.inputs) < 3:
        conv.resize_inputs(3)
    conv.replace_input_with(2, constant(model, f"{name}.folded.bias", offset.astype(weight.dtype)))
