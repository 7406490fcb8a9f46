"""Products of 8 bits inside of whole blocks, for the CPU: our kernels multiply and add them up in one pass.

AS-MLP before: `mlpdeploy::AxialShiftBlock` on planes (N, C, H, W), and between the stages a norm and a 2x2 convolution.
After: `mlpdeploy::AxialShiftBlockInt8` and `PatchMergingInt8` on rows (N, H, W, C). Vision Permutator's
`PermutatorBlock` and CycleMLP's `CycleBlock`, on rows anyway, become `PermutatorBlockInt8` and `CycleBlockInt8`, and
the convolutions between their stages `DownsampleInt8`. Only what is multiplied is in 8 bits: the result of a product,
statistics and what is added up stay float32. Other products get QuantizeLinear and DequantizeLinear (`qdq`). The
functions behind the nodes have the same roundings, so the file means the same without the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from mlpdeploy.export.passes.lower_axial_shift import shift_spec_of
from mlpdeploy.export.passes.rewrite import (
    Factor,
    array_of,
    constant,
    factors_of,
    like,
    opset_of,
    remove_unused,
    replace,
)
from mlpdeploy.ops import axial_shift_block, cycle_block, downsample, permutator_block
from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.int8 import Scale
from mlpdeploy.quant.block_rows import (
    add_function,
    embed_patches,
    has_blocks,
    is_block,
    is_downsample,
    is_merging,
    norm_before,
    put_rows,
)
from mlpdeploy.quant.calibration import Calibration
from mlpdeploy.quant.macs import macs_of
from mlpdeploy.quant.products import origin_of
from mlpdeploy.quant.qdq import DEFAULT_CALIBRATOR, INT8_FORMS, QdqReport, constant_bytes, insert_qdq
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.quant.scales import MOST, RESTS, quantized_weight, uint8_scale


def quantize_int8(model: ir.Model, target: str, calibration: Calibration, recipe: Recipe) -> QdqReport:
    """Quantize a model that was lowered for a target, in place: its blocks, then its other products (`insert_qdq`).

    Raises:
        UsageError, ArtifactError: see `insert_qdq`.
    """
    done = int8_blocks(model, calibration, recipe)
    on_rows = bool(done.quantized)
    report = insert_qdq(model, INT8_FORMS[target], calibration, recipe, done)
    if on_rows:
        embed_patches(model)
    return report


def int8_blocks(model: ir.Model, calibration: Calibration, recipe: Recipe) -> QdqReport:
    """Give the products of blocks, and those between stages, 8-bit factors in place, but those the recipe keeps.

    A block stays in float32 as a whole where the recipe keeps one of its products.

    Args:
        model: lowered for `cpu` with whole blocks; where it has none, nothing is changed.
        calibration: knows what the blocks' products multiply.
        recipe: of precision int8; its names are checked by `insert_qdq`.

    Returns:
        what was quantized and kept, for `insert_qdq` to go on with.

    Raises:
        ArtifactError: the calibration lacks a tensor.
    """
    report = QdqReport(bytes_before=constant_bytes(model))
    if not has_blocks(model):
        return report
    macs = macs_of(model)
    writer = _Writer(model, calibration, recipe)
    for node in list(model.graph):  # in this order, so that each finds the rows of the one before it
        convert = writer.conversion(node)
        if convert is None:
            continue
        name = str(node.name)
        parts = {factor.product for factor in _factors(node).values()}
        report.names |= {name, *parts}
        if any(recipe.keeps(part) for part in (name, *parts)):
            report.kept[name], report.reasons[name] = macs[name], "the recipe keeps it"
        else:
            convert(node)
            report.quantized[name] = macs[name]
    remove_unused(model)
    return report


def _factors(node: ir.Node) -> dict[str, Factor]:
    """Return what a node's matrices are multiplied with, by input."""
    if is_merging(node):
        normal = norm_before(node)[-1].outputs[0]
        return {"W": Factor(str(node.name), str(normal.name))}
    if is_downsample(node):
        assert node.inputs[0] is not None
        return {"W": Factor(str(node.name), str(origin_of(node.inputs[0]).name))}
    return factors_of(node)


