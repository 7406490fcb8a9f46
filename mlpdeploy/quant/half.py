"""Half precision as types in the graph: weights converted once, a Cast wherever two types meet, and no other.

Precision lives in the file, so every runtime computes the same thing, and no builder flag can silently be ignored.
Which nodes stay in float32 is decided in `half_plan`. A value has the type of the node that makes it; where another
type is wanted, one Cast follows that node, however many nodes want it.

A model that is partly in int8 may be given: its scales, and what its DequantizeLinear nodes return, then have the type.

bfloat16 has float32's range and eight significant bits: nothing overflows, every rounding is eight times coarser than
fp16's. ONNX allows it in convolutions from opset 22 on, so a typed bf16 file is of that opset at least; between opset
18 and 22 the operators used here differ in nothing but the types that they allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from mlpdeploy.errors import UsageError
from mlpdeploy.export.passes.rewrite import PassReport, array_of, constant, opset_of
from mlpdeploy.quant.half_plan import NO_NUMBERS, float32_by_design, is_float, is_movement, plan_half
from mlpdeploy.quant.macs import macs_of
from mlpdeploy.quant.recipe import Recipe

HalfForm = Literal["typed", "hint", "blocks"]

# How each target is given half precision: `typed`, the file's values have the type; `hint`, the file stays float32 and
# the session asks the runtime for the manifest's precision; `blocks`, the products inside of whole blocks have it.
HALF_FORMS: dict[str, dict[str, HalfForm]] = {
    "cpu": {
        "fp16": "typed",
        "bf16": "blocks",
    },  # ONNX Runtime's CPU provider has no bfloat16 operators; ours are blocks
    # bf16 as a hint is OpenVINO's own way. fp16 as a hint would be taken for bf16 on processors without fp16
    # arithmetic, which are most; a typed file is half as large, and the session has it computed in float32 there.
    "openvino": {"fp16": "typed", "bf16": "hint"},
    "tensorrt": {"fp16": "typed", "bf16": "typed"},
    "tensorrt-rtx": {"fp16": "typed", "bf16": "typed"},
}
DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_SMALLEST_NORMAL = {"fp16": 2.0**-14, "bf16": 2.0**-126}
_BF16_OPSET = 22
_HALF_SCALES_OPSET = 19


@dataclass
class HalfReport(PassReport):
    """What became of a model. `changed` names the nodes in half precision, `refused` those that had to stay in float32.

    Attributes:
        by_design: number of nodes that stay in float32 in every model: norms, softmax, reductions, expanded Gelus.
        casts: number of Cast nodes.
        macs_share: part of the multiply-adds in half precision, 0 to 1; of those that are not in int8.
        weights: number of weights in half precision.
        weights_zero: weights that were not zero and are now: smaller than half of the type's smallest number.
        weights_subnormal: weights with less than the type's precision, because they are below its normal range.
        unmeasured: nodes in half precision whose range nobody measured, where ranges were given.
    """

    by_design: int = 0
    casts: int = 0
    macs_share: float = 0.0
    weights: int = 0
    weights_zero: int = 0
    weights_subnormal: int = 0
    unmeasured: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        names = ("by_design", "casts", "macs_share", "weights", "weights_zero", "weights_subnormal", "unmeasured")
        return {**super().to_dict(), **{name: getattr(self, name) for name in names}}


def half_types(
    model: ir.Model, recipe: Recipe, target: str, magnitudes: Mapping[str, float] | None = None
) -> HalfReport:
    """Rewrite a lowered float32 model in place to typed fp16 or bf16.

    Args:
        model: lowered; products that are in int8 stay there, if their scales are numbers of the type.
        recipe: of precision fp16 or bf16; names in `keep` and the type of inputs and outputs are taken from it.
        target: whom the model was lowered for.
        magnitudes: {tensor name: largest absolute value on calibration images}. Nodes with a value above 1/4 of fp16's
            largest number stay in float32. None: no such analysis; only weights beyond the range are found.

    Raises:
        UsageError: the target takes no typed model of this precision, or a kept name is no node's.
    """
    if HALF_FORMS[target][recipe.precision] != "typed":
        raise UsageError(
            f"a typed {recipe.precision} model for {target}", fix="its operators stay float32; see HALF_FORMS"
        )
    recipe.check_names(str(node.name) for node in model.graph)
    fill_types(model)
    macs = macs_of(model)
    plan = plan_half(model, recipe, magnitudes)
    report = HalfReport(f"half_types({recipe.precision})", refused=plan.pinned, unmeasured=len(plan.unmeasured))
    scaled = any(node.op_type == "QuantizeLinear" for node in model.graph)
    oldest = _BF16_OPSET if recipe.precision == "bf16" else _HALF_SCALES_OPSET if scaled else opset_of(model)
    model.graph.opset_imports[""] = max(opset_of(model), oldest)
    report.by_design = plan.by_design
    _Typing(model, recipe, plan.float32, report).rewrite()
    total = sum(macs.values())
    report.macs_share = sum(macs.get(name, 0) for name in report.changed) / total if total else 0.0
    return report


def unexpected_float32(model: ir.Model, report: PassReport) -> list[str]:
    """Return the names of nodes that compute in float32 though neither the design nor the report says so.

    An empty list is what makes "this file is fp16" true.
    """
    by_design = float32_by_design(model)
    return [
        str(node.name)
        for node in model.graph
        if node.op_type not in NO_NUMBERS | {"Cast"}
        and any(value.dtype == ir.DataType.FLOAT for value in [*node.inputs, *node.outputs] if value is not None)
        and not (node in by_design or is_movement(node) or str(node.name) in report.refused)
    ]


def fill_types(model: ir.Model) -> None:
    """Give every value its type: nodes that a pass made may lack it."""
    for node in model.graph:
        source = next((value for value in node.inputs if value is not None), None)
        for output in node.outputs:
            if output.dtype is None:
                known = source.dtype if source is not None and node.op_type not in NO_NUMBERS else None
                output.type = ir.TensorType(known or ir.DataType.INT64)


class _Typing:
    """Gives every value its type, and puts a Cast where a node wants another."""

    def __init__(self, model: ir.Model, recipe: Recipe, float32: set[ir.Node], report: HalfReport) -> None:
        self.model, self.recipe, self.float32, self.report = model, recipe, float32, report
        self.half = DTYPES[recipe.precision]
        self.casts: dict[ir.Value, ir.Value] = {}
        self.weights: dict[ir.Value, ir.Value] = {}

    def rewrite(self) -> None:
        graph = self.model.graph
        border = self.half if self.recipe.io == "fp16" else ir.DataType.FLOAT
        nodes = [node for node in graph if node.op_type not in NO_NUMBERS]
        for value in graph.inputs:
            if is_float(value):
                value.type = ir.TensorType(border)
        for node in nodes:
            wanted = ir.DataType.FLOAT if node in self.float32 else self.half
            for index, source in enumerate(node.inputs):
                if source is not None and is_float(source):
                    node.replace_input_with(index, self.typed(source, wanted))
            for value in node.outputs:
                if is_float(value):
                    value.type = ir.TensorType(wanted)  # a new one: values may share theirs
            if node not in self.float32:
                self.report.changed.append(str(node.name))
        for index, result in enumerate(graph.outputs):
            if is_float(result) and result.dtype != border:
                graph.outputs[index] = self.border(result, border)
        self.rename_weights()
        self.report.casts = len(self.casts)

    def rename_weights(self) -> None:
        """Give converted constants the name of the float32 ones, where those have no user left."""
        initializers = self.model.graph.initializers
        for value, converted in self.weights.items():
            if not value.uses():
                initializers.pop(str(value.name))
                initializers.pop(str(converted.name))
                converted.name = value.name
                self.model.graph.register_initializer(converted)

    def typed(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """Return the value in the wanted type: itself, its Cast, or its converted constant."""
        if value.dtype == wanted:
            return value
        if array_of(value) is not None:
            if value not in self.weights:
                self.weights[value] = self.converted(value)
            return self.weights[value]
        if value not in self.casts:
            self.casts[value] = self.cast(value, wanted)
        return self.casts[value]

    def converted(self, value: ir.Value) -> ir.Value:
        """Return a float32 constant in half precision, rounded to the nearest, ties to even."""
        array = array_of(value)
        assert array is not None and array.dtype == np.float32, value.name
        half = array.astype(self.half.numpy())
        back = half.astype(np.float32)
        smallest = _SMALLEST_NORMAL[self.recipe.precision]
        self.report.weights += array.size
        self.report.weights_zero += int(((back == 0) & (array != 0)).sum())
        self.report.weights_subnormal += int(((np.abs(back) < smallest) & (back != 0)).sum())
        return constant(self.model, f"{value.name}.{self.recipe.precision}", half)

    def cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        name = {ir.DataType.FLOAT: "fp32"}.get(wanted, self.recipe.precision)
        node = ir.node("Cast", [value], {"to": wanted}, name=f"{value.name}/to_{name}")
        (output,) = node.outputs
        output.name, output.shape, output.type = f"{value.name}.{name}", value.shape, ir.TensorType(wanted)
        producer = value.producer()
        if producer is None:
            self.model.graph.insert_before(self.model.graph[0], node)
        else:
            self.model.graph.insert_after(producer, node)
        return output

    def border(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """Return the output in the wanted type, under the output's name, with the value renamed."""
        output = self.typed(value, wanted)
        name = str(value.name)
        value.name, output.name = f"{name}.{self.recipe.precision}", name
        return output
