"""Engines of the small AS-MLP on a simulated GPU, and what ONNX Runtime gives for the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes.machine import Machine
from tiny_engine import PROFILES

from mlpdeploy.runtime.loading import load


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((40, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="session")
def wanted(exported: Path, images: np.ndarray) -> np.ndarray:
    """(40, 7) float32: what ONNX Runtime gives."""
    with load(exported, device="cpu") as session:
        return session.run({"input": images})["logits"]


@pytest.fixture(scope="session")
def built(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with an engine of the newest version with two profiles; do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        return Machine(patch).built(exported, tmp_path_factory.mktemp("built") / "tiny", PROFILES)


@pytest.fixture
def own(machine: Machine, exported: Path, tmp_path: Path) -> Path:
    return machine.built(exported, tmp_path / "own", PROFILES)
