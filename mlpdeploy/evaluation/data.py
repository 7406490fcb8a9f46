"""Labelled images: a folder with one folder per class, or an .npz file; each becomes an input tensor when asked for."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mlpdeploy.classification import prepare
from mlpdeploy.errors import ImageError, UsageError
from mlpdeploy.evaluation.classes import class_indices
from mlpdeploy.images import SUFFIXES, find_images, preprocess
from mlpdeploy.manifest import Preprocessing, sha256_of

LIMIT_SEED = 0  # of the choice that `limit` makes


class LabelledImages(ABC):
    """Images and the index of each one's class.

    Attributes:
        source: the folder or file, as it was given.
        labels: (N,) int64.
        class_names: {class index: name} as the data tells it; empty where it has only numbers.
        raw: whether the images are input tensors already, so that no preprocessing applies.
    """

    raw = False

    def __init__(self, source: Path, labels: np.ndarray, class_names: dict[int, str]) -> None:
        self.source, self.labels, self.class_names = source, labels, class_names

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what to call an image in a message."""

    @abstractmethod
    def tensor(self, index: int, preprocessing: Preprocessing | None) -> np.ndarray | ImageError:
        """Return an image as (C, H, W) float32, or why it cannot be read; `preprocessing` is None for raw data only."""

    @abstractmethod
    def sha256(self) -> str:
        """Return a checksum over what identifies the images and their labels."""

    @abstractmethod
    def limited(self, count: int | None) -> LabelledImages:
        """Return `count` of the images, chosen by `spread_evenly`; all of them for None or a larger number."""


class FolderImages(LabelledImages):
    """Files in one folder per class."""

    def __init__(self, source: Path, labels: np.ndarray, class_names: dict[int, str], paths: list[Path]) -> None:
        super().__init__(source, labels, class_names)
        self._paths = paths

    def name(self, index: int) -> str:
        return str(self._paths[index])

    def tensor(self, index: int, preprocessing: Preprocessing | None) -> np.ndarray | ImageError:
        assert preprocessing is not None
        return prepare(self._paths[index], preprocessing)

    def sha256(self) -> str:
        """Return a checksum over each file's path in the folder, size, time of change and class; not over contents."""
        digest = hashlib.sha256()
        for path, label in zip(self._paths, self.labels, strict=True):
            try:
                status = path.stat()
            except OSError:  # a dangling link: reading it gives the error that names it
                digest.update(f"{path.relative_to(self.source)}\0missing\0{label}\n".encode("utf-8", "surrogateescape"))
                continue
            text = f"{path.relative_to(self.source)}\0{status.st_size}\0{status.st_mtime_ns}\0{label}\n"
            digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def limited(self, count: int | None) -> LabelledImages:
        chosen = spread_evenly(self.labels, count)
        return FolderImages(
            self.source, self.labels[chosen], self.class_names, [self._paths[index] for index in chosen]
        )


class ArrayImages(LabelledImages):
    """Images in memory: uint8 pictures, (N, H, W) or (N, H, W, C), or float32 input tensors, (N, C, H, W)."""

    def __init__(self, source: Path, labels: np.ndarray, images: np.ndarray, content: str) -> None:
        super().__init__(source, labels, {})
        self._images, self._content = images, content
        self.raw = images.dtype != np.uint8

    def name(self, index: int) -> str:
        return f"image {index} of {self.source}"

    def tensor(self, index: int, preprocessing: Preprocessing | None) -> np.ndarray | ImageError:
        if self.raw:
            return np.ascontiguousarray(self._images[index])
        from PIL import Image

        assert preprocessing is not None
        try:
            return preprocess(Image.fromarray(self._images[index]), preprocessing)
        except ImageError as error:
            return ImageError(f"{self.name(index)}: {error.got}", error.wanted, error.fix)

    def sha256(self) -> str:
        """Return a checksum over the file's bytes and the labels that are used."""
        return hashlib.sha256(self._content.encode() + self.labels.tobytes()).hexdigest()

    def limited(self, count: int | None) -> LabelledImages:
        chosen = spread_evenly(self.labels, count)
        return ArrayImages(self.source, self.labels[chosen], self._images[chosen], self._content)


