"""bfloat16 inside of whole blocks, for the CPU: our kernels multiply it, and ONNX Runtime has no operators for it.

AS-MLP before: `mlpdeploy::AxialShiftBlock` on planes (N, C, H, W), and between the stages a norm and a 2x2 convolution.
After: `mlpdeploy::AxialShiftBlockBf16` and `PatchMergingBf16` on rows (N, H, W, C), one behind the other, with a
Transpose where the rows begin and end. Vision Permutator's `PermutatorBlock`, on rows anyway, becomes
`PermutatorBlockBf16`. Their matrices are bfloat16 and their products round the other factor to it; sums, statistics and
what is added up stay float32. The functions behind the nodes do the same roundings in float32, so the
file means the same without the kernels, but is no faster then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mlpdeploy.errors import UsageError
from mlpdeploy.export.passes.lower_axial_shift import shift_spec_of
from mlpdeploy.export.passes.rewrite import array_of, constant, like, opset_of, remove_unused, replace
from mlpdeploy.ops import axial_shift_block, patch_merging, permutator_block
from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.axial_shift_block import axial_shift_block_function
from mlpdeploy.ops.patch_merging import patch_merging_function
from mlpdeploy.ops.permutator_block import permutator_block_function
from mlpdeploy.quant.half import HalfReport
from mlpdeploy.quant.macs import macs_of
from mlpdeploy.quant.recipe import Recipe

if TYPE_CHECKING:
    import onnx

_TO_ROWS, _TO_PLANES = (0, 2, 3, 1), (0, 3, 1, 2)


def half_blocks(model: ir.Model, recipe: Recipe) -> HalfReport:
    """Give the products of blocks and patch mergings bfloat16 factors, in place, but of those that the recipe keeps.

    Args:
        model: lowered for `cpu` with whole blocks.
        recipe: of precision bf16.

    Raises:
        UsageError: the model has no such blocks, or a kept name is no node's.
    """
    if not any(_is_block(node, kind.NAME) for node in model.graph for kind in (axial_shift_block, permutator_block)):
        raise UsageError(
            "bf16 for the target cpu, of a model without blocks as they were published",
            "fp16 or int8, or --target openvino",
            "our CPU kernels compute bf16 in such blocks only, and ONNX Runtime has no operators for it",
        )
    recipe.check_names(str(node.name) for node in model.graph)
    macs = macs_of(model)
    report = HalfReport("half_blocks(bf16)")
    for node in list(model.graph):  # in this order, so that each finds the rows of the one before it
        convert = _conversion(node)
        if convert is None:
            continue
        if recipe.keeps(str(node.name)):
            report.refused[str(node.name)] = "kept in float32 by request"
        else:
            convert(model, node, report)
    remove_unused(model)
    total = sum(macs.values())
    report.macs_share = sum(macs[name] for name in report.changed) / total if total else 0.0
    return report


def _is_block(node: ir.Node, name: str) -> bool:
    return (node.domain, node.op_type) == (DOMAIN, name)


def _conversion(node: ir.Node) -> Callable[[ir.Model, ir.Node, HalfReport], None] | None:
    """Return what gives a node bfloat16 products, or None for a node that has none of ours."""
    if _is_block(node, axial_shift_block.NAME):
        return _convert_axial_shift
    if _is_block(node, permutator_block.NAME):
        return _convert_permutator
    return _convert_merging if _is_merging(node) else None


def _convert_axial_shift(model: ir.Model, node: ir.Node, report: HalfReport) -> None:
    block = _block(model, node, axial_shift_block.BF16_NAME, axial_shift_block.BF16_INPUTS, report)
    _put_rows(model, [node], block)
    _add_function(model, axial_shift_block_function(shift_spec_of(node), opset_of(model), bf16=True))
    report.changed.append(str(node.name))


def _convert_permutator(model: ir.Model, node: ir.Node, report: HalfReport) -> None:
    block = _block(model, node, permutator_block.BF16_NAME, permutator_block.INPUTS, report)
    replace(model, [node], [block], [like(block, node.outputs[0])])
    _add_function(model, permutator_block_function(opset_of(model), bf16=True))
    report.changed.append(str(node.name))


def _block(model: ir.Model, node: ir.Node, name: str, inputs: tuple[str, ...], report: HalfReport) -> ir.Node:
    """Return a node like another one, with those of its inputs and with matrices of bfloat16, which are called W_*."""
    values = [
        _half(model, value, report) if name.startswith("W_") else value
        for name, value in zip(inputs, node.inputs, strict=False)
    ]
    return ir.node(name, values, dict(node.attributes), domain=DOMAIN, name=node.name)


def _is_merging(node: ir.Node) -> bool:
    """Return whether a node is the convolution that `merge_patches` makes, of sizes that the kernel takes."""
    weight = array_of(node.inputs[1]) if node.op_type == "Conv" else None
    if weight is None or weight.shape[2:] != (2, 2) or tuple(node.attributes.get_ints("strides", ())) != (2, 2):
        return False
    whole = weight.shape[0] % patch_merging.UNIT == 0 and 2 * weight.shape[1] % patch_merging.UNIT == 0
    return whole and [before.op_type for before in _norm_before(node)] == [
        "Reshape",
        "InstanceNormalization",
        "Reshape",
    ]


def _norm_before(node: ir.Node) -> list[ir.Node]:
    """Return the three nodes before one, the nearest last, as far as nothing else uses what they compute."""
    found: list[ir.Node] = []
    while len(found) < 3:
        value = (found[0] if found else node).inputs[0]
        producer = None if value is None else value.producer()
        if producer is None or len(producer.outputs[0].uses()) != 1:
            break
        found.insert(0, producer)
    return found


def _convert_merging(model: ir.Model, node: ir.Node, report: HalfReport) -> None:
    norm = _norm_before(node)
    epsilon = norm[1].attributes.get_float("epsilon", 1e-5)
    inputs = [norm[0].inputs[0], _half(model, node.inputs[1], report), node.inputs[2]]
    merging = ir.node(patch_merging.NAME, inputs, {"epsilon": epsilon}, domain=DOMAIN, name=node.name)
    _put_rows(model, [*norm, node], merging)
    _add_function(model, patch_merging_function(opset_of(model)))
    report.changed.append(str(node.name))


def _add_function(model: ir.Model, proto: onnx.FunctionProto) -> None:
    function = ir.serde.deserialize_function(proto)
    model.functions[function.identifier()] = function
    model.graph.opset_imports.setdefault(DOMAIN, 1)


def _put_rows(model: ir.Model, old: list[ir.Node], node: ir.Node) -> None:
    """Put a node that works on rows in the place of nodes that work on planes; it takes over their value's name."""
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


def _rows_of(planes: ir.Value | None) -> ir.Value | None:
    """Return the rows that a value was turned from, or None."""
    producer = None if planes is None else planes.producer()
    if producer is None or producer.op_type != "Transpose":
        return None
    return producer.inputs[0] if tuple(producer.attributes.get_ints("perm", ())) == _TO_PLANES else None


def _described(node: ir.Node, source: ir.Value | None, perm: tuple[int, ...]) -> ir.Value:
    """Return a node's output, with the type of a value and its shape turned."""
    assert source is not None and source.shape is not None
    output = node.outputs[0]
    output.type, output.shape = source.type, ir.Shape([source.shape[axis] for axis in perm])
    return output


def _half(model: ir.Model, value: ir.Value | None, report: HalfReport) -> ir.Value:
    """Return a weight in bfloat16."""
    import ml_dtypes

    weight = array_of(value)
    assert weight is not None and value is not None
    half = weight.astype(ml_dtypes.bfloat16)
    report.weights += half.size
    report.weights_zero += int(np.count_nonzero((half == 0) & (weight != 0)))
    return constant(model, f"{value.name}.bf16", half)
