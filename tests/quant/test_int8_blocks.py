"""8 bits inside of whole blocks: where, with which scales, how exact, and the same with and without kernels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from calibration_inputs import IMAGES, run, sqnr_db
from tiny import tiny

import mlpdeploy
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import read_manifest
from mlpdeploy.ops import axial_shift_block, cycle_block, permutator_block
from mlpdeploy.ops.downsample import INT8_NAME as DOWNSAMPLE
from mlpdeploy.ops.downsample import MERGING_INT8_NAME as MERGING
from mlpdeploy.ops.patch_embed import NAME, NORMALIZED_NAME
from mlpdeploy.plugins import cpu
from mlpdeploy.quant.calibration import Calibration
from mlpdeploy.quant.int8_blocks import int8_blocks, quantize_int8
from mlpdeploy.quant.qdq import DEFAULT_CALIBRATOR, INT8_FORMS, insert_qdq
from mlpdeploy.quant.quantize import quantize_artifact
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.quant.scales import uint8_scale

INT8 = Recipe("int8")
ASMLP, VIP, CYCLE = axial_shift_block.INT8_NAME, permutator_block.INT8_NAME, cycle_block.INT8_NAME
Lowered = Callable[..., ir.Model]


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.domain or node.op_type == "Transpose"]


def blocks_of(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in (ASMLP, VIP, CYCLE)]


def test_blocks_follow_each_other_on_rows(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    model = lowered("asmlp", blocks=True)
    report = int8_blocks(model, calibrations["asmlp"], INT8)
    count = len(blocks_of(model))
    assert operators(model) == ["Transpose", *[ASMLP, MERGING] * (count - 1), ASMLP, "Transpose"]
    assert len(report.quantized) == 2 * count - 1 and not report.kept
    for family, operator in (("vip", VIP), ("cyclemlp", CYCLE)):
        model = lowered(family, blocks=True)
        report = int8_blocks(model, calibrations[family], INT8)
        assert operators(model) == ["Transpose", operator, DOWNSAMPLE, operator]
        assert list(report.quantized) == ["network.0.0/Add_2/block", "network.1.proj/Conv", "network.2.0/Add_2/block"]


@pytest.mark.parametrize("family", ["asmlp", "vip", "cyclemlp"])
def test_more_exact_than_operators_with_results_in_8_bits(
    family: str, lowered: Lowered, calibrations: dict[str, Calibration]
) -> None:
    """The functions, in ONNX Runtime; what convolutions write is not quantized here."""
    wanted = run(lowered(family))
    model = lowered(family, blocks=True)
    done = int8_blocks(model, calibrations[family], INT8)
    report = insert_qdq(model, INT8_FORMS["cpu"], calibrations[family], INT8, done)
    found = sqnr_db(wanted, run(model))
    plain = lowered(family)
    insert_qdq(plain, INT8_FORMS["cpu"], calibrations[family], INT8)
    assert 30 < found < 60, found
    assert found > sqnr_db(wanted, run(plain)) - (0 if family == "asmlp" else 1)
    assert report.int8_share > (0.75 if family == "cyclemlp" else 0.85)  # its first convolution is 7x7


def test_the_scales_are_those_of_the_calibration(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    """Of what the first norm of a block makes, and of its hidden layer."""
    plain, model = lowered("asmlp"), lowered("asmlp", blocks=True)
    int8_blocks(model, calibrations["asmlp"], INT8)
    block = blocks_of(model)[0]
    nodes = {str(node.name): node for node in plain.graph}
    sources = {
        "1": nodes["layers.0.blocks.0.axial_shift.conv1/Conv"].inputs[0],
        "5": nodes["layers.0.blocks.0.mlp.fc2/Conv"].inputs[0],
    }
    for name, source in sources.items():
        low, high = calibrations["asmlp"].range_of(str(source.name), DEFAULT_CALIBRATOR, symmetric=False)
        wanted = uint8_scale(low, high)
        assert block.attributes.get_float(f"step_{name}") == pytest.approx(wanted.step)
        assert block.attributes.get_int(f"zero_{name}") == wanted.zero


@pytest.mark.parametrize(("family", "mixer"), [("vip", "WeightedPermuteMlp"), ("cyclemlp", "WeightedCycleMlp")])
def test_the_scales_of_blocks_on_tokens(
    family: str, mixer: str, lowered: Lowered, calibrations: dict[str, Calibration]
) -> None:
    model = lowered(family, blocks=True)
    int8_blocks(model, calibrations[family], INT8)
    block = blocks_of(model)[0]
    sources = {
        "n": "network.0.0.norm1/LayerNormalization:0",
        "p": f"network.0.0.attn/{mixer}/mixed:0",
        "1": "network.0.0.norm2/LayerNormalization:0",
        "2": "network.0.0.mlp/Gelu:0",
    }
    for name, source in sources.items():
        low, high = calibrations[family].range_of(source, DEFAULT_CALIBRATOR, symmetric=False)
        wanted = uint8_scale(low, high)
        assert block.attributes.get_float(f"step_{name}") == pytest.approx(wanted.step), name
        assert block.attributes.get_int(f"zero_{name}") == wanted.zero, name
    between = next(node for node in model.graph if node.op_type == DOWNSAMPLE)
    wanted = uint8_scale(*calibrations[family].range_of("network.0.0/Add_2:0", DEFAULT_CALIBRATOR, symmetric=False))
    assert between.attributes.get_float("step_x") == pytest.approx(wanted.step)
    assert between.attributes.get_int("zero_x") == wanted.zero


@pytest.mark.parametrize("family", ["asmlp", "vip", "cyclemlp"])
def test_the_image_is_read_to_rows_in_float32(
    family: str, lowered: Lowered, calibrations: dict[str, Calibration]
) -> None:
    model = lowered(family, blocks=True)
    int8_blocks(model, calibrations[family], INT8)
    before = run(model)
    model = lowered(family, blocks=True)
    report = quantize_int8(model, "cpu", calibrations[family], INT8)
    first = next(iter(model.graph))
    assert first.op_type == (NORMALIZED_NAME if family == "asmlp" else NAME)
    assert str(first.name) in report.kept
    assert "Transpose" not in operators(model)[: len(blocks_of(model))]
    assert sqnr_db(before, run(model)) > 35  # the last product is in 8 bits too
    for blocks in ({"target": "openvino"}, {}):  # without blocks nothing wants rows
        model = lowered(family, **blocks)
        quantize_int8(model, blocks.get("target", "cpu"), calibrations[family], INT8)
        assert not {NAME, NORMALIZED_NAME} & {*operators(model)}


def test_an_image_that_is_quantized_is_not_read_by_ours(
    lowered: Lowered, calibrations: dict[str, Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    form = dataclasses.replace(INT8_FORMS["cpu"], float_stem=False)
    monkeypatch.setitem(INT8_FORMS, "cpu", form)
    model = lowered("vip", blocks=True)
    quantize_int8(model, "cpu", calibrations["vip"], INT8)
    assert operators(model)[0] == "Transpose"


@pytest.mark.parametrize("keep", ["layers.0.blocks.0", "layers.0.blocks.0.mlp.fc1/Conv"])
def test_a_block_with_a_kept_product_stays_float32(
    keep: str, lowered: Lowered, calibrations: dict[str, Calibration]
) -> None:
    model, recipe = lowered("asmlp", blocks=True), Recipe("int8", keep=(keep,))
    report = int8_blocks(model, calibrations["asmlp"], recipe)
    assert operators(model)[:3] == ["AxialShiftBlock", "Transpose", MERGING]
    insert_qdq(model, INT8_FORMS["cpu"], calibrations["asmlp"], recipe, report)
    assert report.reasons["layers.0.blocks.0/Add_2/block"] == "the recipe keeps it"
    assert sqnr_db(run(lowered("asmlp")), run(model)) > 30


def test_names_and_ranges_that_are_not_there(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    recipe = Recipe("int8", keep=("layers.0.block",))
    model = lowered("asmlp", blocks=True)
    done = int8_blocks(model, calibrations["asmlp"], recipe)
    with pytest.raises(UsageError, match=r"no node of the model is 'layers\.0\.block'"):
        insert_qdq(model, INT8_FORMS["cpu"], calibrations["asmlp"], recipe, done)
    with pytest.raises(ArtifactError, match="does not know the tensor"):
        int8_blocks(lowered("asmlp", blocks=True), dataclasses.replace(calibrations["asmlp"], tensors={}), INT8)


def test_models_without_blocks_are_left_to_operators(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    model = lowered("asmlp")
    before = operators(model)
    assert not int8_blocks(model, calibrations["asmlp"], INT8).quantized
    assert operators(model) == before


@pytest.fixture(scope="module", params=["asmlp", "vip", "cyclemlp"])
def in_int8(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two stages in INT8, verified; do not change it."""
    folder = tmp_path_factory.mktemp("int8")
    np.save(folder / "images.npy", IMAGES)
    export_model(tiny(request.param), folder / "float32", verify=False)
    quantize_artifact(folder / "float32", folder / "int8", INT8, images=folder / "images.npy", targets=("cpu",))
    return folder / "int8"


def test_kernels_compute_what_the_functions_do(in_int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_manifest(in_int8).verification["passed"]
    library = cpu.ensure_cpu_library()
    if library is None or cpu.kernels_of(library, "int8") is None:
        pytest.skip("no kernels for 8 bits on this processor")
    with mlpdeploy.load(in_int8) as session:
        assert session.kernels in cpu.INT8_SETS
        fast = session.run({"input": IMAGES})["logits"]
    monkeypatch.setenv(cpu.SWITCH_VARIABLE, "0")
    with mlpdeploy.load(in_int8) as session:
        assert session.kernels == ""
        plain = session.run({"input": IMAGES})["logits"]
    # A float's last bit decides which way some operands are rounded; what follows from it is as large as INT8's noise.
    assert np.abs(fast - plain).max() / plain.std() < 0.1


def test_the_manifest_says_that_the_file_has_blocks(in_int8: Path) -> None:
    """Which is how a session finds out, without reading the file, that kernels have something to do."""
    passes = json.loads((in_int8 / "manifest.json").read_text())["passes"]
    assert any(report["name"].startswith("form_") and report["changed"] for report in passes)
