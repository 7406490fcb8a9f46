"""An AS-MLP block as one `mlpdeploy::AxialShiftBlock`, for a runtime that may have a kernel for it.

Before: GroupNorm1, Conv, GroupNorm1, Gelu, AxialShift, {Conv, Gelu} twice, Add, GroupNorm1, Conv, Add with the block's
input, GroupNorm1, Conv, Gelu, Conv, Add. All convolutions are 1x1, and all norms but the second have had their affine
part folded (`fold_norm_affine`).

After: one node, and a function with the nodes that the other passes would have made. Exact: they are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mlpdeploy.export.passes.fold_norm_affine import is_plain
from mlpdeploy.export.passes.lower_axial_shift import one_hot_kernel, shift_spec_of
from mlpdeploy.export.passes.matching import NoMatchError, expect, producer_of, user_of
from mlpdeploy.export.passes.rewrite import (
    PassReport,
    array_of,
    constant,
    like,
    note_factors,
    opset_of,
    replace,
    shape_constant,
)
from mlpdeploy.ops import axial_shift, group_norm
from mlpdeploy.ops.axial_shift import DOMAIN, ShiftSpec
from mlpdeploy.ops.axial_shift_block import MATRICES, NAME, axial_shift_block_function
from mlpdeploy.ops.group_norm import EPSILON


def form_axial_shift_blocks(model: ir.Model) -> PassReport:
    """Form every block of the model that is the published one; exact."""
    report = PassReport("form_axial_shift_blocks")
    formed: set[ShiftSpec] = set()
    for node in [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, axial_shift.NAME)]:
        try:
            nodes, inputs = _match(node)
            spec = shift_spec_of(node)
            if formed and spec not in formed:
                raise NoMatchError("it shifts unlike the blocks before it")
        except NoMatchError as reason:
            report.refused[str(node.name)] = str(reason)
            continue
        _form(model, node, nodes, inputs)
        formed.add(spec)
        report.changed.append(str(nodes[-1].name))
    for spec in formed:  # one, or none
        function = ir.serde.deserialize_function(axial_shift_block_function(spec, opset_of(model)))
        model.functions[function.identifier()] = function
        model.graph.opset_imports.setdefault(DOMAIN, 1)
    return report


def _match(shift: ir.Node) -> tuple[list[ir.Node], list[ir.Value]]:
    """Return a block's nodes, the last one last, and the node's inputs X to b_5."""
    gelu = producer_of(shift.inputs[0], "Gelu")
    norm2 = _norm(gelu.inputs[0], plain=False)
    conv1, weights1 = _conv(norm2.inputs[0])
    norm1 = _norm(conv1.inputs[0], plain=True)
    x = norm1.inputs[0]
    branches = []
    for moved in shift.outputs:
        conv, weights = _conv_of(user_of(moved))
        branches.append((conv, weights, expect(user_of(conv.outputs[0]), "Gelu")))
    (conv_w, weights_w, gelu_w), (conv_h, weights_h, gelu_h) = branches
    added = expect(user_of(gelu_w.outputs[0]), "Add")
    if user_of(gelu_h.outputs[0]) is not added:
        raise NoMatchError("its two branches are not added")
    norm3 = _norm_of(user_of(added.outputs[0]), plain=True)
    conv3, weights3 = _conv_of(user_of(norm3.outputs[0]))
    residual1 = expect(user_of(conv3.outputs[0]), "Add")
    if x not in residual1.inputs:
        raise NoMatchError("the block's input is not added to its result")
    users = [use.node for use in residual1.outputs[0].uses()]
    norms = [node for node in users if node.op_type == group_norm.NAME]
    if len(users) != 2 or len(norms) != 1:
        raise NoMatchError("no norm and MLP follow it")
    norm4 = _norm_of(norms[0], plain=True)
    conv4, weights4 = _conv_of(user_of(norm4.outputs[0]))
    gelu4 = expect(user_of(conv4.outputs[0]), "Gelu")
    conv5, weights5 = _conv_of(user_of(gelu4.outputs[0]))
    residual2 = expect(user_of(conv5.outputs[0]), "Add")
    if residual1.outputs[0] not in residual2.inputs:
        raise NoMatchError("no residual is added to its MLP")
    norms = [norm1, norm2, norm3, norm4]
    if len({norm.attributes.get_float("epsilon", EPSILON) for norm in norms}) > 1:
        raise NoMatchError("its norms differ in epsilon")
    affine = [value for value in norm2.inputs[1:3] if value is not None]
    inputs = [x, *weights1, *affine, *weights_w, *weights_h, *weights3, *weights4, *weights5]
    nodes = [norm1, conv1, norm2, gelu, shift, conv_w, gelu_w, conv_h, gelu_h, added, norm3, conv3, residual1, norm4]
    return [*nodes, conv4, gelu4, conv5, residual2], inputs  # type: ignore[return-value]


def _form(model: ir.Model, shift: ir.Node, nodes: list[ir.Node], inputs: list[ir.Value]) -> None:
    x, last = inputs[0], nodes[-1]
    assert x.shape is not None
    spec, channels = shift_spec_of(shift), shift.attributes.get_int("channels", 0)
    scale = array_of(inputs[3])
    assert scale is not None
    inputs[3] = constant(model, f"{inputs[3].name}.depthwise", scale.reshape(-1, 1, 1, 1))
    kernels = [one_hot_kernel(model, spec, channels, axis, scale.dtype) for axis in ("w", "h")]
    sizes = list(x.shape)[1:]
    new: list[ir.Node] = []
    if all(isinstance(size, int) for size in sizes):
        shape = shape_constant(model, (0, *(int(size) for size in sizes)))  # type: ignore[arg-type]
    else:
        new.append(ir.node("Shape", [x], name=f"{last.name}/Shape"))
        shape = new[0].outputs[0]
        shape.type, shape.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([4])
        shape.name = f"{last.name}/Shape:0"
    attributes: dict[str, int | float | str] = {
        "shift_size": spec.shift_size,
        "dilation": spec.dilation,
        "padding": spec.padding,
        "channels": channels,
        "epsilon": nodes[0].attributes.get_float("epsilon", EPSILON),
    }
    block = ir.node(NAME, [*inputs, *kernels, shape], attributes, domain=DOMAIN, name=f"{last.name}/block")
    _, conv1, _, gelu, _, conv_w, _, conv_h, _, _, _, conv3, _, _, conv4, _, conv5, _ = nodes
    products = dict(zip(MATRICES, (conv1, conv_w, conv_h, conv3, conv4, conv5), strict=True))
    moved = dict.fromkeys(("W_w", "W_h"), gelu.outputs[0])
    note_factors(block, {name: (node, moved.get(name, node.inputs[0])) for name, node in products.items()})
    replace(model, nodes, [*new, block], [like(block, last.outputs[0])])


def _conv(value: ir.Value | None) -> tuple[ir.Node, list[ir.Value]]:
    return _conv_of(producer_of(value, "Conv"))


def _conv_of(node: ir.Node) -> tuple[ir.Node, list[ir.Value]]:
    """Return a 1x1 convolution and its weights."""
    expect(node, "Conv")
    weight = array_of(node.inputs[1])
    bias = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if weight is None or bias is None or weight.dtype != np.float32:
        raise NoMatchError("a convolution of it has no constant float32 weights and bias")
    strides = node.attributes.get_ints("strides", (1, 1))
    if (
        weight.shape[2:] != (1, 1)
        or node.attributes.get_int("group", 1) != 1
        or any(node.attributes.get_ints("pads", ()))
        or any(stride != 1 for stride in strides)
    ):
        raise NoMatchError("a convolution of it is not 1x1")
    return node, list(node.inputs[1:3])  # type: ignore[arg-type]


def _norm(value: ir.Value | None, plain: bool) -> ir.Node:
    return _norm_of(producer_of(value, group_norm.NAME), plain)


def _norm_of(node: ir.Node, plain: bool) -> ir.Node:
    expect(node, group_norm.NAME)
    if plain and not is_plain(node):
        raise NoMatchError("the affine part of a norm could not be folded")
    if array_of(node.inputs[1]) is None or array_of(node.inputs[2]) is None:
        raise NoMatchError("a norm's scale or bias is not constant")
    return node
