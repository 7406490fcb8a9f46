"""INT8 with the rest in half precision: no float32 where it was not meant, and the same scales on both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibration_inputs import IMAGES, SPEC, run, sqnr_db
from tiny import tiny_asmlp
from trt_rtx import build, require_trt_rtx

from mlpdeploy.export.lower import TARGETS, lower
from mlpdeploy.export.passes.lower_axial_shift import ShiftForm
from mlpdeploy.export.passes.rewrite import array_of
from mlpdeploy.export.trace import ExportShape, onnx_from_model
from mlpdeploy.quant.calibration import Calibration, calibrate
from mlpdeploy.quant.data import calibration_images
from mlpdeploy.quant.half import half_types, unexpected_float32
from mlpdeploy.quant.products import products_of, quantized_tensors
from mlpdeploy.quant.qdq import INT8_FORMS, insert_qdq
from mlpdeploy.quant.recipe import Recipe, Rest
from mlpdeploy.quant.scales import as_scale

Lowered = Callable[..., ir.Model]
FAMILIES = ("asmlp", "vip", "cyclemlp")
SHIFTS = ("slice", "conv")  # where a family has no axial shift, one as the other
TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def mixed(
    lowered: Lowered,
    calibration: Calibration,
    family: str,
    rest: Rest,
    magnitudes: dict[str, float] | None = None,
    shift: ShiftForm = "slice",
) -> ir.Model:
    """Return a model for TensorRT with the shift in native operators, which ONNX Runtime can run too."""
    model = lowered(family, "tensorrt", shift)
    insert_qdq(model, INT8_FORMS["tensorrt"], calibration, Recipe("int8", rest=rest))
    if rest != "fp32":
        report = half_types(model, Recipe(rest), "tensorrt", magnitudes)
        assert unexpected_float32(model, report) == []
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("rest", ["fp16", "bf16"])
def test_what_stands_around_a_product(
    lowered: Lowered, calibrations: dict[str, Calibration], family: str, shift: ShiftForm, rest: Rest
) -> None:
    plain = lowered(family, "tensorrt", shift)
    quantized = insert_qdq(plain, INT8_FORMS["tensorrt"], calibrations[family], Recipe("int8")).quantized
    model = mixed(lowered, calibrations[family], family, rest, shift=shift)
    onnx.checker.check_model(
        ir.to_proto(model), full_check=rest == "fp16"
    )  # the checker cannot infer bfloat16's shapes
    found = []
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = node.inputs[1]
            assert scale is not None
            assert scale.dtype == TYPES[rest]
        if node.name in quantized:
            found.append(node.name)
            assert [_maker(value) for value in node.inputs[:2]] == ["DequantizeLinear"] * 2
            assert node.outputs[0].dtype == TYPES[rest]
    assert found == list(quantized)


def _maker(value: ir.Value | None) -> str:
    node = value.producer() if value is not None else None
    return node.op_type if node is not None else ""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shift", SHIFTS)
def test_half_costs_little_beside_int8(
    lowered: Lowered, calibrations: dict[str, Calibration], family: str, shift: ShiftForm
) -> None:
    wanted = run(lowered(family))
    in_float32 = sqnr_db(wanted, run(mixed(lowered, calibrations[family], family, "fp32", shift=shift)))
    in_half = sqnr_db(wanted, run(mixed(lowered, calibrations[family], family, "fp16", shift=shift)))
    assert in_half > in_float32 - 1.5


def test_a_product_near_the_limit_of_fp16_reads_its_weight_in_float32(
    lowered: Lowered, calibrations: dict[str, Calibration]
) -> None:
    plain = lowered("asmlp", "tensorrt", "slice")
    product = next(p for p in products_of(plain) if p.name.endswith("fc1/Conv"))
    magnitudes = calibrations["asmlp"].magnitudes() | {str(product.node.outputs[0].name): 40_000.0}
    model = mixed(lowered, calibrations["asmlp"], "asmlp", "fp16", magnitudes)
    (node,) = [node for node in model.graph if node.name == product.name]
    assert node.outputs[0].dtype == ir.DataType.FLOAT
    weight = node.inputs[1]
    assert weight is not None
    assert _maker(weight) == "DequantizeLinear"
    assert weight.dtype == ir.DataType.FLOAT


@pytest.mark.parametrize("rest", ["fp16", "bf16"])
def test_integers_are_of_the_rounded_scales(lowered: Lowered, calibrations: dict[str, Calibration], rest: Rest) -> None:
    model = mixed(lowered, calibrations["vip"], "vip", rest)
    exact = {str(v.name): array_of(v) for v in lowered("vip", "tensorrt", "slice").graph.initializers.values()}
    seen = 0
    for node in model.graph:
        values = array_of(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        weight = exact.get(str(node.inputs[0].name).removesuffix("/int8")) if values is not None else None
        if values is None or weight is None:
            continue
        steps = array_of(node.inputs[1])
        assert steps is not None
        shape = [1] * weight.ndim
        if steps.ndim:
            shape[node.attributes.get_int("axis", 1)] = -1
        steps = steps.astype(np.float32).reshape(shape)
        # Half a step, and what the largest value lacks where the scale was rounded down: 127 steps of 2^-9 at most.
        assert (np.abs(values * steps - weight) <= (0.5 + 127 * 2.0**-9) * steps + 1e-7).all()
        inner = np.abs(values) < 127
        assert (np.abs(values * steps - weight)[inner] <= (0.5 * steps + 1e-7 + 0 * weight)[inner]).all()
        seen += 1
    assert seen > 5


def test_steps_that_a_type_does_not_have() -> None:
    steps = np.array([0.0, 1e-12, 1 / 3], np.float64)
    np.testing.assert_array_equal(as_scale(steps, np.dtype(np.float32)), np.float32([1, 1e-12, 1 / 3]))
    np.testing.assert_array_equal(as_scale(steps, np.dtype(np.float16)), np.float32([1, 2.0**-24, np.float16(1 / 3)]))


def test_scales_in_half_precision_need_opset_19(saved: Callable[[str, np.ndarray], Path]) -> None:
    model = onnx_from_model(tiny_asmlp(), ExportShape(), 18)
    lower(model, TARGETS["tensorrt"], "slice")
    data = calibration_images(saved("images.npy", IMAGES), None, SPEC, 512)
    calibration = calibrate(model, quantized_tensors(model), data, "model", threads=1)
    wanted = run(model.clone())
    insert_qdq(model, INT8_FORMS["tensorrt"], calibration, Recipe("int8", rest="fp16"))
    half_types(model, Recipe("fp16"), "tensorrt")
    assert model.graph.opset_imports[""] == 19
    onnx.checker.check_model(ir.to_proto(model))
    assert sqnr_db(wanted, run(model)) > 20


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rest", ["fp16", "bf16"])
def test_tensorrt_rtx_builds_it(
    lowered: Lowered, calibrations: dict[str, Calibration], family: str, rest: Rest, tmp_path: Path
) -> None:
    require_trt_rtx()
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(mixed(lowered, calibrations[family], family, rest)), path)
    result = build(path, ("SM89",))
    assert result["built"], result["messages"]
    gates = {"FLOAT"} if family == "vip" else set()
    assert set(result["types"]) == {{"fp16": "HALF", "bf16": "BF16"}[rest]} | gates
