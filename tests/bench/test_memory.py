"""Memory is measured in a process of its own, and in the same way for all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlpdeploy.bench.candidates import OURS, Source
from mlpdeploy.bench.memory import MemoryUse, load_and_run, main, measure_memory, status_bytes, summarize

linux_only = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
SHAPE = (1, 3, 32, 32)


@linux_only
@pytest.mark.parametrize("loader", ["artifact", "canonical", "onnx"])
def test_every_loader_gives_all_figures(exported: Path, loader: str) -> None:
    path = exported / "model.cpu.onnx" if loader == "onnx" else exported
    use = measure_memory(OURS, Source(loader, path), SHAPE, 1)
    assert (use.name, use.batch, use.reason) == (OURS, 1, "")
    assert use.load_ms is not None
    assert use.load_ms > 0
    assert use.base_rss_bytes is not None
    assert use.peak_rss_bytes is not None
    assert 10_000_000 < use.base_rss_bytes < use.peak_rss_bytes


@linux_only
def test_the_parents_memory_is_not_counted(exported: Path) -> None:
    ballast = np.ones(400_000_000, np.uint8)
    use = measure_memory(OURS, Source("artifact", exported), SHAPE, 1, repeats=1)
    assert use.peak_rss_bytes is not None
    assert use.peak_rss_bytes < ballast.nbytes


@linux_only
def test_a_peak_stays_when_the_memory_is_freed() -> None:
    before = status_bytes("VmHWM")
    assert before is not None
    size = before + 50_000_000
    np.ones(size, np.uint8).sum()
    after, now = status_bytes("VmHWM"), status_bytes("VmRSS")
    assert after is not None
    assert now is not None
    assert after > size > now
    assert status_bytes("VmNothing") is None


def test_the_process_imports_no_pytorch(exported: Path) -> None:
    code = (
        "import sys; from mlpdeploy.bench.memory import main;"
        f"main(['--loader', 'artifact', '--shape', '1,3,32,32', '--threads', '1', {str(exported)!r}]);"
        "print([name for name in ('torch', 'onnx', 'matplotlib', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_process_that_fails_is_a_reason_not_an_error(tmp_path: Path) -> None:
    use = measure_memory("naive-dynamo", Source("onnx", tmp_path / "missing.onnx"), SHAPE, 1)
    assert (use.load_ms, use.peak_rss_bytes) == (None, None)
    assert use.reason.startswith("the process ended with 1 (")
    assert "missing.onnx" in use.reason


def test_a_process_that_hangs_is_ended(exported: Path) -> None:
    use = measure_memory(OURS, Source("artifact", exported), SHAPE, 1, timeout_s=0.01)
    assert use.reason == "not ready after 0.01 s"


def test_times_are_medians_and_sizes_maxima() -> None:
    figures = [
        {"load_ms": load, "first_run_ms": 2 * load, "base_rss_bytes": size, "peak_rss_bytes": 2 * size}
        for load, size in ((9.0, 10), (1.0, 30), (2.0, 20))
    ]
    assert summarize(OURS, 8, figures) == MemoryUse(OURS, 8, 2.0, 4.0, 30, 60)
    figures[1]["peak_rss_bytes"] = None
    use = summarize(OURS, 8, figures)
    assert (use.load_ms, use.peak_rss_bytes, use.reason) == (2.0, None, "this system tells no peak memory")


def test_a_system_without_proc_gives_times_only(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlpdeploy.bench.memory.status_bytes", lambda field: None)
    main(["--loader", "artifact", "--shape", "1,3,32,32", "--threads", "1", str(exported)])
    figures = json.loads(capsys.readouterr().out)
    assert figures["peak_rss_bytes"] is None
    assert figures["load_ms"] > 0
    assert load_and_run(Source("artifact", exported), SHAPE, 1).keys() == figures.keys()
