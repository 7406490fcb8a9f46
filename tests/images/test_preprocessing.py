"""Preprocessing: torchvision's, bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from picture_files import photo
from PIL import Image, ImageOps

from mlpdeploy.errors import ImageError, UsageError
from mlpdeploy.images import MAX_PIXELS, preprocess
from mlpdeploy.manifest import Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def settings_for(
    height_width: tuple[int, int] = (224, 224),
    crop_pct: float = 0.875,
    interpolation: str = "bicubic",
    mean: tuple[float, ...] = IMAGENET["mean"],
    std: tuple[float, ...] = IMAGENET["std"],
    color_order: str = "RGB",
) -> Preprocessing:
    return Preprocessing(height_width, crop_pct, interpolation, mean, std, color_order)


def as_torchvision_does(image: Image.Image, p: Preprocessing) -> np.ndarray:
    """Return what Resize(size), CenterCrop, ToTensor and Normalize give, written from their documentation."""
    torch = pytest.importorskip("torch")
    crop_height, crop_width = p.height_width
    assert crop_height == crop_width
    size = math.floor(crop_height / p.crop_pct)
    short, long = min(image.size), max(image.size)
    if short != size:
        new_long = int(size * long / short)
        tall = image.height >= image.width
        filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
        image = image.resize((size, new_long) if tall else (new_long, size), filters[p.interpolation])
    missing_width, missing_height = max(crop_width - image.width, 0), max(crop_height - image.height, 0)
    left, top = missing_width // 2, missing_height // 2
    border = (left, top, missing_width - left, missing_height - top)
    image = ImageOps.expand(image, border, fill=0)
    top, left = round((image.height - crop_height) / 2.0), round((image.width - crop_width) / 2.0)
    array = np.array(image)[top : top + crop_height, left : left + crop_width].reshape(crop_height, crop_width, -1)
    tensor = torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (p.mean, p.std))
    return tensor.sub(mean).div(std).numpy()


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    crop=st.integers(2, 96),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 0.96, 1.0, 1.25]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
@example(height=66, width=85, crop=64, crop_pct=0.96, interpolation="bicubic")  # the crop starts at 10.5: at 10
@example(height=73, width=73, crop=63, crop_pct=0.863, interpolation="bicubic")  # no resize
@example(height=50, width=50, crop=65, crop_pct=1.25, interpolation="bicubic")  # padded by 6 and 7
def test_preprocess_equals_torchvision(height, width, crop, crop_pct, interpolation):
    image = photo(height, width)
    p = settings_for((crop, crop), crop_pct, interpolation)
    got = preprocess(image, p)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, as_torchvision_does(image, p), strict=True)


@pytest.mark.parametrize("crop", [(64, 64), (40, 96)], ids=["square", "oblong"])
def test_preprocess_equals_timm(crop):
    pytest.importorskip("timm")
    from timm.data import create_transform

    # timm resizes for an oblong crop with bilinear interpolation, whatever it is asked for.
    p = settings_for(crop, 0.9, "bicubic" if crop[0] == crop[1] else "bilinear")
    transform = create_transform((3, *crop), interpolation=p.interpolation, crop_pct=p.crop_pct, mean=p.mean, std=p.std)
    for seed, (height, width) in enumerate([(200, 301), (301, 200), (77, 77), (30, 45), (720, 1280)]):
        image = photo(height, width, seed)
        np.testing.assert_array_equal(preprocess(image, p), transform(image).numpy(), strict=True)


ODD_SIZES = [(1, 1), (7, 129), (223, 225), (224, 224), (248, 249), (255, 256), (333, 500), (1001, 77)]


# The published models' own settings: AS-MLP and most of Vision Permutator at 0.9, its largest at 0.875.
@pytest.mark.parametrize("crop_pct", [0.9, 0.875, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_preprocess_equals_timm_for_both_families(crop_pct, interpolation, mode):
    pytest.importorskip("timm")
    from timm.data import create_transform

    mean, std = ((0.449,), (0.226,)) if mode == "L" else (IMAGENET["mean"], IMAGENET["std"])
    p = settings_for((224, 224), crop_pct, interpolation, mean, std, mode)
    shape = (len(mean), *p.height_width)
    transform = create_transform(shape, interpolation=interpolation, crop_pct=crop_pct, mean=mean, std=std)
    for seed, (height, width) in enumerate(ODD_SIZES):
        image = photo(height, width, seed).convert(mode)
        np.testing.assert_array_equal(preprocess(image, p), transform(image).numpy(), strict=True)


@pytest.mark.parametrize("height_width", [(300, 200), (200, 300), (50, 400), (37, 41)])
@pytest.mark.parametrize("crop", [(40, 96), (96, 40)])
def test_an_oblong_crop_is_covered_and_keeps_the_aspect(height_width, crop):
    # A disc stays round: its extent is the same number of pixels along both axes.
    height, width = height_width
    rows, columns = np.mgrid[:height, :width]
    radius = min(height_width) / 3
    inside = (rows - (height - 1) / 2) ** 2 + (columns - (width - 1) / 2) ** 2 <= radius**2
    disc = Image.fromarray(inside * np.uint8(255)).convert("RGB")
    p = settings_for(crop, 1.0, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    got = preprocess(disc, p)
    assert got.shape == (3, *crop)
    scale = max(crop[0] / height, crop[1] / width)
    for axis, side in ((0, crop[0]), (1, crop[1])):
        extent = (got[0] > 0.5).any(axis=1 - axis).sum()
        assert extent == pytest.approx(min(2 * radius * scale, side), abs=2)
    white = preprocess(Image.new("RGB", (width, height), "white"), p)
    assert white.min() == 1  # no border


def test_preprocess_of_one_grey_channel():
    image = photo(60, 50)
    p = settings_for((32, 32), 0.9, "bicubic", (0.5,), (0.25,), "L")
    got = preprocess(image, p)
    assert got.shape == (1, 32, 32)
    np.testing.assert_array_equal(got, as_torchvision_does(image.convert("L"), p), strict=True)


def test_preprocess_leaves_the_picture_as_it_is():
    image = photo(40, 30)
    before = image.tobytes()
    preprocess(image, settings_for((16, 16)))
    assert image.tobytes() == before


def test_preprocess_refuses_a_picture_that_would_explode(monkeypatch):
    image = Image.new("RGB", (MAX_PIXELS // 200, 1))
    monkeypatch.setattr(Image.Image, "resize", lambda *arguments: pytest.fail("resized"))
    with pytest.raises(ImageError, match=r"320000 x 1 pixels is too elongated"):
        preprocess(image, settings_for())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interpolation": "lanczos"}, "lanczos"),
        ({"color_order": "BGR"}, "BGR"),
        ({"mean": (0.5,)}, "3 numbers"),
        ({"std": (1.0, 1.0, 0.0)}, "zero"),
        ({"std": (1.0, 1.0, -0.5)}, "above zero"),
        ({"std": (1.0, 1.0, math.nan)}, "finite"),
        ({"mean": (0.0, math.inf, 0.0)}, "finite"),
        ({"crop_pct": 0.0}, "crop_pct 0"),
        ({"crop_pct": math.nan}, "crop_pct nan"),
        ({"crop_pct": 500.0}, "crop_pct 500"),
        ({"crop_pct": 5e-324}, "resized ones of at most 64000000"),
        ({"crop_pct": 3e-6, "height_width": (32, 224)}, "resized ones"),
        ({"height_width": (0, 224)}, "0, 224"),
    ],
)
def test_preprocess_refuses_impossible_settings(changes, words):
    with pytest.raises(UsageError, match=words):
        preprocess(photo(8, 8), settings_for(**changes))
