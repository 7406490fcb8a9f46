"""Typed half precision: right where it must be, no worse than PyTorch's own, and nothing in float32 in silence."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from half_models import exact, half_proto, images, lowered, magnitudes_of, run, simulated, within_tolerance
from onnx import TensorProto, numpy_helper
from tiny import tiny_asmlp, tiny_vip

from mlpdeploy.errors import UsageError
from mlpdeploy.export.lower import TARGETS
from mlpdeploy.export.passes.lower_axial_shift import ShiftForm
from mlpdeploy.models.build import Model, random_weights
from mlpdeploy.quant.half import HALF_FORMS, half_types, unexpected_float32
from mlpdeploy.quant.half_plan import FP16_MARGIN, FP16_MAX, MOVEMENT
from mlpdeploy.quant.recipe import Recipe

FAMILIES: dict[str, Callable[[], Model]] = {"asmlp": tiny_asmlp, "vip": tiny_vip}
FORMS: list[tuple[str, str, ShiftForm]] = [
    ("asmlp", "cpu", "conv"),
    ("asmlp", "cpu", "slice"),
    ("asmlp", "openvino", "conv"),
    ("asmlp", "tensorrt", "conv"),
    ("asmlp", "tensorrt", "slice"),
    ("asmlp", "tensorrt", "plugin"),
    ("vip", "cpu", "conv"),
    ("vip", "tensorrt", "conv"),
]
RUNS_HERE = [form for form in FORMS if form[2] != "plugin"]
FC1, FC2 = "layers.0.blocks.0.mlp.fc1", "layers.0.blocks.0.mlp.fc2"


@functools.cache
def model_of(family: str, seed: int = 0) -> Model:
    model = FAMILIES[family]()
    random_weights(model, seed)
    return model.eval()


@functools.cache
def _lowered_bytes(family: str, target: str, shift: ShiftForm, seed: int) -> bytes:
    return bytes(ir.to_proto(lowered(model_of(family, seed), target, shift)).SerializeToString())


def graph_of(family: str, target: str, shift: ShiftForm = "conv", seed: int = 0) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(_lowered_bytes(family, target, shift, seed)))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("family", "target", "shift"), RUNS_HERE)
def test_fp16_errs_no_more_than_pytorch(family: str, target: str, shift: ShiftForm, seed: int) -> None:
    model, image = model_of(family, seed), images(seed=seed)
    proto, _ = half_proto(graph_of(family, target, shift, seed), Recipe("fp16"), target)
    for computed in (run(proto, image), run(proto, image, optimize=False), run(simulated(proto, "fp16"), image)):
        assert within_tolerance(computed, model, image, "fp16")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_errs_no_more_than_pytorch(family: str, seed: int) -> None:
    model, image = model_of(family, seed), images(seed=seed)
    proto, _ = half_proto(graph_of(family, "tensorrt", "conv", seed), Recipe("bf16"), "tensorrt")
    assert within_tolerance(run(simulated(proto, "bf16"), image), model, image, "bf16")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("family", "target", "shift"), FORMS)
def test_types_are_right_and_casts_are_needed(family: str, target: str, shift: ShiftForm, precision: str) -> None:
    if HALF_FORMS[target][precision] != "typed":
        pytest.skip(f"{target} takes no typed {precision}")
    graph = graph_of(family, target, shift)
    proto, report = half_proto(graph, Recipe(precision), target)  # type: ignore[arg-type]
    if shift != "plugin":
        onnx.checker.check_model(proto, full_check=True)
    assert unexpected_float32(graph, report) == []
    assert report.refused == {}
    casts = [node for node in proto.graph.node if node.op_type == "Cast"]
    assert report.casts == len(casts) > 0
    assert len({node.input[0] for node in casts}) == len(casts)  # one cast a value
    producers = {name: node for node in proto.graph.node for name in node.output}
    for cast in casts:  # no way from a cast through movements only to a cast back
        source = producers.get(cast.input[0])
        while source is not None and source.op_type in MOVEMENT:
            source = producers.get(source.input[0])
        assert source is None or source.op_type != "Cast", cast.name
    assert 0.97 < report.macs_share < 1
    assert report.weights > 10_000


@pytest.mark.parametrize(("family", "target", "shift"), FORMS)
def test_statistics_are_in_float32(family: str, target: str, shift: ShiftForm) -> None:
    graph = graph_of(family, target, shift)
    half_types(graph, Recipe("fp16"), target)
    counted: dict[str, int] = {}
    for node in graph.graph:
        mean = node.op_type == "MatMul" and str(node.inputs[0].name).startswith("mean_over_")  # type: ignore[union-attr]
        if mean or node.op_type in ("InstanceNormalization", "LayerNormalization", "Softmax", "ReduceMean", "Sum"):
            counted["mean" if mean else node.op_type] = counted.get("mean" if mean else node.op_type, 0) + 1
            assert {value.dtype for value in (node.inputs[0], *node.outputs)} == {ir.DataType.FLOAT}, node.name  # type: ignore[union-attr]
        elif node.op_type in ("Conv", "MatMul", "Gelu", "AxialShift") and not str(node.name).endswith("/affine"):
            assert {value.dtype for value in node.outputs} == {ir.DataType.FLOAT16}, node.name
    norm = "InstanceNormalization" if (family, target) == ("asmlp", "cpu") else "LayerNormalization"
    assert set(counted) == {norm, "ReduceMean"} | ({"mean", "Softmax", "Sum"} if family == "vip" else set())
    assert counted["ReduceMean"] == 1


def test_the_plugin_keeps_its_attributes() -> None:
    before = [dict(node.attributes) for node in graph_of("asmlp", "tensorrt", "plugin").graph if node.domain]
    graph = graph_of("asmlp", "tensorrt", "plugin")
    half_types(graph, Recipe("bf16"), "tensorrt")
    after = [node for node in graph.graph if node.op_type == "AxialShift"]
    assert [{k: v.value for k, v in node.attributes.items()} for node in after] == [
        {k: v.value for k, v in attributes.items()} for attributes in before
    ]
    for node in after:
        assert {value.dtype for value in (*node.inputs, *node.outputs)} == {ir.DataType.BFLOAT16}  # type: ignore[union-attr]


def test_the_same_request_gives_the_same_bytes() -> None:
    one, other = (half_proto(graph_of("vip", "cpu"), Recipe("fp16"), "cpu")[0].SerializeToString() for _ in range(2))
    assert one == other


def test_inputs_and_outputs_may_be_half() -> None:
    proto, report = half_proto(graph_of("asmlp", "cpu"), Recipe("fp16", io="fp16"), "cpu")
    kinds = [value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)]
    assert kinds == [TensorProto.FLOAT16] * 2
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["input", "logits"]
    assert not any("input" in node.input for node in proto.graph.node if node.op_type == "Cast")
    image = images()
    assert within_tolerance(run(proto, image), model_of("asmlp"), image, "fp16")
    wide, _ = half_proto(graph_of("asmlp", "cpu"), Recipe("fp16"), "cpu")
    assert [v.type.tensor_type.elem_type for v in (*wide.graph.input, *wide.graph.output)] == [TensorProto.FLOAT] * 2
    assert report.casts > 0


def test_weights_are_rounded_once_to_nearest_even_and_counted() -> None:
    graph = graph_of("asmlp", "tensorrt")
    weight = graph.graph.initializers[f"{FC1}.folded.weight"]
    array = weight.const_value.numpy().copy()  # type: ignore[union-attr]
    # A tie goes to the even neighbour; one is lost; one is subnormal.
    array.flat[:4] = [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1e-9, 2.0**-16]
    weight.const_value = ir.tensor(array, name=weight.name)
    before = half_types(graph_of("asmlp", "tensorrt"), Recipe("fp16"), "tensorrt")
    proto, report = half_proto(graph, Recipe("fp16"), "tensorrt")
    (tensor,) = [tensor for tensor in proto.graph.initializer if tensor.name == weight.name]
    half = numpy_helper.to_array(tensor)
    assert half.dtype == np.float16
    assert half.flat[:4].tolist() == [1.0, 1 + 2.0**-9, 0.0, 2.0**-16]
    assert report.weights_zero == before.weights_zero + 1
    assert 0 <= report.weights_subnormal - before.weights_subnormal <= 1
    assert report.to_dict()["weights_zero"] == report.weights_zero


def overflowing(largest: float) -> tuple[Model, np.ndarray]:
    """Return a model whose first MLP's hidden weights reach `largest`, its activations more; fc2 takes it back."""
    model = tiny_asmlp()
    with torch.no_grad():
        factor = largest / float(model.get_parameter(f"{FC1}.weight").abs().max())
        model.get_parameter(f"{FC1}.weight").mul_(factor)
        model.get_parameter(f"{FC1}.bias").mul_(factor)
        model.get_parameter(f"{FC2}.weight").mul_(1 / factor)
    return model, images()


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_overflow_is_found_before_it_happens(target: str) -> None:
    model, image = overflowing(4e4)
    wanted = exact(model, image)
    blind, _ = half_proto(lowered(model, target), Recipe("fp16"), target)
    # As a GPU computes it. ONNX Runtime's CPU provider stays in float32 between its casts, and would not show it.
    assert not np.isfinite(run(simulated(blind, "fp16"), image)).all()
    measured = magnitudes_of(lowered(model, target), image)
    assert measured[f"{FC1}/Conv:0"] > FP16_MAX
    graph = lowered(model, target)
    proto, report = half_proto(graph, Recipe("fp16"), target, measured)
    assert {f"{FC1}/Conv", f"{FC2}/Conv"} <= set(report.refused)
    assert all("layers.0.blocks.0.mlp" in name for name in report.refused)
    assert "1/4 of fp16's largest number" in report.refused[f"{FC1}/Conv"]
    assert report.unmeasured == 0
    assert unexpected_float32(graph, report) == []
    # GELU of such a number is the number or zero, so PyTorch's float32 is as good as exact here.
    assert np.abs(run(proto, image) - wanted).max() <= 3e-3 * wanted.std()
    assert np.abs(run(simulated(proto, "fp16"), image) - wanted).max() <= 3e-3 * wanted.std()


