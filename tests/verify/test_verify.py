"""Verify finds seeded faults, and says where."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from calibration_inputs import IMAGES
from onnx import numpy_helper
from tiny import tiny_asmlp, tiny_cyclemlp, tiny_vip

from mlpdeploy.artifact import write_manifest
from mlpdeploy.errors import ArtifactError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import TensorSpec, file_entry, read_manifest
from mlpdeploy.ops.axial_shift import ShiftSpec
from mlpdeploy.quant.quantize import quantize_artifact
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.verify import verify_artifact
from mlpdeploy.verify.inputs import Pool, pools
from mlpdeploy.verify.interface import interface_failures
from mlpdeploy.verify.tolerance import ENOUGH, allowed_error, allowed_rms, rms
from mlpdeploy.verify.values import Reference, value_checks
from mlpdeploy.verify.verify import _reference, describe

CPU = "model.cpu.onnx"


def damage(artifact: Path, change: Callable[[onnx.ModelProto], None], name: str = CPU) -> None:
    """Change an ONNX file and write a manifest that fits it, as a wrong pass would."""
    model = onnx.load(artifact / name)
    change(model)
    onnx.save(model, artifact / name)
    manifest = read_manifest(artifact)
    entry = file_entry(artifact / name, manifest.files[name].role, manifest.files[name].shift)
    write_manifest(artifact, dataclasses.replace(manifest, files={**manifest.files, name: entry}))


def scale_weight(name: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))

    return change


def test_a_right_artifact_passes_and_records_it(artifact: Path) -> None:
    report = verify_artifact(artifact)
    assert report.passed
    assert report.failure() == ""
    assert 0 < report.worst() < 1e-4
    assert read_manifest(artifact).verification["passed"]
    checks = [check["check"] for check in report.files[CPU]["checks"]]
    for part in ("names, axes", "batch 1", "batch 2", "batch 3", "batch 8", "row alone", "equal rows", "top-1"):
        assert any(part in check for check in checks), part


def test_without_record_the_manifest_stays(artifact: Path) -> None:
    before = (artifact / "manifest.json").read_bytes()
    verify_artifact(artifact, record=False)
    assert (artifact / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("weight", "node"),
    [
        ("layers.0.blocks.0.axial_shift.conv2_2.weight", "layers.0.blocks.0/Add"),
        ("layers.1.blocks.0.mlp.fc2.weight", "layers.1.blocks.0/Add"),
        ("patch_embed.proj.weight", "patch_embed.proj/Conv"),
    ],
)
def test_a_wrong_weight_is_found_at_its_node(artifact: Path, weight: str, node: str) -> None:
    """The file for the CPU has whole blocks as nodes."""
    damage(artifact, scale_weight(weight, 1.05))
    report = verify_artifact(artifact)
    assert not report.passed
    assert f"first node that diverges is {node}" in report.failure()
    assert report.files["model.onnx"]["divergence"] is None


@pytest.mark.parametrize(
    ("tiny", "weight", "node"),
    [
        (tiny_vip, "network.0.0.attn.mlp_w.weight", "network.0.0/Add"),
        (tiny_vip, "network.2.0.mlp.fc1.weight.T", "network.2.0/Add"),
        (tiny_vip, "network.1.proj.weight", "network.1.proj/Conv"),
        (tiny_cyclemlp, "network.0.0.attn.sfc_h.weight", "network.0.0/Add"),
        (tiny_cyclemlp, "network.0.0.attn.sfc_w.bias", "network.0.0/Add"),
        (tiny_cyclemlp, "network.2.0.attn.mlp_c.weight", "network.2.0/Add"),
    ],
)
def test_a_wrong_weight_of_a_model_on_tokens_is_found(
    tmp_path: Path, tiny: Callable[[], Any], weight: str, node: str
) -> None:
    export_model(tiny(), tmp_path / "artifact", verify=False)
    damage(tmp_path / "artifact", scale_weight(weight, 1.05))
    report = verify_artifact(tmp_path / "artifact")
    assert not report.passed
    assert f"first node that diverges is {node}" in report.failure()


def test_an_error_just_above_rounding_is_found(artifact: Path) -> None:
    damage(artifact, scale_weight("head.weight", 1 + 1e-4))
    assert not verify_artifact(artifact).passed


@pytest.mark.parametrize(
    ("family", "weight", "node"),
    [
        ("asmlp", "layers.0.blocks.0.mlp.fc1.folded.weight", "layers.0.blocks.0/Add"),
        ("asmlp", "layers.0.downsample.reduction.merged.weight", "layers.0.downsample.reduction/Conv"),
        ("asmlp", "layers.1.blocks.0.mlp.fc2.weight", "layers.1.blocks.0/Add"),
        ("vip", "network.2.0.mlp.fc2.weight.T", "network.2.0/Add"),
    ],
)
def test_a_wrong_scale_is_found_at_its_int8_block(tmp_path: Path, family: str, weight: str, node: str) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    export_model(tiny_asmlp(embed_dim=32) if family == "asmlp" else tiny_vip(), tmp_path / "float32", verify=False)
    given = tmp_path / "images.npy"
    quantize_artifact(tmp_path / "float32", tmp_path / "int8", Recipe("int8"), images=given, verify=False)
    damage(tmp_path / "int8", scale_weight(f"{weight}/scale", 16))
    report = verify_artifact(tmp_path / "int8")
    assert not report.passed
    assert f"first node that diverges is {node}" in report.failure()


@pytest.mark.parametrize(("factor", "passes"), [(1, True), (4, False)])
def test_feature_maps_in_int8(tmp_path: Path, factor: float, passes: bool) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    export_model(tiny_asmlp(embed_dim=32, features=True), tmp_path / "float32", verify=False)
    given = tmp_path / "images.npy"
    quantize_artifact(tmp_path / "float32", tmp_path / "int8", Recipe("int8"), images=given, verify=False)
    damage(tmp_path / "int8", scale_weight("layers.0.blocks.0.mlp.fc2.weight/scale", factor))
    report = verify_artifact(tmp_path / "int8")
    assert report.passed is passes
    checks = [check["check"] for check in report.files[CPU]["checks"]]
    assert any(check.startswith("root mean square of the errors of stage0") for check in checks)


def test_pytorch_checks_no_file_that_it_does_not_run(artifact: Path) -> None:
    damage(artifact, scale_weight("head.weight", 1.05))
    report = verify_artifact(artifact, backend="torch", record=False)
    assert {name: file["backend"] for name, file in report.files.items()} == {"model.onnx": "torch", CPU: "onnxruntime"}
    assert not report.passed


class Known:
    """A session that gives 100 times its input and a little more, and what a test wants for a row alone."""

    backend, device = "onnxruntime", "cpu"
    inputs = (TensorSpec("input", ("batch", 1, 1, 1), "float32", "NCHW"),)

    def __init__(self, off: float = 0.0, alone: float = 0.0) -> None:
        self.off, self.alone = off, alone

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = feeds["input"].reshape(-1, 1)
        own = self.alone if len(rows) == 1 and rows[0, 0] == 3 else 0.0
        return {"logits": 100 * rows + self.off + own}


def failed_checks(session: Known, precision: str) -> list[dict[str, Any]]:
    images = np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1)
    reference = Reference({"logits": 100.0 * images.reshape(8, 1)}, {"logits": 0.0}, {"logits": 0.0})
    checks = value_checks(session, Pool((1, 1), images, 0), reference, precision)  # type: ignore[arg-type]
    return [check for check in checks if not check["passed"]]


def test_one_class_alone_has_the_spread_of_all_images() -> None:
    """One number has no standard deviation, and two may be equal by chance."""
    assert failed_checks(Known(off=50.0), "int8") == []
    assert len(failed_checks(Known(off=150.0), "int8")) == 4  # four batches


def test_a_row_alone_that_is_no_number_is_found() -> None:
    (failed,) = failed_checks(Known(alone=math.nan), "fp32")
    assert failed["check"].startswith("row alone equals row in a batch")
    assert describe(failed) == "NaN or infinite values"


def test_rows_that_depend_on_each_other_are_found(artifact: Path) -> None:
    """A mean over the batch leaves batch 1 right and every other batch wrong."""

    def change(model: onnx.ModelProto) -> None:
        gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
        source = gemm.input[0]
        mean = onnx.helper.make_node("ReduceMax", [source], ["over_rows"], keepdims=1)
        model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "rows_axis"))
        mean.input.append("rows_axis")
        weak = numpy_helper.from_array(np.array(1e-3, np.float32), "weak")
        model.graph.initializer.append(weak)
        scaled = onnx.helper.make_node("Mul", ["over_rows", "weak"], ["leak"])
        own = onnx.helper.make_node("Mul", [source, "weak"], ["own"])
        add = onnx.helper.make_node("Add", [source, "leak"], ["leaky"])
        sub = onnx.helper.make_node("Sub", ["leaky", "own"], ["leaked"])
        at = list(model.graph.node).index(gemm)
        for node in (sub, add, own, scaled, mean):
            model.graph.node.insert(at, node)
        gemm.input[0] = "leaked"

    damage(artifact, change)
    report = verify_artifact(artifact)
    failed = [check["check"] for check in report.files[CPU]["checks"] if not check["passed"]]
    assert any("row alone equals row in a batch" in check for check in failed)
    assert not any("batch 1," in check for check in failed)


def test_another_interface_is_told_before_any_value(artifact: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
        del model.graph.value_info[:]

    damage(artifact, change)
    report = verify_artifact(artifact)
    assert "axis 0 of input input is fixed to 4, the manifest says open" in report.failure()


def test_other_weights_than_the_exported_are_refused(artifact: Path) -> None:
    damage(artifact, scale_weight("head.weight", 2.0), "model.onnx")
    with pytest.raises(ArtifactError, match="weights are not those that were exported"):
        verify_artifact(artifact)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "image"}, "inputs are named"),
        ({"dtype": "float16"}, "is float16"),
        ({"shape": ("batch", 3, 32)}, "3 axes"),
        ({"shape": ("batch", 4, 32, 32)}, "axis 1 of input input is 4, the manifest says 3"),
        ({"shape": (2, 3, 32, 32)}, "axis 0 of input input is fixed to 2, the manifest says open"),
    ],
)
def test_interface_failures(change: dict[str, Any], text: str) -> None:
    wanted = TensorSpec("input", ("batch", 3, 32, 32), "float32", "NCHW")
    assert interface_failures("input", (wanted,), [wanted]) == []
    (failure, *_) = interface_failures("input", (wanted,), [dataclasses.replace(wanted, **change)])
    assert text in failure


def test_a_size_that_the_file_leaves_open_is_an_interface_failure() -> None:
    fixed = TensorSpec("input", (2, 3, 32, 32), "float32", "NCHW")
    found = dataclasses.replace(fixed, shape=("batch", 3, 32, 32))
    (failure,) = interface_failures("input", (fixed,), [found])
    assert failure == "axis 0 of input input is open, the manifest says fixed to 2"


def test_images_of_another_size_where_it_is_open_and_within_the_range_of_an_int8_model(exported: Path) -> None:
    manifest = read_manifest(exported)
    assert [pool.height_width for pool in pools(manifest)] == [(32, 32)]
    spec = dataclasses.replace(manifest.inputs[0], shape=("batch", 3, "8*height", "8*width"))
    both = pools(dataclasses.replace(manifest, inputs=(spec,), quantization={"input_range": [-0.5, 0.25]}))
    assert [pool.height_width for pool in both] == [(32, 32), (32, 24)]
    for pool in both:
        assert pool.images.shape == (8, 3, *pool.height_width)
        assert (pool.images.min(), pool.images.max()) == (-0.5, 0.25)


def test_where_pytorchs_fp16_overflows_an_eighth_of_its_bfloat16_is_the_yardstick(exported: Path) -> None:
    class Loud(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * x.new_tensor(1e5)).flatten(1)[:, :7]

    images = np.random.default_rng(0).uniform(1, 2, (8, 3, 2, 2)).astype(np.float32)
    manifest = dataclasses.replace(read_manifest(exported), precision="fp16")
    reference = _reference(Loud(), Pool((2, 2), images, 0), manifest)
    exact = 1e5 * images.astype(np.float64).reshape(8, -1)[:, :7]
    with torch.inference_mode():
        rounded = Loud()(torch.from_numpy(images).bfloat16()).double().numpy()
    np.testing.assert_allclose(reference.exact["logits"], exact, rtol=1e-12)
    assert reference.own_error["logits"] == pytest.approx(np.abs(rounded - exact).max() / 8)
    assert reference.own_rms["logits"] == pytest.approx(rms(rounded - exact) / 8)


def test_the_tolerance_follows_the_frameworks_error_and_has_a_floor() -> None:
    reference = np.array([-1.0, 1.0])
    assert allowed_error("fp32", reference, 1e-3) == pytest.approx(8e-3)
    assert allowed_error("fp32", reference, 0.0) == pytest.approx(1e-5)


def test_feature_maps_in_int8_have_bounds_of_their_own() -> None:
    maps = np.tile([-1.0, 1.0], (2, 3, 4, 4))
    assert (allowed_error("int8", maps, 0.0), allowed_rms("int8", maps, 0.0)) == (1.0, 0.125)
    assert (allowed_error("int8", maps[0, 0], 0.0), allowed_rms("int8", maps[0, 0], 0.0)) == (0.5, None)
    assert allowed_error("fp32", maps, 0.0) == pytest.approx(1e-5)


def test_half_precision_has_a_narrow_bound_on_the_root_mean_square() -> None:
    reference = np.tile([-1.0, 1.0], ENOUGH // 2)
    assert allowed_rms("fp16", reference[:-1], 1e-3) is None  # of few errors it says nothing
    assert rms(np.array([3.0, -4.0])) == pytest.approx(12.5**0.5)
    assert allowed_rms("fp32", reference, 1.0) is None
    assert allowed_rms("fp16", reference, 1e-3) == pytest.approx(1.2e-3)
    assert allowed_rms("fp16", reference, 0.0) == pytest.approx(2.0**-12)
    assert allowed_error("fp16", reference, 1e-2) == pytest.approx(2e-2)


@pytest.mark.parametrize("padding", ["reflect", "circular"])
@pytest.mark.parametrize("size", [5, 7])
def test_open_sizes_are_compared_on_images_that_the_padding_can_continue(
    tmp_path: Path, padding: Any, size: int
) -> None:
    """A last map of 3x2 pixels has no third pixel to be mirrored."""
    model = tiny_asmlp(shift=ShiftSpec(size, 1, padding), features=True, image_size=(40, 40))
    manifest = export_model(model, tmp_path / "out", image_size="dynamic")
    sizes = {check["check"].rpartition(", ")[2] for check in manifest.verification["files"][CPU]["checks"]}
    assert {"40x40", {5: "32x24", 7: "40x32"}[size]} <= sizes
