"""Which backend checks which file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlpdeploy.cli import main
from mlpdeploy.env import installed_version
from mlpdeploy.errors import MlpDeployError, UsageError
from mlpdeploy.verify import verify, verify_artifact
from mlpdeploy.verify.tolerance import ROW_IDENTITY, row_identity

# Not `importorskip`: importing openvino as it is starts its telemetry.
if installed_version("openvino") is None:
    pytest.skip("openvino is not installed: pip install 'mlpdeploy[openvino]'", allow_module_level=True)


@pytest.mark.parametrize(
    ("asked", "installed", "wanted"),
    [
        (None, True, ["onnxruntime", "onnxruntime", "openvino"]),
        (None, False, ["onnxruntime", "onnxruntime", "onnxruntime"]),
        ("openvino", True, ["onnxruntime", "onnxruntime", "openvino"]),
        ("onnxruntime", True, ["onnxruntime", "onnxruntime", "onnxruntime"]),
    ],
)
def test_every_file_on_a_backend_that_runs_it(
    exported_for_all: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, installed: bool, wanted: list[str]
) -> None:
    monkeypatch.setattr(verify, "installed_version", lambda name: "1" if installed or name != "openvino" else None)
    report = verify_artifact(exported_for_all, backend=asked, record=False)
    assert report.passed
    assert [file["backend"] for file in report.files.values()] == wanted
    assert all(len(file["checks"]) > 5 for file in report.files.values())


def test_a_backend_without_a_file_is_refused_before_any_work(exported: Path) -> None:
    with pytest.raises(UsageError, match=r"mlpdeploy lower .* --target openvino"):
        verify_artifact(exported, backend="openvino", record=False)
    with pytest.raises(UsageError, match="did you mean openvino"):
        verify_artifact(exported, backend="openvno", record=False)


def test_a_gpu_that_is_not_there_is_told_before_any_work(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpdeploy.verify.verify._reference", lambda *arguments: pytest.fail("work was done"))
    with pytest.raises(MlpDeployError, match=r"CUDA|GPU|cuda"):
        verify_artifact(exported, device="cuda", record=False)


def test_on_the_command_line(exported_for_all: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPDEPLOY_CACHE", str(tmp_path / "cache"))
    directory = shutil.copytree(exported_for_all, tmp_path / "copy")
    done = CliRunner().invoke(main, ["verify", str(directory), "--backend", "auto"])
    assert done.exit_code == 0, done.output
    assert "model.openvino.onnx, on " in done.stdout
    assert "model.cpu.onnx, on onnxruntime" in done.stdout
    assert "measured onnxruntime" in done.stderr


def test_openvino_and_gpus_have_the_wider_bound_for_rows() -> None:
    assert row_identity("fp32", "onnxruntime") == ROW_IDENTITY["fp32"] < row_identity("fp32", "openvino") == 1e-5
    for backend in ("onnxruntime", "onnxruntime-tensorrt", "torch", "tensorrt"):
        assert row_identity("fp32", backend, "cuda:1") == 1e-5
    for precision, bound in ROW_IDENTITY.items():  # rows that are mixed up differ by the spread and more
        assert row_identity(precision, "onnxruntime") == bound < row_identity(precision, "openvino") < 0.5
