"""An artifact in half precision: verified in its own precision, and never run as float32 in silence."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from half_models import lowered
from onnx import numpy_helper
from tiny import tiny_asmlp

from mlpdeploy import load
from mlpdeploy.artifact import write_manifest
from mlpdeploy.cli import main
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import file_entry, read_manifest
from mlpdeploy.quant.half import HALF_FORMS, half_types
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.verify import verify_artifact
from mlpdeploy.verify.verify import verify_or_raise

CPU = "model.cpu.onnx"


def make_half(source: Path, directory: Path, recipe: Recipe, target: str = "cpu") -> Path:
    """Return a copy of a float32 artifact with one model, in half precision, for a target."""
    shutil.copytree(source, directory)
    (directory / CPU).unlink()
    (directory / "model.cpu.weights").unlink()
    graph = lowered(tiny_asmlp(), target)
    if HALF_FORMS[target][recipe.precision] == "typed":
        half_types(graph, recipe, target)
    name = f"model.{target}.onnx"
    onnx.save(ir.to_proto(graph), directory / name)
    manifest = read_manifest(directory)
    dtype = "float16" if recipe.io == "fp16" else "float32"
    files = {name: entry for name, entry in manifest.files.items() if entry.role == "canonical"}
    write_manifest(
        directory,
        dataclasses.replace(
            manifest,
            precision=recipe.precision,
            inputs=tuple(dataclasses.replace(spec, dtype=dtype) for spec in manifest.inputs),
            outputs=tuple(dataclasses.replace(spec, dtype=dtype) for spec in manifest.outputs),
            files={**files, name: file_entry(directory / name, target, "conv")},
            verification={},
        ),
    )
    return directory


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_openvino_is_within_the_tolerance(exported: Path, tmp_path: Path, precision: str) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'mlpdeploy[openvino]'")
    from mlpdeploy.runtime.openvino import native_precisions

    if precision == "bf16" and precision not in native_precisions():
        pytest.skip("this processor has no bfloat16 arithmetic")
    recipe = Recipe(precision)  # type: ignore[arg-type]
    directory = make_half(exported, tmp_path / "half", recipe, "openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no float16 arithmetic here: told, and tested elsewhere
        report = verify_artifact(directory)
    assert report.passed, report.failure()
    assert report.files["model.openvino.onnx"]["backend"] == "openvino"
    worst = report.worst()
    assert 1e-4 < worst < (1e-2 if precision == "fp16" else 5e-2)


def test_a_typed_bf16_model_for_tensorrt_is_skipped_with_the_reason(exported: Path, tmp_path: Path) -> None:
    directory = make_half(exported, tmp_path / "half", Recipe("bf16"), "tensorrt")
    report = verify_artifact(directory)
    assert report.files["model.tensorrt.onnx"]["skipped"] == "only TensorRT computes its bfloat16 operators"
    assert not report.passed and not report.compared
    verify_or_raise(directory, fix="")  # what could not be looked at is no failure, and is not said to have passed
    done = CliRunner().invoke(main, ["verify", str(directory)])
    assert done.exit_code == 1 and "not verified: against PyTorch" in done.output
    assert "nothing was compared: none of the artifact's files can be run here" in done.output
    assert "nothing could be run where it was made" in CliRunner().invoke(main, ["inspect", str(directory)]).output


@pytest.mark.parametrize("io", ["fp32", "fp16"])
def test_a_half_artifact_is_verified_against_pytorchs_half(exported: Path, tmp_path: Path, io: str) -> None:
    directory = make_half(exported, tmp_path / "half", Recipe("fp16", io=io))  # type: ignore[arg-type]
    report = verify_artifact(directory)
    assert report.passed, report.failure()
    assert "float32 source" in report.files["model.onnx"]["skipped"]
    checks = {check["check"]: check for check in report.files[CPU]["checks"]}
    values = next(check for name, check in checks.items() if name.startswith("values") and "batch 8" in name)
    assert 1e-4 < values["relative_error"] < 1e-2
    assert values["pytorch_error"] > 1e-4  # in half precision, not in float32
    assert checks["top-1 agreement, 32x32"]["passed"]


def test_a_wrong_weight_is_found_in_half_precision(exported: Path, tmp_path: Path) -> None:
    directory = make_half(exported, tmp_path / "half", Recipe("fp16"))
    model = onnx.load(directory / CPU)
    (tensor,) = [t for t in model.graph.initializer if t.name == "layers.1.blocks.0.mlp.fc2.weight"]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16(1.5), tensor.name))
    onnx.save(model, directory / CPU)
    manifest = read_manifest(directory)
    write_manifest(
        directory,
        dataclasses.replace(manifest, files={**manifest.files, CPU: file_entry(directory / CPU, "cpu", "conv")}),
    )
    report = verify_artifact(directory)
    assert not report.passed
    assert "first node that diverges is layers.1.blocks.0.mlp.fc2/Conv" in report.failure()


def test_a_session_takes_and_gives_half(exported: Path, tmp_path: Path) -> None:
    directory = make_half(exported, tmp_path / "half", Recipe("fp16", io="fp16"))
    for backend in ("onnxruntime", "torch"):
        with load(directory, backend, "cpu") as session:
            feeds = session.random_feeds(3)
            assert feeds["input"].dtype == np.float16
            assert session.run(feeds)["logits"].dtype == np.float16
            with pytest.raises(UsageError, match="float32"):
                session.run({"input": feeds["input"].astype(np.float32)})
    with pytest.raises(UsageError, match=r"canonical model of .* takes float32"):
        load(directory, "onnxruntime", "cpu", role="canonical")


def test_a_half_artifact_without_the_targets_model_is_refused(exported: Path, tmp_path: Path) -> None:
    directory = make_half(exported, tmp_path / "half", Recipe("fp16"))
    manifest = read_manifest(directory)
    write_manifest(
        directory,
        dataclasses.replace(manifest, files={k: v for k, v in manifest.files.items() if k != CPU}),
    )
    with pytest.raises(ArtifactError, match=r"no fp16 model for cpu; run: mlpdeploy quantize .* --target cpu"):
        load(directory, "onnxruntime", "cpu")
    with load(directory, "onnxruntime", "cpu", role="canonical") as session:  # asked for by name
        assert session.run(session.random_feeds(1))["logits"].shape == (1, 7)
    assert read_manifest(exported).file_for("openvino") == "model.onnx"
