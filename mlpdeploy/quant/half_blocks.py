"""bfloat16 inside of whole blocks, for the CPU: our kernels multiply it, and ONNX Runtime has no operators for it.

AS-MLP before: `mlpdeploy::AxialShiftBlock` on planes (N, C, H, W), and between the stages a norm and a 2x2 convolution.
After: `mlpdeploy::AxialShiftBlockBf16` and `PatchMergingBf16` on rows (N, H, W, C), one behind the other, with a
Transpose where the rows begin and end. Vision Permutator's `PermutatorBlock` and CycleMLP's `CycleBlock`, on rows
anyway, become `PermutatorBlockBf16` and `CycleBlockBf16`, and the convolutions between their stages `DownsampleBf16`.
Their matrices are bfloat16 and their products round the other factor to it; sums, statistics and what is added up stay
float32. The functions behind the nodes do the same roundings in float32, so the file means the same without the
kernels, but is no faster then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir

from mlpdeploy.errors import UsageError
from mlpdeploy.export.passes.lower_axial_shift import shift_spec_of
from mlpdeploy.export.passes.rewrite import array_of, constant, factors_of, like, opset_of, remove_unused, replace
from mlpdeploy.ops import axial_shift_block, cycle_block, downsample, permutator_block
from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.axial_shift_block import axial_shift_block_function
from mlpdeploy.ops.cycle_block import cycle_block_function
from mlpdeploy.ops.downsample import downsample_bf16_function, patch_merging_bf16_function
from mlpdeploy.ops.permutator_block import permutator_block_function
from mlpdeploy.quant.block_rows import (
    BLOCKS,
    add_function,
    embed_patches,
    has_blocks,
    is_block,
    is_downsample,
    is_merging,
    norm_before,
    put_rows,
)
from mlpdeploy.quant.half import HalfReport
from mlpdeploy.quant.macs import macs_of
from mlpdeploy.quant.recipe import Recipe


def half_blocks(model: ir.Model, recipe: Recipe) -> HalfReport:
    """Give the products of blocks, and those between stages, bfloat16 factors in place, but those the recipe keeps.

    A block stays in float32 as a whole where the recipe keeps one of its products.

    Args:
        model: lowered for `cpu` with whole blocks.
        recipe: of precision bf16.

    Raises:
        UsageError: the model has no such blocks, the recipe keeps them all, or a kept name is no node's or product's.
    """
    if not has_blocks(model):
        raise UsageError(
            "bf16 for the target cpu, of a model without blocks as they were published",
            "fp16 or int8, or --target openvino",
            "our CPU kernels compute bf16 in such blocks only, and ONNX Runtime has no operators for it",
        )
    recipe.check_names(name for node in model.graph for name in _names(node))
    macs = macs_of(model)
    report = HalfReport("half_blocks(bf16)")
    for node in list(model.graph):  # in this order, so that each finds the rows of the one before it
        convert = _conversion(node)
        if convert is None:
            continue
        if any(map(recipe.keeps, _names(node))):
            report.refused[str(node.name)] = "kept in float32 by request"
        else:
            convert(model, node, report)
    if not report.changed:
        raise UsageError("a recipe that keeps every block in float32", "at least one in bf16", "keep fewer blocks")
    remove_unused(model)
    embed_patches(model)
    total = sum(macs.values())
    report.macs_share = sum(macs[name] for name in report.changed) / total if total else 0.0
    return report


def _names(node: ir.Node) -> list[str]:
    """Return a node's name and, of a block, those of the products inside of it."""
    inside = factors_of(node).values() if any(is_block(node, name) for name in BLOCKS) else ()
    return [str(node.name), *(factor.product for factor in inside)]


def _conversion(node: ir.Node) -> Callable[[ir.Model, ir.Node, HalfReport], None] | None:
    """Return what gives a node bfloat16 products, or None for a node that has none of ours."""
    if is_block(node, axial_shift_block.NAME):
        return _convert_axial_shift
    if is_block(node, permutator_block.NAME):
        return partial(_convert_mixer, permutator_block.BF16_NAME, permutator_block.INPUTS, permutator_block_function)
    if is_block(node, cycle_block.NAME):
        return partial(_convert_mixer, cycle_block.BF16_NAME, cycle_block.INPUTS, cycle_block_function)
    if is_merging(node):
        return _convert_merging
    return _convert_downsample if is_downsample(node) else None


def _convert_axial_shift(model: ir.Model, node: ir.Node, report: HalfReport) -> None:
    block = _block(model, node, axial_shift_block.BF16_NAME, axial_shift_block.BF16_INPUTS, report)
    put_rows(model, [node], block)
    add_function(model, axial_shift_block_function(shift_spec_of(node), opset_of(model), bf16=True))
    report.changed.append(str(node.name))


def _convert_mixer(
    name: str,
    inputs: tuple[str, ...],
    function: Callable[..., onnx.FunctionProto],
    model: ir.Model,
    node: ir.Node,
    report: HalfReport,
) -> None:
    block = _block(model, node, name, inputs, report)
    replace(model, [node], [block], [like(block, node.outputs[0])])
    add_function(model, function(opset_of(model), bf16=True))
    report.changed.append(str(node.name))


def _block(model: ir.Model, node: ir.Node, name: str, inputs: tuple[str, ...], report: HalfReport) -> ir.Node:
    """Return a node like another one, with those of its inputs and with matrices of bfloat16, which are called W_*."""
    values = [
        _half(model, value, report) if name.startswith("W_") else value
        for name, value in zip(inputs, node.inputs, strict=False)
    ]
    return ir.node(name, values, dict(node.attributes), domain=DOMAIN, name=node.name)


def _convert_merging(model: ir.Model, node: ir.Node, report: HalfReport) -> None:
    norm = norm_before(node)
    epsilon = norm[1].attributes.get_float("epsilon", 1e-5)
    inputs = [norm[0].inputs[0], _half(model, node.inputs[1], report), node.inputs[2]]
    merging = ir.node(downsample.MERGING_BF16_NAME, inputs, {"epsilon": epsilon}, domain=DOMAIN, name=node.name)
    put_rows(model, [*norm, node], merging)
    add_function(model, patch_merging_bf16_function(opset_of(model)))
    report.changed.append(str(node.name))


def _convert_downsample(model: ir.Model, node: ir.Node, report: HalfReport) -> None:
    inputs = [node.inputs[0], _half(model, node.inputs[1], report), node.inputs[2]]
    put_rows(model, [node], ir.node(downsample.BF16_NAME, inputs, domain=DOMAIN, name=node.name))
    add_function(model, downsample_bf16_function(opset_of(model)))
    report.changed.append(str(node.name))


def _half(model: ir.Model, value: ir.Value | None, report: HalfReport) -> ir.Value:
    """Return a weight in bfloat16."""
    import ml_dtypes

    weight = array_of(value)
    assert weight is not None and value is not None
    half = weight.astype(ml_dtypes.bfloat16)
    report.weights += half.size
    report.weights_zero += int(np.count_nonzero((half == 0) & (weight != 0)))
    return constant(model, f"{value.name}.bf16", half)
