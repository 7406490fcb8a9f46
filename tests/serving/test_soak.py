"""`benchmarks/soak.py` for seconds instead of an hour, and that it finds what it looks for."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    """The script as a module."""
    pytest.importorskip("grpc")
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


def ran(exported: Path, output: Path, *options: str) -> dict[str, Any]:
    """Run the script and return its results."""
    command = [sys.executable, str(SCRIPT), f"tiny={exported}", "--output", str(output), "--load", "0.3", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_mixed_clients_get_their_own_answers(exported: Path, tmp_path: Path) -> None:
    found = ran(exported, tmp_path / "soak.json", "--minutes", "0.1")
    kinds = {key.split()[0] for key in found["by_kind_and_status"]}
    assert {"rest", "grpc", "jpeg"} <= kinds and found["requests"] > 20
    assert found["passed"] and not found["faults"]
    assert len(found["samples"]["front_bytes"]) > 5 and min(found["samples"]["front_bytes"]) > 1e6
    assert (tmp_path / "soak.png").is_file()


def test_killed_workers_cost_no_answer_that_is_wrong_or_late(exported: Path, tmp_path: Path) -> None:
    found = ran(exported, tmp_path / "kills.json", "--minutes", "0.12", "--kill-every", "1.5")
    assert found["kills"] >= 2 and found["requests"] > 20
    assert found["passed"] and not found["faults"]


def client_of(soak: ModuleType) -> Any:
    """A client that asks nobody, of a model whose answer to row k is (k, -k)."""
    expected = np.stack([np.arange(64.0), -np.arange(64.0)], 1).astype(np.float32)
    model = soak.Model("m", "x", np.zeros((64, 3), np.float32), expected, [], 1.0)
    channel = grpc.insecure_channel("127.0.0.1:1")
    return soak.Client(0, model, 1, channel, 1.0, soak.Tally(False), threading.Event())


def test_wrong_mixed_up_and_missing_rows_are_seen(soak: ModuleType) -> None:
    client, right = client_of(soak), np.float32([[3, -3], [5, -5]])
    assert client._check([3, 5], "id", "id", right.tobytes()) == ""
    assert "off by 2" in client._check([3, 5], "id", "id", right[::-1].tobytes())
    assert "off by nan" in client._check([3, 5], "id", "id", (right * np.nan).tobytes())
    assert "answer to other" in client._check([3, 5], "id", "other", right.tobytes())
    assert "8 bytes" in client._check([3, 5], "id", "id", right[:1].tobytes())


def test_what_is_tolerated_depends_on_the_kills(soak: ModuleType) -> None:
    for allowed in (False, True):
        tally = soak.Tally(allowed)
        tally.note("rest", 200, 0.1)
        tally.note("rest", 503, 0.1)
        tally.note("grpc", grpc.StatusCode.UNAVAILABLE, 0.1)
        assert len(tally.faults) == (0 if allowed else 2)
        tally.note("rest", 500, 0.1)
        tally.note("grpc", grpc.StatusCode.OK, 60.0)
        assert len(tally.faults) == (2 if allowed else 4)


def test_growth_is_told_from_warming_up(soak: ModuleType) -> None:
    minutes = np.linspace(0, 60, 240)
    noise = np.random.default_rng(0).normal(0, 1 << 20, 240)
    warmed = 100e6 + 50e6 * np.minimum(minutes / 10, 1) + noise
    assert not soak.growth(list(minutes), list(warmed))["grows"]
    leak = warmed + (20 << 20) * minutes / 40
    found = soak.growth(list(minutes), list(leak))
    assert found["grows"] and found["bytes_per_hour"] == pytest.approx(30 << 20, rel=0.1)
    assert not soak.growth(list(minutes / 60), list(leak))["grows"]  # too short to judge
