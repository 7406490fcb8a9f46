"""Labelled images: both layouts, what identifies them, and every bad one refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlpdeploy.errors import ImageError, UsageError
from mlpdeploy.evaluation.data import read_data, spread_evenly
from mlpdeploy.images import preprocess
from mlpdeploy.manifest import Preprocessing

RGB = Preprocessing((8, 8), 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3, "RGB")
GREY = Preprocessing((8, 8), 1.0, "bicubic", (0.5,), (0.25,), "L")


def folder(root: Path, *, classes: int = 3, images: int = 2) -> Path:
    for label in range(classes):
        (root / f"c{label}").mkdir(parents=True)
        for number in range(images):
            Image.new("RGB", (9, 8), (label, number, 0)).save(root / f"c{label}" / f"{number}.png")
    return root


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_a_folder(tmp_path: Path) -> None:
    (root := folder(tmp_path / "data") / ".cache").mkdir()
    (root.parent / "README.md").write_text("not an image")
    data = read_data(root.parent, (), 3)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.class_names == {0: "c0", 1: "c1", 2: "c2"}
    assert data.name(3).endswith("c1/1.png")
    assert data.tensor(0, RGB).shape == (3, 8, 8)
    assert data.tensor(0, GREY).shape == (1, 8, 8)


def test_a_folder_is_another_one_after_any_change(tmp_path: Path) -> None:
    root = folder(tmp_path / "data")
    before = read_data(root, (), 3).sha256()
    assert read_data(root, (), 3).sha256() == before
    assert read_data(root, (), 3).limited(4).sha256() != before
    assert read_data(root, (), 3, {"c0": 1, "c1": 0, "c2": 2}).sha256() != before
    os.utime(root / "c0" / "0.png", ns=(1, 1))
    assert read_data(root, (), 3).sha256() != before


@pytest.mark.parametrize("problem", ["empty class", "stray", "no classes", "missing", "text"])
def test_bad_folders(tmp_path: Path, problem: str) -> None:
    root = folder(tmp_path / "data")
    if problem == "empty class":
        (root / "c3").mkdir()
        expected, source = "c3 holds no image", root
    elif problem == "stray":
        Image.new("RGB", (9, 8)).save(root / "stray.jpg")
        expected, source = "stray.jpg lies in no class folder", root
    elif problem == "no classes":
        (source := tmp_path / "empty").mkdir()
        expected = "has no class folders"
    elif problem == "missing":
        expected, source = "does not exist", tmp_path / "nothing"
    else:
        (source := tmp_path / "x.npz").write_text("no archive")
        expected = "is no .npz file"
    with pytest.raises(UsageError, match=expected):
        read_data(source, (), 4 if problem == "empty class" else 3)


def test_an_unreadable_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    root = folder(tmp_path / "data")
    (root / "c1" / "0.png").write_bytes(b"no picture")
    (root / "c1" / "2.png").symlink_to(root / "gone.png")
    data = read_data(root, (), 3)
    assert data.sha256()
    found = {data.name(index): data.tensor(index, RGB) for index in range(len(data))}
    bad = [name for name, value in found.items() if isinstance(value, ImageError)]
    assert [Path(name).name for name in bad] == ["0.png", "2.png"]
    assert all(name in str(found[name]) for name in bad)


@pytest.mark.parametrize("shape", [(4, 9, 7), (4, 9, 7, 1), (4, 9, 7, 3)])
def test_uint8_pictures(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = read_data(npz(tmp_path / "x.npz", images=images, labels=np.arange(4)), (), 4)
    assert not data.raw
    for settings in (RGB, GREY):
        expected = preprocess(Image.fromarray(images[2].squeeze()), settings)
        np.testing.assert_array_equal(data.tensor(2, settings), expected, strict=True)


def test_float32_tensors_are_fed_as_they_are(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    data = read_data(npz(tmp_path / "x.npz", images=images, labels=np.array([0, 1, 0, 1], np.int8)), (), 2)
    assert data.raw
    np.testing.assert_array_equal(data.tensor(3, None), images[3], strict=True)
    assert data.limited(2).sha256() != data.sha256()


PICTURES = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PICTURES}, "lacks the array 'labels'; it has images"),
        ({"x": PICTURES, "labels": np.zeros(4, int)}, "lacks the array 'images'"),
        ({"images": PICTURES, "labels": np.array([0, 1, 2, 3])}, "labels go from 0 to 3; wanted 0 to 2"),
        ({"images": PICTURES, "labels": np.array([0, 1, 2, -1])}, "labels go from -1 to 2"),
        ({"images": PICTURES, "labels": np.zeros(3, int)}, r"labels is int64 \(3,\)"),
        ({"images": PICTURES, "labels": np.zeros(4)}, "labels is float64"),
        ({"images": PICTURES, "labels": np.zeros((4, 1), int)}, "labels is int64"),
        ({"images": PICTURES.transpose(0, 3, 1, 2), "labels": np.zeros(4, int)}, "turn it"),
        ({"images": PICTURES.astype(np.float64), "labels": np.zeros(4, int)}, "images is float64"),
        ({"images": PICTURES[:0], "labels": np.zeros(0, int)}, r"images is uint8 \(0, 8, 8, 3\)"),
        ({"images": np.array([{}] * 4), "labels": np.zeros(4, int)}, "cannot be read"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_data(npz(tmp_path / "x.npz", **arrays), (), 3)


def test_a_single_array_or_a_truncated_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PICTURES)
    with pytest.raises(UsageError, match=r"is no \.npz file"):
        read_data(tmp_path / "x.npy", (), 3)
    path = npz(tmp_path / "y.npz", images=PICTURES, labels=np.zeros(4, int))
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:-100])
    with pytest.raises(UsageError, match=r"is no \.npz file"):
        read_data(path, (), 3)
    whole[200] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(UsageError, match="cannot be read"):
        read_data(path, (), 3)


def test_a_class_map_is_for_folders(tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", images=PICTURES, labels=np.zeros(4, int))
    with pytest.raises(UsageError, match="a class map for"):
        read_data(path, (), 3, {"a": 0})


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(1, 90))
def test_a_limit_takes_evenly_from_all_classes(values: list[int], count: int) -> None:
    labels = np.array(values)
    chosen = spread_evenly(labels, count)
    assert len(chosen) == len(set(chosen.tolist())) == min(count, len(labels))
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, spread_evenly(labels, count))
    taken, there = np.bincount(labels[chosen], minlength=5), np.bincount(labels, minlength=5)
    most = taken.max()
    # A class gives one less than the others at most, unless it has no more.
    assert all(taken[label] >= min(there[label], most - 1) for label in range(5))


def test_no_limit_is_everything() -> None:
    assert spread_evenly(np.zeros(5, int), None).tolist() == [0, 1, 2, 3, 4]
