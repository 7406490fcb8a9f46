"""The real pycuda, where it is installed, under our provider: it calls the simulated driver of the C++ tests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_our_provider_runs_on_it(with_pycuda: Run) -> None:
    done = with_pycuda(str(Path(__file__).parent / "probe_pycuda.py"))
    assert done.returncode == 0, done.stderr
    assert "PyCUDA WARNING" not in done.stderr and "clean-up operation failed" not in done.stderr, done.stderr
    assert json.loads(done.stdout) == {
        "handle": True,
        "late": False,
        "back": [0, 0, 0, 0, *range(4, 64)],
        "elapsed_ms": 1.0,
        "pinned": ["uint8", [64]],
        "foreign": [False, True, False, False],
        "thread": ["no context"],
        "strided": "ValueError",
    }


def test_without_a_driver_it_is_an_error_of_ours(with_pycuda: Run, tmp_path: Path) -> None:
    text = "from mlpdeploy.runtime.cuda.pycuda import Provider\nProvider(0)\n"
    (tmp_path / "libcuda.so.1").write_bytes(b"no library")
    done = with_pycuda("-c", text, driver=tmp_path)
    assert done.returncode == 1 and "MissingDependencyError: pycuda cannot be loaded (" in done.stderr, done.stderr