class _Writer:
    """Puts nodes with 8-bit products in the place of others."""

    def __init__(self, model: ir.Model, calibration: Calibration, recipe: Recipe) -> None:
        self._model, self._calibration = model, calibration
        self._calibrator = recipe.calibrator or DEFAULT_CALIBRATOR
        self._most = MOST[recipe.weight_bits]

    def conversion(self, node: ir.Node) -> Callable[[ir.Node], None] | None:
        """Return what gives a node products of 8 bits, or None for a node that has none of ours."""
        if is_block(node, axial_shift_block.NAME):
            return self.convert_axial_shift
        if is_block(node, permutator_block.NAME):
            return partial(self.convert_mixer, permutator_block, permutator_block.permutator_block_int8_function)
        if is_block(node, cycle_block.NAME):
            return partial(self.convert_mixer, cycle_block, cycle_block.cycle_block_int8_function)
        if is_merging(node):
            return self.convert_merging
        return self.convert_downsample if is_downsample(node) else None

    def convert_axial_shift(self, node: ir.Node) -> None:
        """Replace a block of AS-MLP."""
        kind = axial_shift_block
        values = dict(zip(kind.INPUTS, node.inputs, strict=True))
        scale = array_of(values["scale"])
        assert scale is not None
        values["scale"] = constant(self._model, f"{node.name}/scale", scale.reshape(-1))
        for name in kind.MATRICES:
            matrix = array_of(values[name])
            assert matrix is not None
            self._put_matrix(node, values, name, matrix.reshape(matrix.shape[:2]), 0)
        block = self._node(node, kind.INT8_NAME, [values[name] for name in kind.INT8_INPUTS], kind.SCALES)
        put_rows(self._model, [node], block)
        add_function(self._model, kind.axial_shift_block_int8_function(shift_spec_of(node), opset_of(self._model)))

    def convert_mixer(self, kind: Any, function: Callable[[int], onnx.FunctionProto], node: ir.Node) -> None:
        """Replace a block of Vision Permutator or CycleMLP, whose operators the module `kind` describes."""
        values = dict(zip(kind.INPUTS, node.inputs, strict=True))
        for name in kind.MATRICES:
            matrix = array_of(values[name])
            assert matrix is not None
            self._put_matrix(node, values, name, matrix.reshape(matrix.shape[:2]), kind.OUTPUT_AXES[name])
        block = self._node(node, kind.INT8_NAME, [values[name] for name in kind.INT8_INPUTS], kind.SCALES)
        replace(self._model, [node], [block], [like(block, node.outputs[0])])
        add_function(self._model, function(opset_of(self._model)))

    def convert_merging(self, node: ir.Node) -> None:
        """Replace a patch merging and the norm before it."""
        norm = norm_before(node)
        merging = self._downsample(node, downsample.MERGING_INT8_NAME, norm[0].inputs[0])
        merging.attributes["epsilon"] = ir.AttrFloat32("epsilon", norm[1].attributes.get_float("epsilon", 1e-5))
        put_rows(self._model, [*norm, node], merging)
        add_function(self._model, downsample.patch_merging_int8_function(opset_of(self._model)))

    def convert_downsample(self, node: ir.Node) -> None:
        """Replace a convolution between stages on rows."""
        weight = array_of(node.inputs[1])
        assert weight is not None
        put_rows(self._model, [node], self._downsample(node, downsample.INT8_NAME, node.inputs[0]))
        add_function(self._model, downsample.downsample_int8_function(weight.shape[2], opset_of(self._model)))

    def _downsample(self, node: ir.Node, name: str, x: ir.Value | None) -> ir.Node:
        values = {"X": x, "W": node.inputs[1], "b": node.inputs[2]}
        matrix = array_of(values["W"])
        assert matrix is not None
        self._put_matrix(node, values, "W", matrix, 0)
        scale = self._scale(_factors(node)["W"].tensor)
        inputs = [values[key] for key in ("X", "W", "b", "S")]
        return _with_scale(ir.node(name, inputs, domain=DOMAIN, name=node.name), "x", scale)

    def _put_matrix(
        self, node: ir.Node, values: dict[str, ir.Value | None], name: str, matrix: np.ndarray, axis: int
    ) -> None:
        """Replace a matrix W_... by its 8 bits, and add their steps as S_..."""
        scale = self._scale(_factors(node)[name].tensor)
        weight, steps = quantized_weight(matrix, axis, None, scale.step, RESTS["fp32"], self._most)
        source = values[name]
        assert source is not None
        values[name] = constant(self._model, f"{source.name}/int8", weight)
        values[f"S{name[1:]}"] = constant(self._model, f"{source.name}/scale", steps)

    def _scale(self, tensor: str) -> Scale:
        low, high = self._calibration.range_of(tensor, self._calibrator, symmetric=False)
        return uint8_scale(low, high)

    def _node(self, node: ir.Node, name: str, inputs: list[ir.Value | None], scales: Mapping[str, str]) -> ir.Node:
        """Return a node like another one; `scales`: matrix -> how the attributes call what it is multiplied with."""
        factors = _factors(node)
        block = ir.node(name, inputs, dict(node.attributes), domain=DOMAIN, name=node.name)
        for matrix, called in scales.items():
            _with_scale(block, called, self._scale(factors[matrix].tensor))
        return block


def _with_scale(node: ir.Node, name: str, scale: Scale) -> ir.Node:
    """Give a node the attributes of its input K = `name`, and return it."""
    for key, value in scale.attributes(name).items():
        kind = ir.AttrFloat32 if isinstance(value, float) else ir.AttrInt64
        node.attributes[key] = kind(key, value)  # type: ignore[arg-type]
    return node
