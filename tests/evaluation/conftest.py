"""Images of random pixels whose labels are what the model says, so that its accuracy is known exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlpdeploy.images import preprocess
from mlpdeploy.manifest import read_manifest
from mlpdeploy.runtime.loading import load

IMAGES = 60


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """(60, 40, 36, 3) uint8: noise of random colour and contrast, so that the tiny model sees several classes."""
    generator = np.random.default_rng(0)
    level = generator.integers(0, 256, (IMAGES, 1, 1, 3))
    noise = generator.normal(0, 1, (IMAGES, 40, 36, 3)) * generator.uniform(5, 120, (IMAGES, 1, 1, 1))
    return np.clip(level + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def said(exported: Path, pictures: np.ndarray) -> np.ndarray:
    """(60,) int64: PyTorch's best classes for the pictures."""
    from PIL import Image

    settings = read_manifest(exported).preprocessing
    assert settings is not None
    with load(exported, "torch") as session:
        tensors = np.stack([preprocess(Image.fromarray(picture), settings) for picture in pictures])
        classes: np.ndarray = session.run({"input": tensors})["logits"].argmax(axis=1)
    assert len(np.unique(classes)) > 2, "the pictures do not tell classes apart"
    return classes


@pytest.fixture
def labelled(tmp_path: Path, pictures: np.ndarray, said: np.ndarray) -> Callable[[int], Path]:
    """Return a function that writes the pictures with PyTorch's classes, of which the first `wrong` are changed."""

    def write(wrong: int) -> Path:
        labels = said.copy()
        labels[:wrong] = (labels[:wrong] + 1) % 7
        path = tmp_path / f"{wrong}.npz"
        np.savez(path, images=pictures, labels=labels)
        return path

    return write
