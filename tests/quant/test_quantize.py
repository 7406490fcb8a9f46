"""`quantize_artifact`: whole, verified and deterministic artifacts, or a clear refusal and nothing on the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from calibration_inputs import IMAGES
from tiny import tiny_asmlp, tiny_vip

import mlpdeploy
from mlpdeploy.errors import ArtifactError, UsageError, VerificationError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import CANONICAL, read_manifest
from mlpdeploy.quant.quantize import BY_HINT, CALIBRATION_FILE, quantize_artifact
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.runtime.openvino import native_precisions
from mlpdeploy.verify import tolerance

INT8 = Recipe("int8")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, IMAGES)
    return path


@pytest.fixture(scope="session")
def in_int8(exported_for_all: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny AS-MLP in INT8 for three targets; do not change it."""
    directory = tmp_path_factory.mktemp("int8") / "tiny"
    quantize_artifact(
        exported_for_all, directory, INT8, images=images, targets=("cpu", "openvino", "tensorrt"), verify=False
    )
    return directory


def test_fp16_is_verified_where_pytorchs_own_overflows(images: Path, tmp_path: Path) -> None:
    """What the file leaves in float32 stays finite, in OpenVINO too, and the yardstick is a number."""
    model = tiny_asmlp()
    with torch.no_grad():
        model.get_parameter("layers.1.blocks.0.mlp.fc1.weight").mul_(100)
        model.get_parameter("layers.1.blocks.0.mlp.fc2.weight").mul_(3e4)
    export_model(model, tmp_path / "float32", target=("cpu", "openvino"), verify=False)
    manifest = quantize_artifact(tmp_path / "float32", tmp_path / "half", Recipe("fp16"), images=images)
    checks = [check for file in manifest.verification["files"].values() for check in file["checks"]]
    own = [check["pytorch_error"] for check in checks if "pytorch_error" in check]
    assert own and 0 < max(own) < 1e-2


def test_fp16_of_any_size(images: Path, tmp_path: Path) -> None:
    """Sizes that are open are computed in the graph, as whole numbers, which have no range to calibrate."""
    export_model(tiny_asmlp(), tmp_path / "float32", image_size="dynamic", verify=False)
    manifest = quantize_artifact(tmp_path / "float32", tmp_path / "half", Recipe("fp16"), images=images, verify=False)
    assert manifest.quantization is not None
    assert manifest.quantization["targets"]["cpu"]["unmeasured"] == 0


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def test_an_int8_artifact_is_whole_and_says_what_it_is(in_int8: Path, exported_for_all: Path) -> None:
    manifest = read_manifest(in_int8)
    assert manifest.precision == "int8"
    assert manifest.quantization is not None
    assert manifest.quantization["images"] == len(IMAGES)
    assert {entry.role for entry in manifest.models.values()} == {CANONICAL, "cpu", "openvino", "tensorrt"}
    assert (in_int8 / "model.onnx").read_bytes() == (exported_for_all / "model.onnx").read_bytes()
    assert "AxialShiftBlockInt8" in operators(in_int8 / "model.cpu.onnx")
    for target in ("openvino", "tensorrt"):  # in five operators a GELU would part Q from Conv
        assert "Gelu" in operators(in_int8 / f"model.{target}.onnx")
    for target in ("cpu", "openvino", "tensorrt"):
        assert "QuantizeLinear" in operators(in_int8 / f"model.{target}.onnx")
        assert manifest.quantization["targets"][target]["int8_share_of_macs"] > 0.9
    assert manifest.files["model.cpu.weights"].bytes < read_manifest(exported_for_all).files["model.cpu.weights"].bytes
    assert CALIBRATION_FILE in manifest.files


def test_int8_is_near_the_float32_model_on_both_runtimes(in_int8: Path, exported_for_all: Path) -> None:
    with mlpdeploy.load(exported_for_all) as session:
        wanted = session.run({"input": IMAGES})["logits"]
    for backend in ("onnxruntime", "openvino"):
        with mlpdeploy.load(in_int8, backend) as session:
            found = session.run({"input": IMAGES})["logits"]
        error = float(np.sqrt(np.mean((found - wanted) ** 2)) / np.std(wanted))
        assert 1e-4 < error < 0.1, backend


def test_verification_sees_a_wrong_scale(in_int8: Path, tmp_path: Path) -> None:
    assert mlpdeploy.verify_artifact(in_int8, record=False).passed
    directory = Path(shutil.copytree(in_int8, tmp_path / "tiny"))
    path = directory / "model.cpu.onnx"
    model = onnx.load(path, load_external_data=False)
    scale = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("fc1.folded.weight/scale"))
    scale.raw_data = (onnx.numpy_helper.to_array(scale) * 3).astype(np.float32).tobytes()
    path.write_bytes(model.SerializeToString())
    reseal(directory, "model.cpu.onnx")
    report = mlpdeploy.verify_artifact(directory, record=False)
    assert not report.passed
    assert report.failure().startswith("model.cpu.onnx")


