"""benchmarks/gpu/run.sh, with programs in the place of Python and nvidia-smi that only note how they are called.

Of the scripts that it runs, what works without a GPU.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from mlpdeploy.errors import PluginError
from mlpdeploy.ops.axial_shift import axial_shift_ref
from mlpdeploy.plugins.find import LIBRARY_VARIABLE

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu" / "run.sh"
# What a stub does: note its arguments, and fail for those that FAIL names.
STUB = '#!/bin/sh\necho "$@" >>"$CALLS"\necho "$PYTHONPATH" >"$CALLS.path"\n'
STUB += 'case "$*" in *"$FAIL"*) echo "it broke"; exit 1;; esac\n'


@pytest.fixture
def stubs(tmp_path: Path) -> dict[str, str]:
    for name in ("python", "nvidia-smi"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "OUT": str(tmp_path / "out"),
        "CALLS": str(tmp_path / "calls"),
        "MODELS": "asmlp_t vip_s7",
        "FAIL": "nothing that is called",
    }


def run(stubs: dict[str, str], *words: str, **changes: str) -> tuple[int, str, dict[str, tuple[str, str]]]:
    """Return (exit status, stdout, {step: (state, reason)})."""
    done = subprocess.run(["bash", SCRIPT, *words], env={**stubs, **changes}, capture_output=True, text=True)
    assert done.stderr == ""
    lines = (Path(stubs["OUT"]) / "summary.tsv").read_text().splitlines()
    return done.returncode, done.stdout, {name: (state, why) for name, state, why in (x.split("\t") for x in lines)}


def test_everything_runs(stubs: dict[str, str]) -> None:
    status, text, steps = run(stubs, CALIBRATION_DATA="/pictures")
    assert status == 0 and {state for state, _ in steps.values()} == {"passed"}
    assert text.rstrip().splitlines()[-1].startswith(f"{len(steps)} passed, 0 failed, 0 skipped; logs and results in")
    assert {
        "kernel",
        "torch_operator",
        "embedded_plugin",
        "onnxruntime_cuda_vip_s7",
        "int8",
        "pycuda",
        "cpp_tensorrt",
    } <= set(steps)
    calls = Path(stubs["CALLS"]).read_text()
    assert "--labels" in calls and f"axial_shift.py -o {stubs['OUT']}/axial_shift.json" in calls
    assert Path(f"{stubs['CALLS']}.path").read_text().split(":")[0].strip() == str(SCRIPT.parents[2])
    assert "--plugin embedded" in calls and "--backend onnxruntime-tensorrt" in calls
    assert list(steps).index("fp16") < list(steps).index("int8")  # never INT8 without FP16 beside it


def test_a_step_that_fails_stops_no_other(stubs: dict[str, str]) -> None:
    status, text, steps = run(stubs, FAIL="gpu/axial_shift.py")
    assert status == 1 and steps["kernel"] == ("FAILED", "it broke")
    assert steps["pycuda"] == ("passed", "") and "1 failed" in text


def test_what_is_missing_is_the_reason(stubs: dict[str, str]) -> None:
    status, _, steps = run(stubs, FAIL="import tensorrt")
    assert status == 0
    assert steps["tensorrt_asmlp_t"] == steps["embedded_plugin"] == ("skipped", "no TensorRT")
    assert steps["int8"] == ("skipped", "no TensorRT") and steps["torch_operator"] == ("passed", "")


def test_without_headers_of_tensorrt(stubs: dict[str, str]) -> None:
    """The kernel needs none."""
    status, _, steps = run(stubs, FAIL="find_toolchain")
    assert status == 0 and steps["plugin_build"] == ("skipped", "no CMake, no nvcc or no headers of TensorRT")
    assert steps["kernel"] == steps["torch_operator"] == ("passed", "")


def test_nothing_is_exported_for_nobody(stubs: dict[str, str]) -> None:
    status, _, steps = run(stubs, FAIL="import ")  # neither ONNX Runtime nor TensorRT nor torch
    assert steps["export_asmlp_t"] == ("skipped", "neither onnxruntime-gpu nor TensorRT")
    assert status == 0


def test_torch_and_nvcc_are_enough(stubs: dict[str, str]) -> None:
    """For the kernel and the torch operator: without the packages of the commands and of the runtimes nothing fails."""
    python = Path(stubs["OUT"]).parent / "python"
    python.write_text(STUB + "case \"$*\" in *'import torch'*|*find_nvcc*|*/gpu/*) ;; *) exit 1;; esac\n")
    status, _, steps = run(stubs)
    assert status == 0 and {name for name, (state, _) in steps.items() if state == "passed"} == {
        "machine",
        "kernel",
        "torch_operator",
    }
    assert steps["doctor"] == ("skipped", "no click or no rich, which mlpdeploy's commands need")
    python.write_text(STUB)
    status, _, steps = run(stubs | {"FAIL": "import onnxruntime"})
    assert status == 0 and steps["doctor"] == ("skipped", "no onnxruntime, without which doctor fails")
    assert steps["plugin_build"] == ("passed", "")


def test_the_cpp_library_says_what_it_lacks(stubs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    python = Path(stubs["OUT"]).parent / "python"
    python.write_text(STUB + 'case "$*" in *--missing) echo "no g++";; esac\n')
    assert run(stubs)[2]["cpp_tensorrt"] == ("skipped", "no g++")
    cpp, folder = script("cpp"), python.parent / "build"
    monkeypatch.setattr(cpp.shutil, "which", lambda name: None if name == "g++" else name)
    assert cpp.missing(folder) == "no g++"
    monkeypatch.setattr(cpp.shutil, "which", lambda name: name)
    monkeypatch.setattr(cpp, "find_tensorrt_include", lambda: Path("include"))
    monkeypatch.setattr(cpp, "tensorrt_version", lambda include: "10.14.1")
    for version in ("11.1.0", "10.9.0"):  # which the library would refuse
        monkeypatch.setattr(cpp, "installed_version", lambda name, version=version: version)
        assert cpp.missing(folder) == f"headers of TensorRT 10.14.1, and TensorRT {version} is installed"
    monkeypatch.setattr(cpp, "installed_version", lambda name: "10.16.1")
    cmake = SimpleNamespace(returncode=1, stderr="CMake Error\n  mlpdeploy needs packages: apt install x\n")
    monkeypatch.setattr(cpp.subprocess, "run", lambda command, **options: cmake)
    assert cpp.missing(folder) == "mlpdeploy needs packages: apt install x"
    cmake.returncode = 0
    assert cpp.missing(folder) == ""


def test_probabilities_of_cpp_and_python_are_compared() -> None:
    cpp = script("cpp")

    def document(*values: float) -> dict[str, Any]:
        top = [{"index": index, "label": "", "probability": value} for index, value in enumerate(values)]
        return {"images": [{"path": "x", "top": sorted(top, key=lambda one: -one["probability"])}]}

    pythons = document(0.2, 0.5, 0.3)
    assert cpp.compare(document(0.2, 0.5, 0.3), pythons, "fp32") == {
        "pictures": 1,
        "apart": 0.0,
        "allowed": cpp.row_identity("fp32", "tensorrt"),
        "equal": True,
    }
    assert cpp.compare(document(0.2, 0.3, 0.5), pythons, "fp32")["equal"] is False
    with pytest.raises(SystemExit, match="C\\+\\+ tells"):
        cpp.compare(document(0.2, 0.8), pythons, "fp32")


def test_without_a_gpu(stubs: dict[str, str]) -> None:
    (Path(stubs["OUT"]).parent / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    status, _, steps = run(stubs)
    assert status == 1 and steps["kernel"] == ("skipped", "no NVIDIA GPU (nvidia-smi finds none)")
    status, text, steps = run(stubs, "--dry-run")
    assert status == 0 and steps["plugin_build"][0] == "would run"
    assert "[skipped] kernel: no NVIDIA GPU" in text


def script(name: str) -> Any:
    """Return one of the scripts as a module."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", SCRIPT.with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_check_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a launcher that computes the reference; each reference is computed once."""
    kernel, asked = script("axial_shift"), []

    def launch(x: Any, spec: Any, channels: int, block: int, outputs: Any) -> None:
        n, _, h, w, _ = x.shape
        planar = x.permute(0, 1, 4, 2, 3).reshape(n, -1, h, w)[:, :channels]
        for output, moved in zip(outputs, axial_shift_ref(planar.double(), spec), strict=True):
            output.copy_(kernel.blocked(moved, block).to(x.dtype))

    monkeypatch.setattr(kernel, "axial_shift_ref", lambda x, spec: asked.append(spec) or axial_shift_ref(x, spec))
    cases = (kernel.SHORT_SHAPES[:2], kernel.SHORT_SPECS[:2])
    assert kernel.check(launch, *cases, "cpu") == (2 * 4 * 2 * (4 + 5), 0)
    assert len(asked) == 4
    assert kernel.check(launch, *cases, "cpu", deadline=time.monotonic() - 1) == (0, 2 * 4 * 2 * (4 + 5))
    with pytest.raises(SystemExit, match=r"differs: \(3, 20, 14, 14\)"):  # what is written counts, not what was there
        kernel.check(lambda *arguments: None, *cases, "cpu")


def test_bandwidth_is_that_of_the_memory() -> None:
    kernel, l2 = script("axial_shift"), 60 << 20
    for size_bytes in (200_000, 1 << 20, 100 << 20, 400 << 20):
        sets = kernel.sets_for(size_bytes, l2)
        assert sets >= 2 and sets * size_bytes >= 4 * l2
    rows = [{"above_l2": above, "share_of_copy": share} for above, share in ((True, 0.9), (True, 0.8), (False, 0.1))]
    assert kernel.goal_of(rows) == {"share_of_copy": 0.85, "rows": 2, "reached": 1}


def test_the_results_of_the_kernel_are_written_on_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel, output, order = script("axial_shift"), tmp_path / "new" / "results.json", itertools.count()

    def measure(*arguments: Any) -> dict[str, Any]:
        number = next(order)
        if number:
            assert len(json.loads(output.read_text())["measurements"]) == number
        return {"above_l2": True, "share_of_copy": 1.0}

    monkeypatch.setattr(kernel.ctypes, "CDLL", lambda path: None)
    monkeypatch.setattr(kernel, "check", lambda *arguments: (7, 3))
    monkeypatch.setattr(kernel, "measure", measure)
    monkeypatch.setattr(kernel, "sanitize", lambda library, deadline: {"memcheck": "clean"})
    kernel.examine(Path("library"), {}, output, 1000)
    report = json.loads(output.read_text())
    assert len(report["measurements"]) == 64 and report["goal"]["reached"] == 64
    assert report["sanitizer"] and report["cases_left_out"] == 3


# What a stand-in for compute-sanitizer does, by its tool. Each starts a child, as the tool starts the program.
SANITIZER = """#!/bin/sh
echo "$@ caching=$PYTORCH_NO_CUDA_MEMORY_CACHING" >>"$0.calls"
case "$2" in
  memcheck) echo "== ERROR SUMMARY: 0 errors" ;;
  initcheck) echo "== ERROR SUMMARY: 1 error"; exit 9 ;;
  racecheck) echo started; sleep 60 & echo $! >"$0.child"; wait ;;
  synccheck) echo first; echo "no device" >&2; exit 1 ;;
  lost) echo "cut off" ;;