def test_a_weight_beyond_the_range_is_found_without_calibration() -> None:
    model, _ = overflowing(1e6)
    proto, report = half_proto(lowered(model, "cpu"), Recipe("fp16"), "cpu")
    assert "is beyond the range of fp16" in report.refused[f"{FC1}/Conv"]
    assert all(np.isfinite(numpy_helper.to_array(t)).all() for t in proto.graph.initializer)
    _, bf16 = half_proto(lowered(model, "tensorrt"), Recipe("bf16"), "tensorrt")
    assert bf16.refused == {}


@pytest.mark.parametrize(
    ("value", "magnitude", "refused"),
    [
        (f"{FC1}/Conv:0", FP16_MAX / FP16_MARGIN, {"layers.0.blocks.0.mlp/Gelu"}),  # x * (erf + 1) is twice its result
        (f"{FC1}/Conv:0", FP16_MAX / FP16_MARGIN / 2, set()),
        # A Gelu's result may be as large as its input.
        (f"{FC1}/Conv:0", FP16_MAX / FP16_MARGIN * 1.01, {f"{FC1}/Conv", "layers.0.blocks.0.mlp/Gelu", f"{FC2}/Conv"}),
        ("layers.0.blocks.0.mlp/Gelu:0", float("inf"), {f"{FC2}/Conv", "layers.0.blocks.0.mlp/Gelu"}),
        ("layers.0.blocks.0.mlp/Gelu:0", float("nan"), {f"{FC2}/Conv", "layers.0.blocks.0.mlp/Gelu"}),
        # Statistics are in float32 anyway; the first product behind them is not.
        ("layers.0.blocks.0.norm2/GroupNorm1/normalize:0", 1e5, {f"{FC1}/Conv"}),
        # A shift as plugin tells no range of its own: it has its input's.
        (
            "layers.0.blocks.0.axial_shift/Gelu:0",
            1e5,
            {f"layers.0.blocks.0.axial_shift.conv2_{i}/Conv" for i in (1, 2)} | {"layers.0.blocks.0.axial_shift/Gelu"},
        ),
    ],
)
def test_which_nodes_a_large_value_keeps_in_float32(value: str, magnitude: float, refused: set[str]) -> None:
    report = half_types(graph_of("asmlp", "tensorrt", "plugin"), Recipe("fp16"), "tensorrt", {value: magnitude})
    assert set(report.refused) == refused
    assert report.unmeasured > 0
    bf16 = half_types(graph_of("asmlp", "tensorrt", "plugin"), Recipe("bf16"), "tensorrt", {value: magnitude})
    assert bf16.refused == {}


