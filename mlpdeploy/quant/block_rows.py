"""Nodes of ours on rows (N, H, W, C), in the place of nodes on planes (N, C, H, W).

One stands behind the other, with a Transpose where the rows begin and end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from mlpdeploy.export.passes.rewrite import array_of, constant, like, opset_of, remove_unused, replace
from mlpdeploy.ops import axial_shift_block, cycle_block, downsample, patch_embed, permutator_block
from mlpdeploy.ops.axial_shift import DOMAIN

if TYPE_CHECKING:
    import onnx

_TO_ROWS, _TO_PLANES = (0, 2, 3, 1), (0, 3, 1, 2)


BLOCKS = (axial_shift_block.NAME, permutator_block.NAME, cycle_block.NAME)


def is_block(node: ir.Node, name: str) -> bool:
    """Return whether a node is an operator of ours."""
    return (node.domain, node.op_type) == (DOMAIN, name)


def has_blocks(model: ir.Model) -> bool:
    """Return whether a model was lowered with whole blocks, and has some."""
    return any(is_block(node, name) for node in model.graph for name in BLOCKS)


def is_merging(node: ir.Node) -> bool:
    """Return whether a node is the convolution that `merge_patches` makes, of sizes that the kernel takes."""
    return _halves(node) and _is_norm(norm_before(node))


def is_downsample(node: ir.Node) -> bool:
    """Return whether a node is a convolution of stride 2 on rows that were turned, of sizes that the kernel takes."""
    return _halves(node) and _rows_of(node.inputs[0]) is not None


def _is_norm(nodes: list[ir.Node]) -> bool:
    return [node.op_type for node in nodes] == ["Reshape", "InstanceNormalization", "Reshape"]


def _halves(node: ir.Node) -> bool:
    """Return whether a node is a dense convolution of stride 2 with a bias, of sizes that the kernel takes."""
    convolution = _dense_convolution(node)
    if convolution is None:
        return False
    shape, stride, padding = convolution
    return downsample.takes(shape) and (stride, padding) == (2, (shape[2] - 1) // 2)


def _dense_convolution(node: ir.Node | None) -> tuple[tuple[int, ...], int, int] | None:
    """Return the weight's shape, the stride and the padding, alike on all sides, of a dense convolution with a bias."""
    if node is None or node.op_type != "Conv" or len(node.inputs) != 3 or node.attributes.get_int("group", 1) != 1:
        return None
    weight = array_of(node.inputs[1])
    strides, pads = node.attributes.get_ints("strides", (1, 1)), node.attributes.get_ints("pads", (0,) * 4)
    alike = len({*strides}) == 1 and len({*pads}) == 1 and {*node.attributes.get_ints("dilations", (1,))} == {1}
    if weight is None or array_of(node.inputs[2]) is None or not alike:
        return None
    return weight.shape, strides[0], pads[0]


def norm_before(node: ir.Node) -> list[ir.Node]:
    """Return the three nodes before one, the nearest last, as far as nothing else uses what they compute."""
    found: list[ir.Node] = []
    while len(found) < 3:
        reader = found[0] if found else node
        value = reader.inputs[0] if reader.inputs else None
        producer = None if value is None else value.producer()
        if producer is None or len(producer.outputs[0].uses()) != 1:
            break
        found.insert(0, producer)
    return found


def add_function(model: ir.Model, proto: onnx.FunctionProto) -> None:
    """Put the function behind some nodes into a model."""
    function = ir.serde.deserialize_function(proto)
    model.functions[function.identifier()] = function
    model.graph.opset_imports.setdefault(DOMAIN, 1)