esac
"""


def test_what_comes_of_a_sanitizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel, tool = script("axial_shift"), tmp_path / "compute-sanitizer"
    tool.write_text(SANITIZER)
    tool.chmod(0o755)
    monkeypatch.setattr(kernel.shutil, "which", lambda name: str(tool))
    monkeypatch.setattr(kernel, "SANITIZERS", ("memcheck", "initcheck", "synccheck", "lost"))
    found = kernel.sanitize(Path("library"), time.monotonic() + 60)
    monkeypatch.setattr(kernel, "SANITIZERS", ("racecheck",))
    found |= kernel.sanitize(Path("library"), time.monotonic() + 2)
    assert found == {
        "memcheck": "clean",
        "initcheck": "exit 9: == ERROR SUMMARY: 1 error",
        "synccheck": "exit 1: first no device",
        "lost": "exit 0: cut off",
        "racecheck": "not run to the end: it was stopped after 2 s: started",
    }
    child = Path("/proc") / (tmp_path / "compute-sanitizer.child").read_text().strip() / "stat"
    assert not child.is_file() or child.read_text().split()[2] == "Z"  # killed with the tool
    calls = (tmp_path / "compute-sanitizer.calls").read_text().splitlines()
    assert all("--report-api-errors no" in call and call.endswith("caching=1") for call in calls)
    assert set(kernel.unclean(found)) == {"initcheck", "synccheck", "lost", "racecheck"}  # what was cut off is no pass
    late = kernel.sanitize(Path("library"), time.monotonic())
    assert late == kernel.unclean(late) == {"racecheck": "not run: no time left"}
    monkeypatch.setattr(kernel.shutil, "which", lambda name: None)
    monkeypatch.setattr(kernel, "find_nvcc", lambda: None)
    assert kernel.unclean(kernel.sanitize(Path("library"), time.monotonic() + 2)) == {}


def test_each_sanitizer_has_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, given = script("axial_shift"), []
    monkeypatch.setattr(kernel.shutil, "which", lambda name: name)
    monkeypatch.setattr(kernel, "_sanitized", lambda command, seconds: given.append(seconds) or "clean")
    share = kernel.SANITIZERS_UNTIL - kernel.BANDWIDTH_UNTIL
    kernel.sanitize(Path("library"), time.monotonic() + share * kernel.SECONDS)
    assert given[0] > 119


def test_the_torch_operator_compiles_its_kernel_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    operator = script("torch_operator")
    assert torch.backends.cudnn.allow_tf32 is False
    torch.backends.cudnn.allow_tf32 = True

    def missing() -> None:
        raise PluginError("the CUDA plugin is not built")

    monkeypatch.setattr(operator, "find_plugin_library", missing)
    monkeypatch.setitem(sys.modules, "axial_shift", SimpleNamespace(build=lambda folder: folder / "kernel.so"))
    monkeypatch.setenv(LIBRARY_VARIABLE, "")
    operator.provide_library(tmp_path)
    assert os.environ[LIBRARY_VARIABLE] == str(tmp_path / "kernel.so")