def spread_evenly(labels: np.ndarray, count: int | None) -> np.ndarray:
    """Return the sorted indices of `count` images, as many of each class as there are, picked with a fixed seed.

    The classes take turns: each gives one image of its own shuffled ones until the count is reached. A class with few
    images gives all of them, so on data with uneven classes the share of a class changes.
    """
    if count is None or count >= len(labels):
        return np.arange(len(labels))
    shuffled = np.random.default_rng(LIMIT_SEED).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        turn[members] = np.arange(len(members))
    order = np.lexsort((labels, turn))
    return np.sort(order[:count])


def read_data(
    source: str | Path, model_labels: Sequence[str], classes: int, class_map: Mapping[str, int] | None = None
) -> LabelledImages:
    """Return the images of a folder with one folder per class, or of an .npz file with `images` and `labels`.

    Args:
        source: the folder or file.
        model_labels: of the model; empty where it has none.
        classes: of the model.
        class_map: {folder name: class index}; only for a folder.

    Raises:
        UsageError: there is no such thing, it is empty or of another form, or the classes do not fit the model.
    """
    source = Path(source)
    if source.is_dir():
        return _read_folder(source, model_labels, classes, class_map)
    if class_map is not None:
        raise UsageError(f"a class map for {source}", "a folder with one folder per class")
    if not source.exists():
        raise UsageError(f"{source} does not exist", "a folder with one folder per class, or an .npz file")
    return _read_npz(source, classes)


def _read_folder(
    source: Path, model_labels: Sequence[str], classes: int, class_map: Mapping[str, int] | None
) -> FolderImages:
    layout = "a folder with one folder of images per class"
    try:
        entries = sorted(path for path in source.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UsageError(f"{source} cannot be listed ({error.strerror})", fix="make it readable") from error
    stray = [path for path in entries if not path.is_dir() and path.name.lower().endswith(SUFFIXES)]
    if stray:
        raise UsageError(f"{stray[0]} lies in no class folder", layout, "move it to the folder of its class")
    folders = [path for path in entries if path.is_dir()]
    if not folders:
        raise UsageError(f"{source} has no class folders", layout)
    indices = class_indices([folder.name for folder in folders], model_labels, classes, class_map)
    paths: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        found = find_images([folder])
        paths += found
        labels += [indices[folder.name]] * len(found)
    return FolderImages(source, np.array(labels, np.int64), {index: name for name, index in indices.items()}, paths)


def _read_npz(source: Path, classes: int) -> ArrayImages:
    wanted = "an .npz file with images and labels"
    try:
        if not zipfile.is_zipfile(source):
            raise UsageError(f"{source} is no .npz file", wanted, "write it with numpy.savez")
        with np.load(source, allow_pickle=False) as file:
            missing = [key for key in ("images", "labels") if key not in file]
            if missing:
                raise UsageError(f"{source} lacks the array {missing[0]!r}; it has {', '.join(file) or 'none'}", wanted)
            images, labels = file["images"], file["labels"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{source} cannot be read ({error})", wanted) from error
    _check_images(source, images)
    if labels.ndim != 1 or len(labels) != len(images) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"{source}: labels is {labels.dtype} {labels.shape}", f"({len(images)},) whole numbers, one an image"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise UsageError(f"{source}: labels go from {labels.min()} to {labels.max()}", f"0 to {classes - 1}")
    if images.ndim == 4 and images.shape[-1] == 1 and images.dtype == np.uint8:
        images = images[..., 0]
    return ArrayImages(source, labels.astype(np.int64), images, sha256_of(source))


def _check_images(source: Path, images: np.ndarray) -> None:
    """Raise UsageError unless the array is of one of the two kinds that are taken."""
    wanted = "uint8 pictures (N, H, W) or (N, H, W, 1 or 3), or float32 input tensors (N, C, H, W)"
    pictures = images.dtype == np.uint8 and (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3)))
    tensors = images.dtype == np.float32 and images.ndim == 4
    if not (pictures or tensors) or 0 in images.shape:
        turned = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] in (1, 3)
        raise UsageError(
            f"{source}: images is {images.dtype} {images.shape}",
            wanted,
            "turn it: images.transpose(0, 2, 3, 1)" if turned else "",
        )
