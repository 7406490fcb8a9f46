"""Explicit quantization: QuantizeLinear and DequantizeLinear nodes where a runtime makes 8-bit kernels of them.

Every quantized product reads DequantizeLinear(8-bit activations) and DequantizeLinear(8-bit weights, a scale per
output channel). A tensor is quantized once, right where it is computed; what only moves it (reshape, transpose,
axial shift) then moves bytes. What else is quantized differs per target, see `INT8_FORMS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from mlpdeploy.errors import UsageError
from mlpdeploy.export.passes.rewrite import array_of, constant, remove_unused
from mlpdeploy.quant.calibration import Calibration
from mlpdeploy.quant.macs import macs_of
from mlpdeploy.quant.products import (
    Product,
    is_shift_convolution,
    moved_values,
    origin_of,
    products_of,
    residual_inputs,
)
from mlpdeploy.quant.recipe import Calibrator, Recipe
from mlpdeploy.quant.scales import MOST, RESTS, as_scale, quantized_weight, uint8_scale

DEFAULT_CALIBRATOR: Calibrator = "mse"


@dataclass(frozen=True)
class Int8Form:
    """What a runtime wants to be given.

    Attributes:
        activations: `uint8` with a zero point, or `int8` symmetric around zero.
        conv_outputs: whether results of convolutions are quantized too. ONNX Runtime has no 8-bit convolution that
            writes float32.
        int32_bias: whether biases are quantized with the product of the two scales; else they stay float32.
        gemm: whether MatMul + Add of a bias becomes Gemm. ONNX Runtime would make a float32 Gemm of them.
        residuals: whether the skipping input of a residual sum is quantized.
        float_stem: whether the convolution that reads the image stays in float32. Where its result would be quantized,
            all that follows would carry that error on, for less than 1 % of the multiply-adds.
        plain_before_reshape: whether a product whose result is reshaped has one scale for its whole weight, and
            symmetric int8 activations. OpenVINO 2026.4 moves scales of channels, and what corrects for a zero point,
            behind the Reshape, where the channels are no longer the last axis: its results are wrong.
        float_without_bias: whether a convolution without a bias stays in float32. OpenVINO 2026.4.1 may lose the scales
            of its result, for its mean over the image or, by chance, for all that follows.
        typed_rest: whether what is not in 8 bits may have a half type in the file. On a CPU that would only add casts.
    """

    activations: Literal["uint8", "int8"]
    conv_outputs: bool = False
    int32_bias: bool = False
    gemm: bool = False
    residuals: bool = False
    float_stem: bool = False
    plain_before_reshape: bool = False
    float_without_bias: bool = False
    typed_rest: bool = False


INT8_FORMS = {
    "cpu": Int8Form("uint8", conv_outputs=True, int32_bias=True, gemm=True, float_stem=True),
    "openvino": Int8Form("uint8", plain_before_reshape=True, float_without_bias=True),
    "tensorrt": Int8Form("int8", residuals=True, typed_rest=True),
    "tensorrt-rtx": Int8Form("int8", residuals=True, typed_rest=True),
}


@dataclass
class QdqReport:
    """What was quantized.

    Attributes:
        quantized: {product: multiply-adds per image}.
        kept: {product: multiply-adds per image} of those in float32.
        reasons: {product: why it is kept}.
        bytes_before, bytes_after: of all constants.
        names: of products that are nodes no more, which a recipe may keep all the same.
    """

    quantized: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    names: set[str] = field(default_factory=set)

    @property
    def int8_share(self) -> float:
        """Share of the products' multiply-adds that are computed in 8 bits."""
        done = sum(self.quantized.values())
        return done / max(done + sum(self.kept.values()), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return {
            "quantized": len(self.quantized),
            "kept": dict(self.reasons),
            "int8_share_of_macs": round(self.int8_share, 4),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


def insert_qdq(
    model: ir.Model, form: Int8Form, calibration: Calibration, recipe: Recipe, done: QdqReport | None = None
) -> QdqReport:
    """Quantize a lowered float32 model in place.

    Args:
        model: lowered with Gelu as one operator: between a convolution and its GELU there must be one reader.
        form: of `INT8_FORMS`.
        calibration: knows at least `quantized_tensors(model)`.
        recipe: its calibrator, and the names that it keeps in float32.
        done: of the blocks (`int8_blocks`), which are no products any more; what is added to it is returned.

    Raises:
        UsageError: the model is quantized already, or the recipe keeps everything or a name that is no node's.
        ArtifactError: the calibration lacks a tensor.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph):
        raise UsageError("a model that is quantized already", "a float32 model", "quantize the original artifact")
    report = done or QdqReport(bytes_before=constant_bytes(model))
    recipe.check_names([*report.names, *(str(node.name) for node in model.graph)])
    macs, chosen = macs_of(model), []
    for product in products_of(model):
        reason = _why_not(product, form, recipe, macs[product.name])
        if reason:
            report.kept[product.name], report.reasons[product.name] = macs[product.name], reason
        else:
            report.quantized[product.name] = macs[product.name]
            chosen.append(product)
    if not report.quantized:
        raise UsageError("a recipe that keeps every product in float32", "at least one in int8", "keep fewer blocks")
    writer = _Writer(model, form, calibration, recipe)
    if form.plain_before_reshape:
        writer.plain = {product.node: origin_of(product.source) for product in chosen if product.is_reshaped}
    sums = residual_inputs(model) if form.residuals else []
    for product in chosen:
        writer.quantize(product)
    for node, index in sums:
        if not recipe.keeps(str(node.name)):
            writer.quantize_input(node, index)
    remove_unused(model)
    report.bytes_after = constant_bytes(model)
    return report


def _why_not(product: Product, form: Int8Form, recipe: Recipe, macs: int) -> str:
    """Return why a product stays in float32, or an empty string."""
    if recipe.keeps(product.name):
        return "the recipe keeps it"
    if form.float_stem and product.node.op_type == "Conv" and origin_of(product.source).is_graph_input():
        return "it reads the image and writes the residual stream"
    if form.float_without_bias and product.node.op_type == "Conv" and len(product.node.inputs) < 3:
        return "a convolution without a bias, whose scale OpenVINO may lose"
    # Others are none: they have one row where their image is one pixel, as the last stage's smallest one is.
    if macs == product.weight.size and product.node.op_type == "Gemm" and not product.node.outputs[0].is_graph_output():
        return "one row an image: a gate, small and sensitive"
    return ""


def constant_bytes(model: ir.Model) -> int:
    """Return the bytes of all constants."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


@dataclass(frozen=True)
class _Scale:
    """A tensor's quantization: its two constants, and their values."""

    scale: ir.Value
    zero: ir.Value
    step: float
    zero_point: int
    dtype: ir.DataType


class _Writer:
    """Adds the nodes; every tensor is quantized at most once."""

    def __init__(self, model: ir.Model, form: Int8Form, calibration: Calibration, recipe: Recipe) -> None:
        self.model, self.form = model, form
        self.calibration, self.calibrator = calibration, recipe.calibrator or DEFAULT_CALIBRATOR
        self.rest = RESTS[recipe.rest if form.typed_rest else "fp32"]
        self.most = MOST[recipe.weight_bits]
        self.plain: dict[ir.Node, ir.Value] = {}  # product with one weight scale -> its input, which is symmetric
        self.scales: dict[ir.Value, _Scale] = {}  # of computed tensors
        self.bytes: dict[ir.Value, ir.Value] = {}  # float32 tensor -> its 8-bit form
        self.floats: dict[ir.Value, ir.Value] = {}  # 8-bit tensor -> its DequantizeLinear

    def quantize(self, product: Product) -> None:
        """Quantize a product's input, weight and bias, and its result where the form says so."""
        node = product.node
        scale = self.scale_of(product.source)
        node.replace_input_with(0, self.dequantized(product.source))
        bias, bias_user = self.bias_of(node)
        weight, steps = self.weight(product, scale.step, bias)
        node.replace_input_with(1, weight)
        if bias_user is not None:
            node = self.merge_bias(node, bias_user)
        if bias is not None and self.form.int32_bias:
            node.replace_input_with(2, self.bias(node, bias, steps * scale.step))
        output = node.outputs[0]
        if node.op_type == "Conv" and self.form.conv_outputs and not output.is_graph_output():
            users = list(output.uses())
            replacement = self.dequantized(output)
            for use in users:
                use.node.replace_input_with(use.idx, replacement)
            self.bytes[replacement], self.scales[replacement] = self.in_bytes(output), self.scale_of(output)

    def quantize_input(self, node: ir.Node, index: int) -> None:
        """Let one input of a node come from 8 bits."""
        value = node.inputs[index]
        assert value is not None
        node.replace_input_with(index, self.dequantized(value))

    def dequantized(self, value: ir.Value) -> ir.Value:
        """Return the float32 value of a tensor's 8-bit form."""
        source = self.in_bytes(value)
        if source not in self.floats:
            scale = self.scale_of(value)
            node = ir.node("DequantizeLinear", [source, scale.scale, scale.zero], name=f"{value.name}/DequantizeLinear")
            self.floats[source] = _typed(node, value, ir.DataType.FLOAT)
            self.insert_after(source, [node])
        return self.floats[source]

    def in_bytes(self, value: ir.Value) -> ir.Value:
        """Return the 8-bit form of a tensor: quantized where it was computed, then moved as the tensor is."""
        if value not in self.bytes:
            producer = value.producer()
            if origin_of(value) is value:
                self.quantize_tensor(value)
            elif producer is not None and is_shift_convolution(producer):
                self.shift_bytes(producer, moved_values(producer)[0])
            elif producer is not None:
                self.move_bytes(producer, moved_values(producer))
        return self.bytes[value]

    def quantize_tensor(self, value: ir.Value) -> None:
        """Add the QuantizeLinear of a tensor that was computed."""
        scale = self.scale_of(value)
        node = ir.node("QuantizeLinear", [value, scale.scale, scale.zero], name=f"{value.name}/QuantizeLinear")
        self.bytes[value] = _typed(node, value, scale.dtype)
        self.insert_after(value, [node])

    def move_bytes(self, node: ir.Node, sources: Sequence[ir.Value]) -> None:
        """Add a copy of a moving node for the 8-bit form of its input."""
        inputs = [self.in_bytes(v) if v is not None and v in sources else v for v in node.inputs]
        scale = self.scale_of(sources[0])
        if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
            # Padded values must mean zero. TensorRT takes no 8-bit constant here, and needs none.
            inputs = [*inputs[:2], scale.zero] if scale.zero_point else inputs[:2]
        copy = ir.node(
            node.op_type,
            inputs,
            node.attributes,
            domain=node.domain,
            num_outputs=len(node.outputs),
            name=f"{node.name}/8bit",
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type, new.shape = f"{old.name}/8bit", ir.TensorType(scale.dtype), old.shape
            self.bytes[old] = new
        self.model.graph.insert_after(node, [copy])

    def shift_bytes(self, node: ir.Node, source: ir.Value) -> None:
        """Shift by the one-hot convolution on 8 bits: weights of exactly 1, and the same scale behind as before."""
        weight = array_of(node.inputs[1])
        assert weight is not None
        scale = self.scale_of(source)
        taps = ir.node(
            "DequantizeLinear",
            [
                constant(self.model, f"{node.inputs[1].name}/int8", weight.astype(np.int8)),  # type: ignore[union-attr]
                constant(self.model, "one_float32", np.array(1, np.float32)),
                constant(self.model, f"{node.name}/zero", np.array(0, np.int8)),
            ],
            name=f"{node.name}/weight/DequantizeLinear",
        )
        ones = _typed(taps, node.inputs[1], ir.DataType.FLOAT)  # type: ignore[arg-type]
        copy = ir.node("Conv", [self.dequantized(source), ones], node.attributes, name=f"{node.name}/moved")
        old = node.outputs[0]
        back = ir.node(
            "QuantizeLinear", [_typed(copy, old, ir.DataType.FLOAT), scale.scale, scale.zero], name=f"{node.name}/bytes"
        )
        self.bytes[old] = _typed(back, old, scale.dtype)
        self.model.graph.insert_after(node, [taps, copy, back])

    def scale_of(self, value: ir.Value) -> _Scale:
        """Return the scale and zero point of the tensor that a value is or moves."""
        origin = origin_of(value)
        if origin not in self.scales:
            symmetric = self.form.activations == "int8" or origin in self.plain.values()
            dtype = ir.DataType.INT8 if symmetric else ir.DataType.UINT8
            low, high = self.calibration.range_of(str(origin.name), self.calibrator, symmetric=symmetric)
            if symmetric:
                step, zero = float(as_scale(np.asarray((high - low) / 254), self.rest)), 0
            else:
                scale = uint8_scale(low, high, self.rest)
                step, zero = scale.step, scale.zero
            self.scales[origin] = _Scale(
                constant(self.model, f"{origin.name}/scale", np.asarray(step, np.float32)),
                constant(self.model, f"{origin.name}/zero_point", np.asarray(zero, dtype.numpy())),
                step,
                zero,
                dtype,
            )
        return self.scales[origin]

    def weight(self, product: Product, input_step: float, bias: np.ndarray | None) -> tuple[ir.Value, np.ndarray]:
        """Return the dequantized weight and the steps of its output channels."""
        source, axis = product.node.inputs[1], product.channel_axis
        assert source is not None
        array = product.weight
        bias = bias if self.form.int32_bias else None
        quantized, steps = quantized_weight(array, axis, bias, input_step, self.rest, self.most)
        if product.node in self.plain:
            flat, steps = quantized_weight(array.reshape(1, -1), 0, None, input_step, self.rest, self.most)
            quantized, steps, axis = flat.reshape(array.shape), steps[0], 0
        node = ir.node(
            "DequantizeLinear",
            [
                constant(self.model, f"{source.name}/int8", quantized),
                constant(self.model, f"{source.name}/scale", steps),
                # Of its own: ONNX Runtime replaces it with the weight where 8-bit sums could saturate, and only once.
                constant(self.model, f"{source.name}/zeros", np.zeros(steps.shape, np.int8)),
            ],
            {"axis": axis} if steps.ndim else {},
            name=f"{source.name}/DequantizeLinear",
        )
        self.model.graph.insert_before(product.node, [node])
        return _typed(node, source, ir.DataType.FLOAT), steps

    def bias(self, node: ir.Node, bias: np.ndarray, steps: np.ndarray) -> ir.Value:
        """Return the dequantized int32 bias."""
        steps = steps.astype(np.float32)
        name = f"{node.name}/bias"
        dequantize = ir.node(
            "DequantizeLinear",
            [
                constant(self.model, f"{name}/int32", np.rint(bias.astype(np.float64) / steps).astype(np.int32)),
                constant(self.model, f"{name}/scale", steps),
                constant(self.model, f"zeros_int32_{len(steps)}", np.zeros(len(steps), np.int32)),
            ],
            {"axis": 0},
            name=f"{name}/DequantizeLinear",
        )
        dequantize.outputs[0].name = f"{dequantize.name}:0"
        dequantize.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self.model.graph.insert_before(node, [dequantize])
        return dequantize.outputs[0]

    def bias_of(self, node: ir.Node) -> tuple[np.ndarray | None, ir.Node | None]:
        """Return a product's bias, and the Add that applies it where that will be merged into a Gemm."""
        if node.op_type != "MatMul":
            return (array_of(node.inputs[2]) if len(node.inputs) > 2 else None), None
        uses = list(node.outputs[0].uses())
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if not self.form.gemm or len(uses) != 1 or uses[0].node.op_type != "Add" or shape is None or len(shape) != 2:
            return None, None
        bias = array_of(uses[0].node.inputs[1 - uses[0].idx])
        return (bias, uses[0].node) if bias is not None and bias.ndim == 1 else (None, None)

    def merge_bias(self, node: ir.Node, add: ir.Node) -> ir.Node:
        """Replace MatMul and Add by a Gemm, which takes over the Add's result."""
        bias = next(value for value in add.inputs if value is not node.outputs[0])
        gemm = ir.node("Gemm", [*node.inputs, bias], name=node.name)
        output = add.outputs[0]
        gemm.outputs[0].type, gemm.outputs[0].shape = output.type, output.shape
        ir.convenience.replace_nodes_and_values(self.model.graph, add, [node, add], [gemm], [output], [gemm.outputs[0]])
        return gemm

    def insert_after(self, value: ir.Value, nodes: list[ir.Node]) -> None:
        """Insert nodes behind the one that makes a value, or first for an input."""
        producer = value.producer()
        if producer is None:
            self.model.graph.insert_before(self.model.graph[0], nodes)
        else:
            self.model.graph.insert_after(producer, nodes)


def _typed(node: ir.Node, source: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Return the node's output, of the given type and the source's shape."""
    output = node.outputs[0]
    output.name, output.type, output.shape = f"{node.name}:0", ir.TensorType(dtype), source.shape
    return output
