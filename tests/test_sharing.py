"""Tests of a file run in one process, and so do those of a folder that compiles."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xdist")
HERE = Path(__file__).parent


def test_a_file_and_a_folder_that_compiles_stay_together(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    body = "import time\n\nimport pytest\n\n\n@pytest.mark.parametrize('i', range(4))\ndef test(i): time.sleep(0.02)\n"
    for name in ("cpp/test_1.py", "cpp/test_2.py", "other/test_3.py", "other/test_4.py"):
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-p",
        "sharing",
        "--numprocesses",
        "2",
        "--dist",
        "loadfile",
        "tests",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), environment.get("PYTHONPATH"))))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    workers: dict[str, set[str]] = {}
    for worker, place in re.findall(r"\[(gw\d)\].* tests/(\S+)::test", done.stdout):
        workers.setdefault("cpp" if place.startswith("cpp/") else place, set()).add(worker)
    assert {place: len(names) for place, names in workers.items()} == {
        "cpp": 1,
        "other/test_3.py": 1,
        "other/test_4.py": 1,
    }
    assert len(set.union(*workers.values())) == 2
