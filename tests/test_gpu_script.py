"""benchmarks/gpu/run.sh, with programs in the place of Python and nvidia-smi that only note how they are called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu" / "run.sh"
# What a stub does: note its arguments, and fail for those that FAIL names.
STUB = '#!/bin/sh\necho "$@" >>"$CALLS"\ncase "$*" in *"$FAIL"*) echo "it broke"; exit 1;; esac\n'


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
    assert {"kernel", "torch_operator", "embedded_plugin", "onnxruntime_cuda_vip_s7", "int8", "pycuda"} <= set(steps)
    calls = Path(stubs["CALLS"]).read_text()
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


def test_without_a_gpu(stubs: dict[str, str]) -> None:
    (Path(stubs["OUT"]).parent / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    status, _, steps = run(stubs)
    assert status == 1 and steps["kernel"] == ("skipped", "no NVIDIA GPU (nvidia-smi finds none)")
    status, text, steps = run(stubs, "--dry-run")
    assert status == 0 and steps["plugin_build"][0] == "would run"
    assert "[skipped] kernel: no NVIDIA GPU" in text
