"""Artifacts of the small models in tiny.py, and how the tests are shared out among processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny import tiny_asmlp

from mlpdeploy.export.add import lower_artifact
from mlpdeploy.export.export import export_model

if find_spec("xdist"):
    from sharing import pytest_xdist_make_scheduler  # noqa: F401 (a hook)

torch.set_num_threads(2)
# Test files import ONNX Runtime as it is: it would report to its maker, and leave `.ses` in the temporary folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several processes a processor of its own: two that use both slow each other down."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker and hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[int(worker) % len(processors)]})
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified artifact of the small AS-MLP; do not change it, see `artifact`."""
    directory = tmp_path_factory.mktemp("artifacts") / "tiny"
    export_model(tiny_asmlp(), directory)
    return directory


@pytest.fixture(scope="session")
def exported_for_all(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a file for OpenVINO beside the CPU's; do not change it."""
    directory = Path(shutil.copytree(exported, tmp_path_factory.mktemp("artifacts") / "all"))
    lower_artifact(directory, "openvino", verify=False)
    return directory


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    """A copy of `exported` that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "tiny"))


@pytest.fixture
def flip_byte() -> Callable[[Path], None]:
    """Change one byte in the middle of a file."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)

    return flip
