"""The command line as a user types it: exit codes, one clear line, nothing half written."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_inputs import IMAGES
from click.testing import CliRunner, Result
from PIL import Image
from tiny import tiny_asmlp

from mlpdeploy.cli import main
from mlpdeploy.models import statistics
from mlpdeploy.models.registry import DEMO_MODELS, MODELS
from mlpdeploy.models.statistics import model_table


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, code: int, *parts: str) -> None:
    """Assert exit code and one line on stderr without a traceback."""
    assert result.exit_code == code, result.output
    assert not result.exception or isinstance(result.exception, SystemExit)
    last = result.stderr.strip().splitlines()[-1]
    for part in parts:
        assert part in last, last
    assert "Traceback" not in result.output


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


def test_help_has_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("export", "lower", "build", "verify", "predict", "eval", "bench", "inspect", "doctor", "models"):
        assert f"  {command}" in result.stdout
        assert run(command, "--help").exit_code == 0


def test_a_wrong_command_suggests_the_right_one() -> None:
    refused(run("exprot"), 2, "no command 'exprot'; did you mean export?")


@pytest.fixture(scope="module")
def model_rows() -> list[dict[str, Any]]:
    """What `mlpdeploy models` counts in seconds; do not change it."""
    return model_table()


def test_models_lists_the_demo_models_apart(model_rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "model_table", lambda: model_rows)
    lines = run("models").stdout.splitlines()
    titles = [index for index, line in enumerate(lines) if "multiply-adds" in line]
    assert len(titles) == 2
    published, demos = lines[titles[0] + 1 : titles[1]], lines[titles[1] + 1 :]
    assert [line.split()[0] for line in published] == [entry.name for entry in MODELS]
    assert [line.split()[0] for line in demos] == [entry.name for entry in DEMO_MODELS]


def test_models_as_json(model_rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "model_table", lambda: model_rows)
    rows = json.loads(run("models", "--json").stdout)
    assert {row["name"]: round(row["macs"] / 1e9, 2) for row in rows}["asmlp_s"] == 8.51


def test_verify_and_inspect(artifact: Path) -> None:
    result = run("verify", artifact)
    assert result.exit_code == 0
    assert "passed: against PyTorch, float64" in result.stdout
    assert json.loads(run("verify", artifact, "--json").stdout)["passed"]
    assert "AxialShift" in run("inspect", artifact).stdout
    assert json.loads(run("inspect", artifact, "--json").stdout)["files"]["model.cpu.onnx"]["operators"]["Conv"]


def test_predict_says_that_weights_are_random(artifact: Path, photo: Path) -> None:
    result = run("predict", artifact, photo, "--top", 2)
    assert result.exit_code == 0
    assert "class " in result.stdout
    assert "random weights" in result.stderr
    data = json.loads(run("predict", artifact, photo, "--json").stdout)
    assert data["weights"] == "random weights, seed 0"
    assert len(data["images"][0]["top"]) == 5


@pytest.mark.parametrize("command", ["doctor", "--help", "inspect {}", "inspect {} --json"])
def test_a_full_stdout_is_one_line(exported: Path, command: str) -> None:
    arguments = command.format(exported).split()
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "mlpdeploy", *arguments], stdout=full, stderr=-1, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "mlpdeploy: the output cannot be written (No space left on device)\n",
    )


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_a_file_name_that_is_no_text(
    exported: Path, tmp_path: Path, photo: Path, encoding: str, json_too: tuple[str, ...]
) -> None:
    picture = os.fsencode(tmp_path) + b"/\xff\xc3\xa9.jpg"
    os.rename(photo, picture)
    command = [sys.executable, "-m", "mlpdeploy", "predict", str(exported), picture, *json_too]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    if json_too:
        assert os.fsencode(json.loads(done.stdout.decode("ascii"))["images"][0]["path"]) == picture
    else:
        assert b".jpg" in done.stdout.splitlines()[0]


def test_json_on_a_terminal_is_not_behind_the_progress_bar(exported: Path, photo: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mlpdeploy", "predict", str(exported), str(photo), "--json"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the system's way to say that nobody writes any more
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    assert process.wait(60) == 0
    assert b"classifying" in shown
    # What stands in the line in which the JSON begins, after the last order to erase it.
    assert re.split(rb"\x1b\[\d*K", shown)[-1].lstrip().startswith(b"{\r\n"), shown


def test_predict_without_a_place_for_its_output(exported: Path, photo: Path) -> None:
    command = f"exec '{sys.executable}' -m mlpdeploy predict '{exported}' '{photo}' >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_doctor_keeps_the_brackets_of_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlpdeploy import doctor

    monkeypatch.setattr(doctor, "installed_version", lambda module: None)
    assert "pip install 'mlpdeploy[tensorrt]'" in run("doctor").stdout


@pytest.mark.parametrize(("package", "code"), [("onnxruntime", 1), ("openvino", 0)])
def test_doctor_of_a_package_that_cannot_be_loaded(tmp_path: Path, package: str, code: int) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise ImportError('libx.so.1: no such file')")
    command = [sys.executable, "-m", "mlpdeploy", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == code, done.stderr
    (found,) = (finding for finding in json.loads(done.stdout) if finding["name"] == package)
    assert "cannot be loaded: libx.so.1: no such file" in found["detail"]
    assert found["status"] == ("missing" if code else "warning")
    assert found["fix"] == f"pip install --force-reinstall {package}"


def test_doctor() -> None:
    result = run("doctor")
    assert result.exit_code == 0
    assert "onnxruntime" in result.stdout
    assert {finding["name"] for finding in json.loads(run("doctor", "--json").stdout)} >= {"torch", "processor"}


@pytest.mark.slow
def test_export_from_a_checkpoint_and_force(tmp_path: Path) -> None:
    from mlpdeploy.models.create import create_model

    torch.save({"model": create_model("asmlp_t", num_classes=3, seed=5).state_dict()}, tmp_path / "mine.pth")
    (tmp_path / "labels.txt").write_text("cat\ndog\nfish\n")
    request = ["export", "--model", "asmlp_tiny", "--checkpoint", tmp_path / "mine.pth", "--num-classes", 3]
    request += ["--labels", tmp_path / "labels.txt", "--image-size", "64x96", "-o", tmp_path / "out"]
    result = run(*request, "--no-verify")  # the next one is verified
    assert result.exit_code == 0, result.output
    assert "checkpoint mine.pth" in result.stdout
    assert "random" not in result.output
    refused(run(*request), 2, "already holds an artifact", "--force")
    without_model = [part for part in request if part not in ("--model", "asmlp_tiny", "--num-classes", 3)]
    result = run(*without_model, "--force", "--json")
    assert "mine.pth is of asmlp_t, 3 classes" in result.stderr
    data = json.loads(result.stdout)
    assert data["labels"] == ["cat", "dog", "fish"]
    assert data["verification"]["passed"]


BAD_EXPORTS = {
    "unknown model": (["--model", "asmpl_s"], 2, "did you mean asmlp_s"),
    "impossible size": (["--model", "asmlp_t", "--image-size", "225"], 2, "multiples of 32"),
    "size of another family": (["--model", "vip_s7", "--image-size", "256"], 2, "32x32 grid"),
    "dynamic size of another family": (["--model", "vip_s7", "--image-size", "dynamic"], 2, "grid"),
    "no opset": (["--model", "asmlp_digits", "--opset", "0"], 2, "opset 0"),
    "even shift": (["--model", "asmlp_t", "--shift-size", "4"], 2, "odd"),
    "unknown padding": (["--model", "asmlp_t", "--padding", "mirror"], 2, "zero, circular"),
    "unknown shift": (["--model", "asmlp_t", "--shift", "roll"], 2, "auto, plugin"),
    "neither model nor checkpoint": ([], 2, "neither a model nor a checkpoint"),
    "no checkpoint": (["--model", "asmlp_t", "--checkpoint", "none.pth"], 1, "no checkpoint at none.pth"),
    "not a size": (["--model", "asmlp_t", "--image-size", "big"], 2, "neither 224"),
    "not a batch": (["--model", "asmlp_t", "--batch", "0"], 2, "neither a number"),
    "no classes": (["--model", "asmlp_t", "--num-classes", "0"], 2, "num_classes is 0"),
    "labels of another count": (["--model", "asmlp_t", "--labels", "labels.txt"], 2, "2 labels for 1000"),
    "labels that cannot be read": (["--model", "asmlp_t", "--labels", "none.txt"], 2, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD_EXPORTS)
def test_bad_exports(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").write_text("a\nb\n")
    arguments, code, text = BAD_EXPORTS[case]
    refused(run("export", *arguments, "-o", "out"), code, text)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.txt"]


def test_a_wrong_a_hostile_and_a_nan_checkpoint(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "owned"),))

    state = tiny_asmlp().state_dict()
    torch.save(state, tmp_path / "other.pth")
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    torch.save({name: tensor * float("nan") for name, tensor in state.items()}, tmp_path / "nan.pth")
    for name, text in (("other.pth", "does not fit asmlp_t"), ("evil.pth", "never run"), ("nan.pth", "NaN")):
        result = run("export", "--model", "asmlp_t", "--checkpoint", tmp_path / name, "-o", tmp_path / "out")
        refused(result, 1, name, text)
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run("export", "--model", "asmlp_t", "-o", tmp_path / "file"), 2, "is a file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    refused(run("export", "--model", "asmlp_t", "-o", tmp_path / "photos", "--force"), 2, "not replaced even with")


@pytest.mark.parametrize(
    "command",
    [
        "eval none --data none -o",
        "eval none --data none --html",
        "bench none -o",
        "bench none --plot",
        "sensitivity none -o",
        "sensitivity none --plot",
        "load localhost:1 -o",
        "load localhost:1 --plot",
        "inspect none --html",
    ],
)
def test_a_folder_for_a_report_is_refused_before_the_work(tmp_path: Path, command: str) -> None:
    refused(run(*command.split(), tmp_path), 2, f"{tmp_path} is a folder")


@pytest.mark.parametrize("command", ["sensitivity none -o", "load localhost:1 --plot", "inspect none --html"])
def test_a_report_in_no_folder_is_refused_before_the_work(tmp_path: Path, command: str) -> None:
    refused(run(*command.split(), tmp_path / "none" / "report"), 2, f"there is no folder {tmp_path / 'none'}")


@pytest.mark.parametrize(
    "command",
    [
        "eval {} --data images.npz --no-torch -o",
        "bench {} --batch 1 --seconds 0 --peer none --no-memory -o",
        "sensitivity {} --calibration-data images.npy -o",
        "inspect {} --html",
    ],
)
def test_results_are_printed_though_the_report_cannot_be_written(
    exported: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", IMAGES[:8])
    np.savez("images.npz", images=IMAGES[:8], labels=np.zeros(8, np.int64))
    result = run(*command.format(exported).split(), "r" * 300)
    refused(result, 1, "r cannot be written (File name too long); choose a shorter name")
    assert len(result.stdout.splitlines()) > 1


@pytest.mark.parametrize("batch", [1, 8])
def test_what_was_classified_before_a_bad_picture_is_not_lost(
    artifact: Path, photo: Path, tmp_path: Path, batch: int
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    request = ["predict", artifact, photo, tmp_path / "text.jpg", photo, "--batch", batch]
    result = run(*request)
    refused(result, 1, "text.jpg")
    assert result.stdout.count("%") == 5 and str(photo) in result.stdout
    result = run(*request, "--json")
    refused(result, 1, "text.jpg")
    assert [image["path"] for image in json.loads(result.stdout)["images"]] == [str(photo)]
    result = run("predict", artifact, tmp_path / "text.jpg", photo, "--json")
    assert result.stdout == "" and result.exit_code == 1


@pytest.mark.parametrize("command", ["verify", "predict", "bench", "inspect"])
def test_damaged_artifacts(artifact: Path, photo: Path, command: str, flip_byte: Callable, tmp_path: Path) -> None:
    more = [photo] if command == "predict" else []
    refused(run(command, tmp_path / "none", *more), 1, "does not exist")
    flip_byte(artifact / "model.cpu.onnx")
    refused(run(command, artifact, *more), 1, "model.cpu.onnx was changed after the export")
    manifest = artifact / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0.485", "0.486"))
    refused(run(command, artifact, *more), 1, "was edited after it was written")


def test_bad_pictures(artifact: Path, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    refused(run("predict", artifact, tmp_path / "text.jpg"), 1, "text.jpg")
    refused(run("predict", artifact, tmp_path / "none.jpg"), 2, "none.jpg")
    result = run("predict", artifact, photo, tmp_path / "text.jpg", "--skip-bad")
    assert result.exit_code == 0
    assert "text.jpg: " in result.stdout


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_is_free() -> None:
    heavy = "{'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'tensorrt', 'pycuda', 'numpy', 'PIL', 'rich', 'matplotlib'}"
    assert python(f"import sys, mlpdeploy; print({heavy} & set(sys.modules))") == "set()"
    assert python(f"import sys, mlpdeploy.cli; print({heavy} & set(sys.modules))") == "set()"


def test_no_module_imports_tensorrt_or_a_driver() -> None:
    """Not even those that are for nothing else: what they need is imported where it is used."""
    code = """
