"""The README's commands and program, run as they stand there."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

import mlpdeploy
from mlpdeploy.commands.bench import bench
from mlpdeploy.images import sample_photographs
from mlpdeploy.models import registry

ROOT = Path(mlpdeploy.__file__).parent.parent
README = (ROOT / "README.md").read_text()
USE = README.partition("## Use it")[2]
COMMANDS = [line.partition("  #")[0].strip() for line in re.findall(r"^(mlpdeploy .*)$", USE, re.MULTILINE)]
MEASURES = "bench"  # minutes long: its options are parsed here, and it runs in `make bench` and in its own tests
SERVES = "serve"  # until it is told to stop


def test_every_command_is_there() -> None:
    assert [command.split()[1] for command in COMMANDS] == ["export", "predict", "bench", "serve"]


def test_bench_takes_the_options_of_the_readme() -> None:
    (command,) = [shlex.split(command)[2:] for command in COMMANDS if command.split()[1] == MEASURES]
    with bench.make_context(MEASURES, command) as context:
        assert str(context.params["plot"]) == "speed.png"


@pytest.mark.slow
def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # AS-MLP-S with one block in each stage: the commands tell its sizes from the checkpoint, the program by its name.
    entry = registry.resolve_model("asmlp_s")
    small = dataclasses.replace(entry, config=dataclasses.replace(entry.config, depths=(1, 1, 1, 1)))
    monkeypatch.setitem(registry._BY_NAME, "asmlp_s", small)
    torch.save({"model": mlpdeploy.create_model("asmlp_s", seed=1).state_dict()}, tmp_path / "asmlp_s.pth")
    (tmp_path / "photo.jpg").write_bytes(sample_photographs()[0].read_bytes())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in COMMANDS:
        if command.split()[1] == MEASURES:
            continue
        if command.split()[1] == SERVES:
            ask_a_server(command, tmp_path, path)
            continue
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "random" not in done.stdout + done.stderr
    (program,) = re.findall(r"```python\n(.*?)```", USE, re.DOTALL)
    shutil.rmtree(tmp_path / "asmlp_s")  # the command line's, which the program would refuse to replace
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(program, names)
    assert names["logits"].shape == (1, 1000)


def ask_a_server(command: str, folder: Path, path: str) -> None:
    """Run the README's server on free ports, and ask it what the README's curl asks."""
    (address,) = re.findall(r"http://127\.0\.0\.1:8000(/\S+)'", USE)
    words = [*shlex.split(command), "--http-port", "0", "--grpc-port", "0", "--json"]
    process = subprocess.Popen(words, cwd=folder, env={**os.environ, "PATH": path}, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        server = json.loads(process.stdout.readline())["http"]
        request = urllib.request.Request(server + address, (folder / "photo.jpg").read_bytes())
        with urllib.request.urlopen(request, timeout=60) as response:
            assert "probability" in response.read().decode()
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_the_speed_tables_are_those_of_the_results_files() -> None:
    tables = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))
    assert tables["table"]() in README
    assert tables["processors_table"]() in README


def test_linked_documents_exist() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