def test_kept_names_stay_in_float32() -> None:
    graph = graph_of("asmlp", "cpu")
    proto, report = half_proto(graph, Recipe("fp16", keep=("layers.0.blocks.0", "layers.1.blocks.0.mlp.fc1")), "cpu")
    onnx.checker.check_model(proto, full_check=True)
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    assert types["layers.0.blocks.0.axial_shift.conv1/Conv:0"] == TensorProto.FLOAT
    assert types["layers.1.blocks.0.mlp.fc1/Conv:0"] == TensorProto.FLOAT
    assert types["layers.1.blocks.0.mlp.fc2/Conv:0"] == TensorProto.FLOAT16
    assert report.refused["layers.0.blocks.0/Add"] == "the recipe keeps it"
    assert report.macs_share < 0.7
    assert unexpected_float32(graph, report) == []
    image = images()
    assert np.abs(run(proto, image) - exact(model_of("asmlp"), image)).max() < 1e-2


def test_float32_in_silence_is_told() -> None:
    graph = graph_of("asmlp", "cpu")
    report = half_types(graph, Recipe("fp16", keep=(FC1,)), "cpu")
    assert unexpected_float32(graph, report) == []
    report.refused.clear()
    assert unexpected_float32(graph, report) == [f"{FC1}/Conv"]