import importlib, pkgutil, sys
import mlpdeploy
NATIVE = ("tensorrt", "tensorrt_rtx", "tensorrt_bindings", "pycuda", "cuda", "polygraphy")
for package in ("engines", "runtime", "plugins", "commands", "triton"):
    path = importlib.import_module(f"mlpdeploy.{package}").__path__
    for module in pkgutil.walk_packages(path, f"mlpdeploy.{package}."):
        if module.name != "mlpdeploy.triton.preprocess":  # for inside of Triton only
            importlib.import_module(module.name)
libraries = [line for line in open("/proc/self/maps") if "libcuda" in line or "libnvinfer" in line]
print(sorted(set(NATIVE) & set(sys.modules)), len(libraries))
"""
    assert python(code) == "[] 0"


def test_running_a_model_needs_neither_torch_nor_onnx(exported: Path) -> None:
    code = f"""
import sys, numpy
for name in ("torch", "onnx", "onnx_ir", "onnxscript"):
    sys.modules[name] = None
import mlpdeploy
with mlpdeploy.load({str(exported)!r}) as session:
    print(session.run({{"input": numpy.zeros((1, 3, 32, 32), "float32")}})["logits"].shape)
"""
    assert python(code) == "(1, 7)"


def test_a_warning_is_one_line(exported: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "library.so").write_bytes(b"no library")
    monkeypatch.setenv("MLPDEPLOY_CPU_LIBRARY", str(tmp_path / "library.so"))
    monkeypatch.setenv("MLPDEPLOY_NATIVE", "portable")
    result = run("predict", exported, photo)
    assert result.exit_code == 0, result.output
    told = [line for line in result.stderr.splitlines() if "CPU kernels" in line]
    assert len(told) == 1 and told[0].startswith("mlpdeploy: without the CPU kernels: ")
    assert "UserWarning" not in result.stderr