def reseal(directory: Path, name: str) -> None:
    """Give the manifest the checksum of a changed file."""
    import dataclasses

    from mlpdeploy.artifact import write_manifest
    from mlpdeploy.manifest import file_entry

    manifest = read_manifest(directory)
    old = manifest.files[name]
    entry = file_entry(directory / name, old.role, old.shift, old.weights)
    write_manifest(directory, dataclasses.replace(manifest, files={**manifest.files, name: entry}))


def test_the_same_request_gives_the_same_bytes(
    in_int8: Path, exported_for_all: Path, images: Path, tmp_path: Path
) -> None:
    quantize_artifact(
        exported_for_all, tmp_path / "again", INT8, images=images, targets=("cpu", "openvino", "tensorrt"), verify=False
    )
    for path in sorted(in_int8.iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_vip_in_int8(images: Path, tmp_path: Path) -> None:
    export_model(tiny_vip(), tmp_path / "vip", target=("cpu", "openvino"), verify=False)
    manifest = quantize_artifact(tmp_path / "vip", tmp_path / "int8", INT8, images=images)
    assert manifest.verification["passed"]


def test_half_precision_with_typed_inputs(exported: Path, images: Path, tmp_path: Path) -> None:
    manifest = quantize_artifact(exported, tmp_path / "fp16", Recipe("fp16", io="fp16"), images=images)
    assert manifest.verification["passed"]
    assert (manifest.inputs[0].dtype, manifest.outputs[0].dtype) == ("float16", "float16")
    with mlpdeploy.load(tmp_path / "fp16") as session:
        assert session.run({"input": IMAGES.astype(np.float16)})["logits"].dtype == np.float16
        with pytest.raises(UsageError, match="wanted float16"):
            session.run({"input": IMAGES})


def test_bf16_is_the_sessions_for_openvino_and_in_the_file_for_the_others(
    exported_for_all: Path, tmp_path: Path
) -> None:
    wanted = ("cpu", "openvino", "tensorrt")
    manifest = quantize_artifact(exported_for_all, tmp_path / "bf16", Recipe("bf16"), targets=wanted, verify=False)
    assert manifest.precision == "bf16"
    assert manifest.quantization is not None
    targets = manifest.quantization["targets"]
    assert targets["openvino"] == BY_HINT
    assert targets["cpu"]["name"] == "half_blocks(bf16)"
    assert targets["tensorrt"]["name"] == "half_types(bf16)"


def test_a_kept_block_stays_in_float32(exported: Path, images: Path, tmp_path: Path) -> None:
    recipe = Recipe("int8", keep=("layers.0.blocks.0",))
    manifest = quantize_artifact(exported, tmp_path / "mixed", recipe, images=images, verify=False)
    assert manifest.quantization is not None
    kept = manifest.quantization["targets"]["cpu"]["kept"]
    assert [name for name, why in kept.items() if why == "the recipe keeps it"] == ["layers.0.blocks.0/Add_2/block"]
    assert operators(tmp_path / "mixed" / "model.cpu.onnx").count("AxialShiftBlock") == 1


@pytest.mark.parametrize("name", ["layers.0.blok", "layers.7.blocks.0/Conv"])
def test_a_block_that_is_none_is_refused_before_the_images_are_read(exported: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no node of the model is 'layers"):
        quantize_artifact(exported, tmp_path / "out", Recipe("int8", keep=(name,)), images=tmp_path / "none")


def test_the_cache_serves_every_calibrator_and_no_other_model(exported: Path, images: Path, tmp_path: Path) -> None:
    cache = tmp_path / "ranges.json"
    quantize_artifact(exported, tmp_path / "first", INT8, images=images, cache=cache, verify=False)
    before = cache.read_bytes()
    quantize_artifact(exported, tmp_path / "second", Recipe("int8", calibrator="percentile"), cache=cache, verify=False)
    assert cache.read_bytes() == before
    with pytest.raises(ArtifactError, match="made with other images"):
        np.save(tmp_path / "other.npy", IMAGES[::-1])
        quantize_artifact(exported, tmp_path / "third", INT8, images=tmp_path / "other.npy", cache=cache)
    export_model(tiny_vip(), tmp_path / "vip", verify=False)
    with pytest.raises(ArtifactError, match="another model"):
        quantize_artifact(tmp_path / "vip", tmp_path / "third", INT8, images=images, cache=cache)
    assert not (tmp_path / "third").exists()


def test_a_cache_without_a_folder_is_refused_before_the_images_are_read(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*none; make its folder first"):
        quantize_artifact(
            exported, tmp_path / "out", INT8, images=tmp_path / "none.npy", cache=tmp_path / "none" / "c.json"
        )


def test_refusals_leave_nothing(exported: Path, in_int8: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    cases = [
        (in_int8, INT8, {"images": images}, "quantized already"),
        (exported, INT8, {}, "without calibration images"),
        (exported, INT8, {"images": images, "targets": ["gpu"]}, "unknown target"),
        (exported, Recipe("bf16"), {"images": images, "targets": ["openvino"]}, "calibration images for bf16"),
    ]
    for source, recipe, options, message in cases:
        with pytest.raises(UsageError, match=message):
            quantize_artifact(source, output, recipe, **options)
    with pytest.raises(UsageError, match="itself"):
        quantize_artifact(exported, exported, INT8, images=images, force=True)
    with pytest.raises(UsageError, match="fp16 beside int8 for the target cpu"):
        quantize_artifact(exported, output, Recipe("int8", rest="fp16"), images=images)
    assert not any(tmp_path.iterdir())


def test_an_artifact_that_is_there_is_not_replaced(exported: Path, in_int8: Path, images: Path) -> None:
    before = (in_int8 / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="already holds an artifact"):
        quantize_artifact(exported, in_int8, INT8, images=images)
    assert (in_int8 / "manifest.json").read_bytes() == before


def test_an_artifact_that_another_command_made_meanwhile_is_not_replaced(exported: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    def say(text: str) -> None:
        if text.startswith("writing"):
            shutil.copytree(exported, output)

    with pytest.raises(UsageError, match="already holds an artifact"):
        quantize_artifact(exported, output, Recipe("bf16"), targets=["cpu"], verify=False, progress=say)
    assert read_manifest(output).precision == "fp32"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_int8_with_the_rest_in_bf16(target: str, exported_for_all: Path, images: Path, tmp_path: Path) -> None:
    recipe = Recipe("int8", rest="bf16")
    if target == "openvino" and "bf16" not in native_precisions():
        pytest.skip("no bfloat16 in this processor")
    manifest = quantize_artifact(exported_for_all, tmp_path / "mixed", recipe, images=images, targets=[target])
    assert manifest.float_precision == "bf16"
    file = onnx.load(tmp_path / "mixed" / f"model.{target}.onnx", load_external_data=False)
    types = {item.data_type for item in file.graph.initializer if item.name.endswith("/scale")}
    if target == "tensorrt":  # which alone computes them: the values are not compared
        assert types == {onnx.TensorProto.BFLOAT16}
        return
    assert types == {onnx.TensorProto.FLOAT}
    feeds = {"input": IMAGES[:2]}
    with mlpdeploy.load(tmp_path / "mixed", "openvino") as session:
        by_itself = session.run(feeds)["logits"]
    with mlpdeploy.load(tmp_path / "mixed", "openvino", precision="fp32") as session:
        assert (session.run(feeds)["logits"] != by_itself).any()
    with mlpdeploy.load(tmp_path / "mixed", "openvino", precision="bf16") as session:
        np.testing.assert_array_equal(session.run(feeds)["logits"], by_itself)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_int8_with_the_rest_in_fp16(target: str, exported: Path, images: Path, tmp_path: Path) -> None:
    recipe = Recipe("int8", rest="fp16")
    manifest = quantize_artifact(exported, tmp_path / "mixed", recipe, images=images, targets=[target])
    assert manifest.precision == "int8"
    assert manifest.verification["passed"] == (target == "tensorrt-rtx")  # only TensorRT computes the other
    assert manifest.quantization is not None
    done = manifest.quantization["targets"][target]
    assert done["int8_share_of_macs"] > 0.9
    assert done["rest"]["unmeasured"] == 0
    model = onnx.load(tmp_path / "mixed" / f"model.{target}.onnx", load_external_data=False)
    types = {item.data_type for item in model.graph.initializer if item.name.endswith("/scale")}
    assert types == {onnx.TensorProto.FLOAT16}
    onnx.checker.check_model(str(tmp_path / "mixed" / f"model.{target}.onnx"))


def test_a_result_that_is_too_far_off_leaves_nothing(
    exported: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tolerance.TOLERANCES, "int8", tolerance.Tolerance(0.0, 1e-6))
    with pytest.raises(VerificationError, match=r"model\.cpu\.onnx is not equal to PyTorch"):
        quantize_artifact(exported, tmp_path / "output", INT8, images=images)
    assert not any(tmp_path.iterdir())


def test_what_the_manifest_keeps_is_json(in_int8: Path) -> None:
    body = json.loads((in_int8 / "manifest.json").read_text())
    assert body["quantization"]["recipe"]["precision"] == "int8"
    low, high = body["quantization"]["input_range"]
    assert (low, high) == (float(IMAGES.min()), float(IMAGES.max()))


def test_a_quantized_artifact_has_no_form_for_cuda(
    in_int8: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(UsageError, match="an artifact in int8 on cuda"):
        mlpdeploy.load(in_int8, device="cuda")
    with mlpdeploy.load(in_int8) as session:
        assert session.device == "cpu"
