"""Pictures by the library of CPU kernels: the bits of Pillow and numpy."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import SETTINGS, SIZES, noise
from PIL import Image

from mlpdeploy.images import preprocess, read_image, sample_photographs
from mlpdeploy.manifest import Preprocessing
from mlpdeploy.plugins import cpu_pictures

Prepare = Callable[[Image.Image, Preprocessing], np.ndarray]


@pytest.fixture
def by_library(picture_kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """preprocess, by the library."""
    function = cpu_pictures.function_of(picture_kernels)
    calls: list[int] = []

    def counted(*arguments: int) -> int:
        calls.append(1)
        return int(function(*arguments))

    def prepare(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
        monkeypatch.setattr(cpu_pictures, "_function", lambda: counted)
        before = len(calls)
        result = preprocess(image, preprocessing)
        assert len(calls) == before + 1
        return result

    return prepare


@pytest.fixture
def by_pillow(monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """preprocess, without the library."""

    def prepare(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
        monkeypatch.setattr(cpu_pictures, "_function", lambda: None)
        return preprocess(image, preprocessing)

    return prepare


@pytest.mark.parametrize("preprocessing", SETTINGS, ids=lambda p: f"{p.height_width}-{p.interpolation}-{p.color_order}")
def test_every_bit_is_pillows(preprocessing: Preprocessing, by_library: Prepare, by_pillow: Prepare) -> None:
    generator = random.Random(0)
    sizes = SIZES + [(generator.randint(1, 300), generator.randint(1, 300)) for _ in range(40)]
    for seed, size in enumerate(sizes):
        image = noise(size, seed)
        assert by_library(image, preprocessing).tobytes() == by_pillow(image, preprocessing).tobytes(), size


@pytest.mark.parametrize("path", sample_photographs(), ids=lambda path: path.stem)
def test_photographs(path: Path, by_library: Prepare, by_pillow: Prepare) -> None:
    image = read_image(path)
    for preprocessing in SETTINGS:
        assert by_library(image, preprocessing).tobytes() == by_pillow(image, preprocessing).tobytes()


def test_pixels_that_pillow_has_in_several_places(by_library: Prepare, by_pillow: Prepare) -> None:
    image = noise((3000, 2000), 0)  # 24 MB: Pillow allocates such in blocks of 16 MB
    with pytest.raises(ValueError, match="not contiguous"):
        image.__arrow_c_array__()
    assert by_library(image, SETTINGS[0]).tobytes() == by_pillow(image, SETTINGS[0]).tobytes()


def test_without_arrow_the_pixels_are_copied(
    by_library: Prepare, by_pillow: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise((97, 131), 0)
    monkeypatch.delattr(Image.Image, "__arrow_c_array__")
    for preprocessing in SETTINGS:
        assert by_library(image, preprocessing).tobytes() == by_pillow(image, preprocessing).tobytes()
