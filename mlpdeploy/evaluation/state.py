"""What an evaluation has computed so far: a folder with one row of logits per candidate and image.

`state.json` says which data and which candidates; `<n>.rows` holds the rows of candidate n in the order of the images.
Rows are only ever appended, and a row that a killed process left half-written is dropped. The folder can go on from any
moment, and is refused where the data, a model or a version is not the one that it began with.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.artifact import disk_errors, lock_folder, write_file
from mlpdeploy.errors import UsageError

FILE_NAME = "state.json"
FORMAT = "mlpdeploy-evaluation-state"
VERSION = 1
_READ, _UNREADABLE = 1, 2  # marks of a row; a row of zeros, which a power cut may leave, has neither


@dataclass(frozen=True)
class DataIdentity:
    """Which images.

    Attributes:
        source: as given, for messages.
        sha256: see `LabelledImages.sha256`.
        images, classes: counts.
    """

    source: str
    sha256: str
    images: int
    classes: int


@dataclass(frozen=True)
class CandidateIdentity:
    """Whose logits.

    Attributes:
        name: of the artifact.
        backend, device: who computes, and where.
        manifest_sha256: `Manifest.identity`, which covers weights and preprocessing.
        versions: of the packages that the numbers depend on.
    """

    name: str
    backend: str
    device: str
    manifest_sha256: str
    versions: dict[str, str]


class Rows:
    """The rows of one candidate."""

    def __init__(self, path: Path, classes: int) -> None:
        self._path = path
        self._dtype = np.dtype([("mark", "u1"), ("seconds", "<f4"), ("logits", "<f4", (classes,))])
        self._drop_unfinished()

    def _drop_unfinished(self) -> None:
        """Cut the file behind its last whole row."""
        if not self._path.exists():
            return
        whole = self._path.stat().st_size // self._dtype.itemsize
        marks = self._map(whole)["mark"]
        bad = np.flatnonzero((marks != _READ) & (marks != _UNREADABLE))
        rows = int(bad[0]) if len(bad) else whole
        del marks
        with self._path.open("r+b") as file:
            file.truncate(rows * self._dtype.itemsize)

    def __len__(self) -> int:
        return self._path.stat().st_size // self._dtype.itemsize if self._path.exists() else 0

    def append(self, logits: np.ndarray, readable: np.ndarray, seconds: float) -> None:
        """Add one row per image.

        Args:
            logits: (R, K) float, of the images that could be read.
            readable: (N,) bool, R of them true.
            seconds: that the model took for the R images.

        Raises:
            ArtifactError: the disk is full, or the folder cannot be written.
        """
        rows = np.zeros(len(readable), self._dtype)
        rows["mark"] = np.where(readable, _READ, _UNREADABLE)
        rows["logits"][readable] = logits
        rows["seconds"][readable] = seconds / max(1, len(logits))
        with disk_errors(self._path), self._path.open("ab") as file:
            file.write(rows.tobytes())

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (logits, readable) of the images start..stop: (N, K) float64 and (N,) bool."""
        part = self._map(len(self))[start:stop]
        return part["logits"].astype(np.float64), part["mark"] == _READ

    def images_per_s(self) -> float | None:
        """Return how many images the model computed in a second; None where it computed none."""
        rows = self._map(len(self))
        seconds = float(rows["seconds"].sum(dtype=np.float64))
        return int((rows["mark"] == _READ).sum()) / seconds if seconds else None

    def _map(self, count: int) -> np.ndarray:
        """Return the first rows without loading them."""
        if count == 0:
            return np.zeros(0, self._dtype)
        return np.memmap(self._path, self._dtype, "r", shape=(count,))


class State:
    """A folder of rows for one set of images; see `open_state`."""

    def __init__(self, folder: Path, data: DataIdentity, candidates: list[dict[str, Any]]) -> None:
        self._folder, self._data, self._candidates = folder, data, candidates

    def rows(self, candidate: CandidateIdentity) -> Rows:
        """Return the rows of a candidate, none of which may be there yet.

        Raises:
            UsageError: the folder has rows of this name and backend that another model or version computed.
        """
        wanted = asdict(candidate)
        for number, known in enumerate(self._candidates):
            if (known["name"], known["backend"]) != (candidate.name, candidate.backend):
                continue
            if different := [key for key in wanted if known[key] != wanted[key]]:
                key = different[0]
                raise UsageError(
                    f"{self._folder} has results of {candidate.name} on {candidate.backend} with {key} {known[key]}",
                    f"{wanted[key]}",
                    "choose another folder with --resume, or delete this one",
                )
            return Rows(self._path(number), self._data.classes)
        self._candidates.append(wanted)
        self.write()
        return Rows(self._path(len(self._candidates) - 1), self._data.classes)

    def write(self) -> None:
        """Write `state.json`."""
        body = {"format": FORMAT, "version": VERSION, "data": asdict(self._data), "candidates": self._candidates}
        write_file(self._folder / FILE_NAME, (json.dumps(body, indent=1) + "\n").encode())

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.rows"


@contextmanager
def open_state(folder: Path | None, data: DataIdentity) -> Iterator[State]:
    """Yield the state in `folder`, made where it is missing; None takes a temporary one that vanishes afterwards.

    Raises:
        UsageError: the folder holds something else, belongs to other data, or another process writes to it.
        ArtifactError: it cannot be written.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="mlpdeploy-eval-") as name:
            yield State(Path(name), data, [])
        return
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "a folder for --resume")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder) as mine:
        if not mine:
            raise UsageError(f"another process is at work in {folder}", "a folder for each evaluation")
        if any(folder.iterdir()) and not (folder / FILE_NAME).exists():
            raise UsageError(f"{folder} holds something else", "an empty folder, or one that --resume made")
        state = _read(folder, data) if (folder / FILE_NAME).exists() else State(folder, data, [])
        state.write()
        yield state


def _read(folder: Path, data: DataIdentity) -> State:
    """Return the state of a folder, or raise UsageError where it is damaged or of other data."""
    other = "choose another folder with --resume, or delete this one"
    try:
        body = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        if (body["format"], body["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {body['format']}, version {body['version']}")
        known = DataIdentity(**body["data"])
        candidates = [asdict(CandidateIdentity(**candidate)) for candidate in body["candidates"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder / FILE_NAME} cannot be used ({error})", f"{FORMAT}, version {VERSION}", other
        ) from error
    if (known.sha256, known.images, known.classes) != (data.sha256, data.images, data.classes):
        raise UsageError(
            f"{folder} has results on other data: {known.images} images of {known.source}",
            f"those {data.images} images of {data.source}, none changed since",
            other,
        )
    return State(folder, data, candidates)