def test_a_name_that_is_nobodys_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no node of the model is 'layers\.0\.block\.0'.*layers\.0\.blocks\.0"):
        half_types(graph_of("asmlp", "cpu"), Recipe("fp16", keep=("layers.0.block.0",)), "cpu")


def test_every_target_says_how_it_takes_half_precision() -> None:
    assert set(TARGETS) <= set(HALF_FORMS)
    for target, forms in HALF_FORMS.items():
        assert set(forms) == {"fp16", "bf16"}, target
    for target in ("cpu", "openvino"):
        with pytest.raises(UsageError, match=f"typed bf16 model for {target}"):
            half_types(graph_of("asmlp", "cpu"), Recipe("bf16"), target)


def test_onnxruntime_still_has_no_bfloat16() -> None:
    """The reason that `HALF_FORMS` gives; when this fails, the table can say more."""
    proto, _ = half_proto(graph_of("asmlp", "tensorrt"), Recipe("bf16"), "tensorrt")
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        run(proto, images())


@pytest.mark.parametrize("opset", [18, 22])
def test_bf16_is_of_an_opset_whose_convolutions_know_it(opset: int) -> None:
    graph = lowered(tiny_asmlp(), "tensorrt", opset=opset)
    proto, _ = half_proto(graph, Recipe("bf16"), "tensorrt")
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 22)]
    for op in {node.op_type for node in proto.graph.node}:
        old, new = (onnx.defs.get_schema(op, version) for version in (max(opset, 20 if op == "Gelu" else 0), 22))
        assert set(new.attributes) - set(old.attributes) <= {"saturate"}
        assert [i.name for i in old.inputs] == [i.name for i in new.inputs]
        allowed = {kind for constraint in new.type_constraints for kind in constraint.allowed_type_strs}
        assert "tensor(bfloat16)" in allowed, op


def test_sizes_that_stay_open() -> None:
    from mlpdeploy.export.lower import lower
    from mlpdeploy.export.trace import ExportShape, onnx_from_model

    model = tiny_asmlp(features=True)
    graph = onnx_from_model(model, ExportShape(None, dynamic_size=True))
    lower(graph, TARGETS["cpu"], "conv")
    proto, report = half_proto(graph, Recipe("fp16"), "cpu")
    onnx.checker.check_model(proto, full_check=True)
    assert unexpected_float32(graph, report) == []
    assert report.macs_share > 0.97
    image = images(2, size=64)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(image))[0].numpy()
    assert np.abs(run(proto, image) - wanted).max() < 2e-2
