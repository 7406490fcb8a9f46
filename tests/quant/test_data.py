"""Sources of calibration images, what they are refused for, and what is read of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from calibration_inputs import IMAGES, SPEC
from PIL import Image

from mlpdeploy.errors import ImageError, UsageError
from mlpdeploy.images import preprocess, read_image
from mlpdeploy.manifest import Preprocessing
from mlpdeploy.quant.data import CalibrationData, calibration_images, evenly_spaced

P = Preprocessing((32, 32), 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3, "RGB")
PICTURES = np.random.default_rng(1).integers(0, 256, (12, 40, 48, 3), np.uint8)
Saved = Callable[[str, np.ndarray], Path]


def rows_of(data: CalibrationData) -> np.ndarray:
    return np.concatenate(list(data.batches(1)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{index:02}.png")
    return tmp_path


def test_every_source_of_pictures_gives_the_same_images(folder: Path, saved: Saved) -> None:
    wanted = np.stack([preprocess(read_image(folder / f"{index:02}.png"), P) for index in range(12)])
    (folder / "list.txt").write_text("\n".join(f"{index:02}.png" for index in range(12)) + "\n")
    sources = [
        folder,
        folder / "list.txt",
        sorted(folder.glob("*.png")),
        saved("a.npy", PICTURES),
        saved("a.npz", PICTURES),
    ]
    for source in sources:
        np.testing.assert_array_equal(rows_of(calibration_images(source, P, SPEC, 512)), wanted)


def test_grey_pictures_may_lack_the_axis_of_channels(saved: Saved) -> None:
    with_axis = calibration_images(saved("a.npy", PICTURES[..., :1]), P, SPEC, 512)
    without = calibration_images(saved("b.npy", PICTURES[..., 0]), P, SPEC, 512)
    np.testing.assert_array_equal(rows_of(without), rows_of(with_axis))


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_prepared_arrays_come_as_they_are(saved: Saved, name: str) -> None:
    data = calibration_images(saved(name, IMAGES), None, SPEC, 512)
    np.testing.assert_array_equal(rows_of(data), IMAGES)
    assert data.count == 16
    assert "16 different" in data.warnings[0]


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_limit_takes_evenly_spaced_rows(saved: Saved, name: str) -> None:
    data = calibration_images(saved(name, IMAGES), None, SPEC, 8)
    np.testing.assert_array_equal(rows_of(data), IMAGES[::2])
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]


def test_the_last_batch_is_filled_with_the_first_images(saved: Saved) -> None:
    data = calibration_images(saved("x.npy", IMAGES), None, SPEC, 10)
    batches = list(data.batches(4))
    assert [batch.shape for batch in batches] == [(4, 3, 32, 32)] * 3
    all_rows = rows_of(data)
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate([all_rows, all_rows[:2]]))
    assert [len(batch) for batch in data.batches(24)] == [24]


def test_identity_follows_content_order_and_preprocessing(folder: Path) -> None:
    first = calibration_images(folder, P, SPEC, 512).sha256
    assert calibration_images(folder, P, SPEC, 512).sha256 == first
    other = dataclasses.replace(P, mean=(0.4,) * 3)
    (folder / "00.png").rename(folder / "99.png")
    moved = calibration_images(folder, P, SPEC, 512).sha256
    assert len({first, moved, calibration_images(folder, other, SPEC, 512).sha256}) == 3


def test_bad_files_are_named_and_left_out_only_when_asked(folder: Path) -> None:
    (folder / "03.png").write_bytes(b"no picture")
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:200])
    with pytest.raises(ImageError, match=r"2 of 12 .*03\.png.*05\.png.*--skip-bad"):
        calibration_images(folder, P, SPEC, 512)
    data = calibration_images(folder, P, SPEC, 512, skip_bad=True)
    assert (data.count, len(data.skipped)) == (10, 2)
    assert "03.png" in data.warnings[1]
    assert len(rows_of(data)) == 10


def test_too_few(saved: Saved) -> None:
    with pytest.raises(UsageError, match="7 calibration images; wanted at least 8"):
        calibration_images(saved("x.npy", IMAGES[:7]), None, SPEC, 512)


@pytest.mark.parametrize("images", [np.full_like(IMAGES, 0.5), IMAGES[:1].repeat(16, 0), np.zeros_like(IMAGES)])
def test_constant_or_equal_images(saved: Saved, images: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"of which [01] are different and not constant"):
        calibration_images(saved("x.npy", images), None, SPEC, 512)


def test_constant_pictures(tmp_path: Path) -> None:
    for grey in range(12):
        Image.new("RGB", (40, 40), (grey,) * 3).save(tmp_path / f"{grey}.png")
    with pytest.raises(UsageError, match="0 are different"):
        calibration_images(tmp_path, P, SPEC, 512)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (IMAGES[:, :2], r"\(2, 32, 32\).*wanted \(3, 32, 32\)"),
        (IMAGES[:, :, :31], r"\(3, 31, 32\)"),
        (IMAGES.astype(np.float64), "float64"),
        (IMAGES[0], "shape"),
        (PICTURES.transpose(0, 3, 1, 2).copy(), "channels last"),
        (np.asfortranarray(IMAGES), "column by column"),
        (np.array([None, {}] * 8), "Python objects"),
    ],
)
def test_arrays_of_another_kind(saved: Saved, array: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        calibration_images(saved("x.npy", array), P, SPEC, 512)


def test_open_sizes_want_a_multiple(saved: Saved) -> None:
    spec = dataclasses.replace(SPEC, shape=("batch", 3, "32*height", "32*width"))
    assert calibration_images(saved("x.npy", IMAGES), None, spec, 512).count == 16
    with pytest.raises(UsageError, match="31, 32"):
        calibration_images(saved("y.npy", IMAGES[:, :, :31]), None, spec, 512)


def test_nan_names_the_row(saved: Saved) -> None:
    images = IMAGES.copy()
    images[5, 0, 3, 3] = np.nan
    with pytest.raises(UsageError, match="row 5 of"):
        calibration_images(saved("x.npy", images), None, SPEC, 512)


def test_files_that_are_no_arrays(tmp_path: Path, saved: Saved) -> None:
    broken = tmp_path / "b.npy"
    broken.write_bytes(saved("x.npy", IMAGES).read_bytes()[:-100])
    with pytest.raises(UsageError, match="ends within row 15"):
        calibration_images(broken, None, SPEC, 512)
    for name, content in (("c.npy", b"nothing"), ("d.npz", b"nothing")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="cannot be read"):
            calibration_images(tmp_path / name, None, SPEC, 512)
    np.savez(tmp_path / "e.npz", other=IMAGES)
    with pytest.raises(UsageError, match="no array 'images'"):
        calibration_images(tmp_path / "e.npz", None, SPEC, 512)
    with pytest.raises(UsageError, match="cannot be read"):
        calibration_images(tmp_path / "missing.npy", None, SPEC, 512)


def test_pictures_for_a_model_without_preprocessing(folder: Path) -> None:
    with pytest.raises(UsageError, match="no preprocessing"):
        calibration_images(folder, None, SPEC, 512)
