"""Where Q and DQ stand for each target, what they hold, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibration_inputs import run, sqnr_db
from tiny import tiny, tiny_asmlp

from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.export.lower import TARGETS as TARGETS_OF_EXPORT
from mlpdeploy.export.lower import lower
from mlpdeploy.export.passes.rewrite import array_of
from mlpdeploy.export.trace import ExportShape, onnx_from_model
from mlpdeploy.models.statistics import model_statistics
from mlpdeploy.quant.calibration import Calibration
from mlpdeploy.quant.macs import macs_of
from mlpdeploy.quant.products import is_shift_convolution, products_of
from mlpdeploy.quant.qdq import INT8_FORMS, insert_qdq
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.quant.scales import quantized_weight

Lowered = Callable[..., ir.Model]
INT8 = Recipe("int8")
FP32 = np.dtype(np.float32)
TARGETS = ("cpu", "openvino", "tensorrt")
FAMILIES = ("asmlp", "vip", "cyclemlp")
# Signal over noise of the tiny models with random weights; a wrong scale, zero point or channel costs 10 dB and more.
LEAST_DB = {"asmlp": 22.0, "vip": 28.0, "cyclemlp": 28.0}


def producer(value: ir.Value | None) -> ir.Node:
    assert value is not None
    node = value.producer()
    assert node is not None
    return node


def is_int8(node: ir.Node) -> bool:
    """Whether a DequantizeLinear has a constant of int8."""
    values = array_of(node.inputs[0])
    return values is not None and values.dtype == np.int8


def quantized(lowered: Lowered, calibration: Calibration, family: str, target: str, recipe: Recipe = INT8) -> ir.Model:
    # ONNX Runtime has no plugin: TensorRT's other form of the shift is run in its place.
    model = lowered(family, target, "slice" if target == "tensorrt" else None)
    insert_qdq(model, INT8_FORMS[target], calibration, recipe)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_product_reads_8_bits(
    lowered: Lowered, calibrations: dict[str, Calibration], family: str, target: str
) -> None:
    model, form = lowered(family, target), INT8_FORMS[target]
    before = {str(product.name): product for product in products_of(model)}
    axes = {name: product.channel_axis for name, product in before.items()}
    channels = {name: product.weight.shape[product.channel_axis] for name, product in before.items()}
    reshaped = {name: product.is_reshaped for name, product in before.items()}
    report = insert_qdq(model, form, calibrations[family], INT8)
    assert set(report.quantized) | set(report.kept) == set(before)
    # The stem is a larger part here than in a published model.
    assert report.int8_share > (0.7 if family == "cyclemlp" else 0.85)
    assert report.bytes_after < 0.45 * report.bytes_before
    nodes = {str(node.name): node for node in model.graph}
    zeros_of = [node.inputs[2] for node in nodes.values() if node.op_type == "DequantizeLinear" and is_int8(node)]
    assert len(set(zeros_of)) == len(zeros_of)  # ONNX Runtime replaces each once on processors without VNNI
    for name in report.quantized:
        node = nodes[name]
        activation, weight = producer(node.inputs[0]), producer(node.inputs[1])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        values, scales, zeros = (array_of(value) for value in weight.inputs)
        assert values is not None and scales is not None and zeros is not None
        assert values.dtype == zeros.dtype == np.int8
        assert values.min() >= -127
        assert not zeros.any()
        plain = form.plain_before_reshape and reshaped[name]
        assert scales.shape == zeros.shape == (() if plain else (channels[name],))
        assert plain or weight.attributes.get_int("axis", -1) == axes[name]
        step, zero = (array_of(value) for value in activation.inputs[1:])
        assert step is not None and zero is not None
        assert step.shape == zero.shape == ()
        symmetric = form.activations == "int8" or plain
        assert zero.dtype == (np.int8 if symmetric else np.uint8)
        assert not symmetric or zero == 0
    for name in report.kept:
        source = nodes[name].inputs[0]
        assert source is not None
        assert source.is_graph_input() or producer(source).op_type != "DequantizeLinear"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", TARGETS)
def test_result(lowered: Lowered, calibrations: dict[str, Calibration], family: str, target: str) -> None:
    wanted = run(lowered(family))
    model = quantized(lowered, calibrations[family], family, target)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert sqnr_db(wanted, run(model)) > LEAST_DB[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", TARGETS)
def test_no_tensor_is_quantized_twice(
    lowered: Lowered, calibrations: dict[str, Calibration], family: str, target: str
) -> None:
    model = lowered(family, target)
    insert_qdq(model, INT8_FORMS[target], calibrations[family], INT8)
    sources = Counter(node.inputs[0] for node in model.graph if node.op_type == "QuantizeLinear")
    assert set(sources.values()) == {1}
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            assert producer(node.inputs[0]).op_type != "DequantizeLinear" if node.inputs[0].producer() else True  # type: ignore[union-attr]


def test_the_plugin_shifts_int8(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    model = lowered("asmlp", "tensorrt")
    insert_qdq(model, INT8_FORMS["tensorrt"], calibrations["asmlp"], INT8)
    shifts = [node for node in model.graph if node.op_type == "AxialShift"]
    assert len(shifts) == 2
    for node in shifts:
        assert producer(node.inputs[0]).op_type == "QuantizeLinear"
        for output in node.outputs:
            assert output.dtype == ir.DataType.INT8
            assert {use.node.op_type for use in output.uses()} == {"DequantizeLinear"}


def test_permutes_move_bytes(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    model = lowered("vip", "tensorrt")
    insert_qdq(model, INT8_FORMS["tensorrt"], calibrations["vip"], INT8)
    moved = [str(n.name) for n in model.graph if n.op_type == "Transpose" and n.outputs[0].dtype == ir.DataType.INT8]
    for block in ("network.0.0", "network.2.0"):
        assert sum(name.startswith(f"{block}.attn/") for name in moved) == 2


def test_the_one_hot_shift_is_exact(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    results = []
    for shift in ("conv", "slice"):
        model = lowered("asmlp", "cpu", shift)
        insert_qdq(model, INT8_FORMS["cpu"], calibrations["asmlp"], INT8)
        assert sum(is_shift_convolution(node) for node in model.graph) == 0
        results.append(run(model))
    np.testing.assert_array_equal(*results)


def test_residual_sums_only_for_tensorrt(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    found = {}
    for target in TARGETS:
        model = lowered("asmlp", target)
        insert_qdq(model, INT8_FORMS[target], calibrations["asmlp"], INT8)
        blocks = [f"layers.{layer}.blocks.0/Add{number}" for layer in (0, 1) for number in ("", "_2")]
        sums = [node for node in model.graph if node.name in blocks]
        found[target] = [[producer(value).op_type for value in node.inputs] for node in sums]
    assert found["tensorrt"] == [["DequantizeLinear", "Conv"]] * 4
    assert found["openvino"][1] == ["Add", "Conv"]
    assert found["cpu"][1] == ["Add", "DequantizeLinear"]


def test_gates_and_stem_stay_in_float(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    report = insert_qdq(lowered("vip"), INT8_FORMS["cpu"], calibrations["vip"], INT8)
    gates = [
        name for name, reason in report.reasons.items() if reason == "one row an image: a gate, small and sensitive"
    ]
    assert len(gates) == 2 * 2
    assert set(report.kept) - set(gates) == {"patch_embed.proj/Conv"}
    assert "head/Gemm" in report.quantized


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_a_stage_whose_smallest_image_is_a_pixel_has_no_gates(
    calibrations: dict[str, Calibration], target: str
) -> None:
    model = onnx_from_model(tiny_asmlp(embed_dim=32), ExportShape(None, True))
    lower(model, TARGETS_OF_EXPORT[target], TARGETS_OF_EXPORT[target].shift)
    report = insert_qdq(model, INT8_FORMS[target], calibrations["asmlp"], INT8)
    assert report.kept == {}
    assert "layers.1.blocks.0.mlp.fc1/Conv" in report.quantized


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_of_open_sizes_on_tokens_the_gates_alone_are_vectors(calibrations: dict[str, Calibration], target: str) -> None:
    model = onnx_from_model(tiny("cyclemlp"), ExportShape(None, True))
    lower(model, TARGETS_OF_EXPORT[target], TARGETS_OF_EXPORT[target].shift)
    report = insert_qdq(model, INT8_FORMS[target], calibrations["cyclemlp"], INT8)
    gates = [name for name, reason in report.reasons.items() if "gate" in reason]
    assert len(gates) == 4
    assert {f"network.2.0.{part}/MatMul" for part in ("attn.proj", "mlp.fc1", "mlp.fc2")} <= {*report.quantized}


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_names_stay_in_float(lowered: Lowered, calibrations: dict[str, Calibration], family: str) -> None:
    block = {"asmlp": "layers.1.blocks.0"}.get(family, "network.2.0")
    model = lowered(family)
    report = insert_qdq(model, INT8_FORMS["cpu"], calibrations[family], Recipe("int8", keep=(block, "head")))
    kept = {name for name, reason in report.reasons.items() if reason == "the recipe keeps it"}
    assert kept == {name for name in {**report.kept, **report.quantized} if name.startswith((f"{block}.", "head"))}
    assert len(kept) > 3
    assert 0.05 < report.int8_share < 0.9
    for node in model.graph:
        if str(node.name) in kept:
            assert array_of(node.inputs[1]).dtype == np.float32  # type: ignore[union-attr]
    assert sqnr_db(run(lowered(family)), run(model)) > LEAST_DB[family]


def test_macs_of_the_tiny_model(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    report = insert_qdq(lowered("asmlp"), INT8_FORMS["cpu"], calibrations["asmlp"], INT8)
    assert sum({**report.quantized, **report.kept}.values()) == model_statistics(tiny("asmlp"), (32, 32), 3).macs


def test_macs_of_the_tiny_cyclemlp(lowered: Lowered) -> None:
    """Of its mixers on planes too, whose moves count for nothing."""
    macs = macs_of(lowered("cyclemlp"))
    assert sum(macs.values()) == model_statistics(tiny("cyclemlp"), (32, 32), 3).macs
    assert macs["network.2.0.attn/WeightedCycleMlp/5_Conv"] == 4 * 4 * 64 * 64
    assert macs["network.2.0.attn/WeightedCycleMlp/11_Gemm"] == 64 * 16


def test_a_convolution_without_a_bias_stays_float32_on_openvino(
    lowered: Lowered, calibrations: dict[str, Calibration]
) -> None:
    report = insert_qdq(lowered("cyclemlp", "openvino"), INT8_FORMS["openvino"], calibrations["cyclemlp"], INT8)
    kept = [name for name, reason in report.reasons.items() if "without a bias" in reason]
    assert kept == [f"network.{stage}.0.attn/WeightedCycleMlp/5_Conv" for stage in (0, 2)]
    assert not [name for name in report.quantized if name.endswith("Gemm") and not name.startswith("head")]


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_bytes_each_time(lowered: Lowered, calibrations: dict[str, Calibration], target: str) -> None:
    first, second = (
        ir.to_proto(quantized(lowered, calibrations["vip"], "vip", target)).SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy", "mse"])
def test_the_calibrator_decides_the_scales(
    lowered: Lowered, calibrations: dict[str, Calibration], calibrator: str
) -> None:
    model = quantized(lowered, calibrations["asmlp"], "asmlp", "cpu", Recipe("int8", calibrator=calibrator))  # type: ignore[arg-type]
    node = next(node for node in model.graph if node.name == "layers.0.blocks.0.mlp/Gelu:0/QuantizeLinear")
    low, high = calibrations["asmlp"].range_of("layers.0.blocks.0.mlp/Gelu:0", calibrator, symmetric=False)  # type: ignore[arg-type]
    assert array_of(node.inputs[1]) == pytest.approx((high - low) / 255)
    assert array_of(node.inputs[2]) == round(-low / (high - low) * 255)


def test_a_symmetric_scale_covers_127_steps_on_each_side(
    lowered: Lowered, calibrations: dict[str, Calibration]
) -> None:
    model = quantized(lowered, calibrations["asmlp"], "asmlp", "tensorrt")
    node = next(node for node in model.graph if node.name == "layers.0.blocks.0.mlp/Gelu:0/QuantizeLinear")
    high = calibrations["asmlp"].range_of("layers.0.blocks.0.mlp/Gelu:0", "mse", symmetric=True)[1]
    assert array_of(node.inputs[1]) == pytest.approx(high / 127, rel=1e-6)
    assert array_of(node.inputs[2]) == np.int8(0)


def test_a_kept_residual_sum_is_not_quantized(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    model = quantized(lowered, calibrations["asmlp"], "asmlp", "tensorrt", Recipe("int8", keep=("layers.0.blocks.0",)))
    for layer, quantizes in ((0, False), (1, True)):
        sums = [node for node in model.graph if node.op_type == "Add" and node.name.startswith(f"layers.{layer}.")]  # type: ignore[union-attr]
        made_by = {producer(value).op_type for node in sums for value in node.inputs}
        assert ("DequantizeLinear" in made_by) is quantizes


def test_an_already_quantized_model(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    model = quantized(lowered, calibrations["vip"], "vip", "cpu")
    with pytest.raises(UsageError, match="quantized already"):
        insert_qdq(model, INT8_FORMS["cpu"], calibrations["vip"], INT8)


def test_a_recipe_that_keeps_everything(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    recipe = Recipe("int8", keep=("layers", "patch_embed", "head"))
    with pytest.raises(UsageError, match="keeps every product"):
        insert_qdq(lowered("asmlp"), INT8_FORMS["cpu"], calibrations["asmlp"], recipe)


def test_a_calibration_that_lacks_a_tensor(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    with pytest.raises(ArtifactError, match="does not know the tensor"):
        insert_qdq(lowered("asmlp"), INT8_FORMS["cpu"], Calibration("model", "data", 16), INT8)


def test_weights_by_channel() -> None:
    weight = np.array([[1.0, -2.54], [0.0, 0.0], [1e-9, 5e-10]], np.float32)
    values, steps = quantized_weight(weight, 0, None, 1.0, FP32)
    np.testing.assert_array_equal(values, [[50, -127], [0, 0], [127, 64]])
    np.testing.assert_allclose(steps, [0.02, 1, 1e-9 / 127], rtol=1e-6)
    across, _ = quantized_weight(weight.T.copy(), 1, None, 1.0, FP32)
    np.testing.assert_array_equal(across, values.T)


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_of_7_bit_weights_fit_into_16_bits(
    lowered: Lowered, calibrations: dict[str, Calibration], family: str
) -> None:
    model = quantized(lowered, calibrations[family], family, "openvino", Recipe("int8", weight_bits=7))
    weights = [array_of(node.inputs[0]) for node in model.graph if node.op_type == "DequantizeLinear" and is_int8(node)]
    assert weights
    largest = max(int(np.abs(weight.astype(int)).max()) for weight in weights if weight is not None)
    assert largest > 32 and 2 * 255 * largest < 2**15
    assert sqnr_db(run(lowered(family)), run(model)) > LEAST_DB[family] - 3


def test_a_bias_always_fits_into_int32() -> None:
    weight = np.full((2, 4), 1e-12, np.float32)
    bias = np.float32([3.0, 0.0])
    _, steps = quantized_weight(weight, 0, bias, 1e-3, FP32)
    stored = np.rint(bias / (steps.astype(np.float64) * 1e-3))
    assert np.abs(stored).max() < 2**31
    assert stored[0] * steps[0] * 1e-3 == pytest.approx(3.0, rel=1e-6)
