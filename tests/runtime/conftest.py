"""Sessions of the small AS-MLP: on each of the CPU's backends, and on a GPU that is simulated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cpu_runs import CPU_BACKENDS
from fakes.machine import Machine

from mlpdeploy.env import installed_version
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import Session


@pytest.fixture(params=CPU_BACKENDS)
def session(request: pytest.FixtureRequest, exported_for_all: Path) -> Iterator[Session]:
    if installed_version(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    with load(exported_for_all, request.param, "cpu", max_batch=4) as opened:
        yield opened


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)
