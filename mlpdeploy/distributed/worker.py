"""What runs in each worker process: one Session, chunk after chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlpdeploy.classification import classifier_preprocessing
from mlpdeploy.distributed.chunks import Chunk
from mlpdeploy.distributed.results import part_path, write_part
from mlpdeploy.errors import MlpDeployError
from mlpdeploy.prediction import Prediction, predict_pictures
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import Session


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker has to know besides its chunks; see `predict`."""

    directory: str
    output: str
    top: int
    batch: int
    skip_bad: bool
    backend: str | None
    device: str | None
    threads: int | None
    precision: str | None


@dataclass(frozen=True)
class Done:
    """What became of a chunk: its rows, or the error that ended it, in the three parts of an `MlpDeployError`."""

    chunk: Chunk
    rows: int = 0
    bad: int = 0
    error: tuple[str, str, str, str] | None = None


class Worker:
    """Holds a Session. The errors that a user can cause are results here: they must not look like a dead worker."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._session: Session | None = None

    def run(self, chunk: Chunk) -> Done:
        """Predict a chunk and write its file."""
        try:
            rows, bad = write_part(part_path(Path(self._options.output), chunk), self._predict(chunk))
        except MlpDeployError as error:
            return Done(chunk, error=(type(error).__name__, error.got, error.wanted, error.fix))
        return Done(chunk, rows, bad)

    def _predict(self, chunk: Chunk) -> Iterator[list[tuple[str, int | None, Prediction]]]:
        o = self._options
        if self._session is None:
            self._session = load(
                o.directory, o.backend, o.device, threads=o.threads, max_batch=o.batch, precision=o.precision
            )
        preprocessing = classifier_preprocessing(self._session.manifest, o.directory)
        for rows in chunk.pictures():
            pictures = [picture for _, picture in rows]
            found: list[Prediction] = []
            for part in predict_pictures(
                self._session, preprocessing, pictures, top=o.top, threads=o.threads, skip_bad=o.skip_bad
            ):
                found += part
            yield [
                (chunk.table or prediction.path, row, prediction)
                for (row, _), prediction in zip(rows, found, strict=True)
            ]
