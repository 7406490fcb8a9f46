"""Servers of the small model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from running import Running, running

from mlpdeploy import load


@pytest.fixture(scope="session")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of the small AS-MLP as `tiny`; no test may stop it."""
    with running(tmp_path_factory.mktemp("server"), f"tiny={exported}", "--max-batch", "8") as server:
        yield server
        assert server.alive()


@pytest.fixture(scope="session")
def sharing(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of `tiny` whose clients may leave tensors in shared memory; no test may stop it."""
    with running(tmp_path_factory.mktemp("sharing"), f"tiny={exported}", "--shared-memory") as server:
        yield server
        assert server.alive()
        assert "Traceback" not in server.stderr.read_text()


@pytest.fixture(scope="session")
def rows() -> np.ndarray:
    """Inputs, (3, 3, 32, 32) float32."""
    return np.random.default_rng(5).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="session")
def logits(exported: Path, rows: np.ndarray) -> np.ndarray:
    """What the session gives for `rows`, (3, 7) float32."""
    with load(exported, threads=1) as session:
        return session.run({"input": rows})["logits"]
