"""`mlpdeploy eval` as a user types it: table, files, a kill in the middle, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mlpdeploy.cli import main

Labelled = Callable[[int], Path]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", "--threads", "1", *map(str, arguments)])


def test_the_table(exported: Path, labelled: Labelled) -> None:
    result = run(exported, "--data", labelled(6))
    assert result.exit_code == 0, result.output
    head, torch, ours, comparison, last = result.stdout.splitlines()
    assert head.split()[:3] == ["artifact", "precision", "backend"]
    assert torch.split()[:5] == ["tiny", "fp32", "PyTorch", "90.00", "79.9-95.3"]
    assert ours.split()[:5] == ["tiny", "fp32", "onnxruntime", "90.00", "79.9-95.3"]
    assert comparison == (
        "tiny, fp32, onnxruntime against tiny, PyTorch: +0.00 points, right and wrong on the same images"
    )
    assert last.startswith("60 images of ")
    assert "random weights" in result.stderr


def test_json_and_files(exported: Path, labelled: Labelled, tmp_path: Path) -> None:
    output, html = tmp_path / "new" / "r.json", tmp_path / "r.html"
    result = run(exported, "--data", labelled(6), "--no-torch", "--json", "-o", output, "--html", html)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == json.loads(output.read_text())
    assert report["format"] == "mlpdeploy-evaluation"
    assert [row["backend"] for row in report["results"]] == ["onnxruntime"]
    assert report["results"][0]["quality"]["top1"]["hits"] == 54
    assert html.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--data", "nothing.npz"), 2, "nothing.npz does not exist"),
        (("--data", "{data}", "--backend", "onnx"), 2, "unknown backend 'onnx'"),
        (("--data", "{data}", "--batch", "0"), 2, "batch is 0"),
        (("--data", "{data}", "--class-map", "{data}"), 2, "class map"),
        ((), 2, "--data"),
    ],
)
def test_refusals(exported: Path, labelled: Labelled, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run(exported, "--no-torch", *[part.format(data=labelled(0)) for part in arguments])
    assert result.exit_code == code
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output


def started(exported: Path, tmp_path: Path, *more: object) -> tuple[subprocess.Popen[str], list[str]]:
    """Return a process that evaluates 4000 images one by one, when it has computed some of them, and its arguments."""
    np.savez(
        tmp_path / "x.npz",
        images=np.random.default_rng(0).normal(size=(4000, 3, 32, 32)).astype(np.float32),
        labels=np.arange(4000) % 7,
    )
    arguments = ["eval", str(exported), "--data", str(tmp_path / "x.npz"), "--no-torch", "--threads", "1", "--json"]
    arguments += map(str, more)
    command = [sys.executable, "-m", "mlpdeploy", *arguments, "--batch", "1"]
    # Tests that run in the background of a shell ignore Ctrl-C, and so would this process.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    rows = tmp_path / "state" / "0.rows"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not (rows.exists() and rows.stat().st_size > 500):
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()
    return process, arguments


def test_killed_and_continued_equals_one_go(exported: Path, tmp_path: Path) -> None:
    process, arguments = started(exported, tmp_path, "--resume", tmp_path / "state")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    computed = (tmp_path / "state" / "0.rows").stat().st_size // 33
    assert 0 < computed < 4000
    continued = CliRunner().invoke(main, arguments)
    assert continued.exit_code == 0, continued.output
    assert f"4000 images, {computed} of them there already" in continued.stderr
    whole = CliRunner().invoke(main, arguments[:-2])
    (one,), (other,) = json.loads(continued.stdout)["results"], json.loads(whole.stdout)["results"]
    assert one["quality"]["top1"]["total"] == 4000
    for result in (one, other):
        result.pop("images_per_s")
        for figure in ("nll", "ece", "reliability"):
            # Another batch size is another order of summation.
            assert result["quality"].pop(figure) is not None
    assert one == other


def test_ctrl_c_says_how_to_go_on(exported: Path, tmp_path: Path) -> None:
    process, arguments = started(exported, tmp_path, "--resume", tmp_path / "state")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    last = stderr.strip().splitlines()[-1]
    assert last == (
        f"mlpdeploy: stopped; what was computed is kept in {tmp_path / 'state'}; run the same command again to go on"
    )
    assert "Traceback" not in stderr
    assert CliRunner().invoke(main, arguments).exit_code == 0