def put_rows(model: ir.Model, old: list[ir.Node], node: ir.Node) -> None:
    """Put a node that works on rows in the place of nodes that work on planes; it takes over their value's name.

    What turns the planes to rows again reads the node's.
    """
    planes = old[-1].outputs[0]
    rows = _rows_of(node.inputs[0])
    new = [node]
    if rows is None:
        to_rows = ir.node("Transpose", [node.inputs[0]], {"perm": list(_TO_ROWS)}, name=f"{node.name}/to_rows")
        new.insert(0, to_rows)
        rows = _described(to_rows, node.inputs[0], _TO_ROWS)
        rows.name = f"{to_rows.name}:0"
    node.replace_input_with(0, rows)
    _described(node, planes, _TO_ROWS)
    to_planes = ir.node("Transpose", [node.outputs[0]], {"perm": list(_TO_PLANES)}, name=f"{node.name}/to_planes")
    output = to_planes.outputs[0]
    output.type, output.shape = planes.type, planes.shape
    name, is_output = planes.name, planes.is_graph_output()
    replace(model, old, [*new, to_planes], [output])
    if not is_output:
        output.name, node.outputs[0].name = f"{to_planes.name}:0", name
    for use in list(output.uses()):
        if _perm_of(use.node) == _TO_ROWS:
            use.node.outputs[0].replace_all_uses_with(node.outputs[0])


def _rows_of(planes: ir.Value | None) -> ir.Value | None:
    """Return the rows that a value was turned from, or None."""
    producer = None if planes is None else planes.producer()
    return producer.inputs[0] if producer is not None and _perm_of(producer) == _TO_PLANES else None


def _perm_of(node: ir.Node) -> tuple[int, ...]:
    """Return how a Transpose orders axes, or nothing for another operator."""
    return tuple(node.attributes.get_ints("perm", ())) if node.op_type == "Transpose" else ()


def _described(node: ir.Node, source: ir.Value | None, perm: tuple[int, ...]) -> ir.Value:
    """Return a node's output, with the type of a value and its shape turned."""
    assert source is not None and source.shape is not None
    output = node.outputs[0]
    output.type, output.shape = source.type, ir.Shape([source.shape[axis] for axis in perm])
    return output


def embed_patches(model: ir.Model) -> None:
    """Have the convolution that reads the image write rows, in place, where they are what is used of it.

    AS-MLP's norm behind it becomes a part of the node.
    """
    for turn in list(model.graph):
        if _perm_of(turn) != _TO_ROWS or turn.inputs[0] is None or len(turn.inputs[0].uses()) != 1:
            continue
        last = turn.inputs[0].producer()
        norm = None if last is None else norm_before(last)
        if norm is not None and _is_norm(norm):
            assert last is not None and norm[0].inputs[0] is not None
            _embed(model, norm[0].inputs[0].producer(), turn, last, norm[1])
        else:
            _embed(model, last, turn)
    remove_unused(model)


def _embed(
    model: ir.Model,
    stem: ir.Node | None,
    turn: ir.Node,
    affine: ir.Node | None = None,
    norm: ir.Node | None = None,
) -> None:
    """Put a node in the place of the convolution, of the norm's scales and biases, and of what turns that to rows."""
    convolution = _dense_convolution(stem)
    if convolution is None or stem is None or stem.inputs[0] is None or not stem.inputs[0].is_graph_input():
        return
    shape, stride, padding = convolution
    if not patch_embed.takes(shape):
        return
    inputs = list(stem.inputs)
    attributes: dict[str, int | float] = {"stride": stride, "padding": padding}
    name, function = patch_embed.NAME, patch_embed.patch_embed_function
    if affine is not None and norm is not None:
        scale = array_of(affine.inputs[1])
        if scale is None or affine.op_type != "Conv" or scale.shape != (shape[0], 1, 1, 1):
            return
        inputs += [constant(model, f"{affine.name}/scale", scale.reshape(-1)), affine.inputs[2]]
        attributes["epsilon"] = norm.attributes.get_float("epsilon", 1e-5)
        name, function = patch_embed.NORMALIZED_NAME, patch_embed.normalized_patch_embed_function
    node = ir.node(name, inputs, attributes, domain=DOMAIN, name=stem.name)
    replace(model, [turn], [node], [like(node, turn.outputs[0])])
    add_function(model, function(stride, padding, opset_of(model)))
