"""Classify photographs with an artifact: decode, prepare, run in batches, name the most probable classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdeploy.classification import (
    ClassScore,
    Picture,
    batches,
    classifier_preprocessing,
    prepare,
    run_logits,
    top_classes,
)
from mlpdeploy.errors import ImageError, UsageError
from mlpdeploy.images import find_images, or_skip_it
from mlpdeploy.manifest import Preprocessing
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import Session


@dataclass(frozen=True)
class Prediction:
    """What the model says about one file.

    Attributes:
        path: the file, as it was found.
        top: the most probable classes, best first; empty where the file could not be read.
        error: why the file could not be read, else None.
    """

    path: str
    top: tuple[ClassScore, ...] = ()
    error: str | None = None


def predict(
    directory: str | Path,
    images: Iterable[str | Path],
    *,
    top: int = 5,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    batch: int = 8,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Return one prediction per image, in the order of `find_images(images)`; see `predict_batches` for the arguments.

    Args:
        progress: called after each batch with the number of files done and of all files.
    """
    parts = predict_batches(
        directory,
        images,
        top=top,
        backend=backend,
        device=device,
        threads=threads,
        precision=precision,
        batch=batch,
        skip_bad=skip_bad,
        progress=progress,
    )
    return [prediction for part in parts for prediction in part]


def predict_batches(
    directory: str | Path,
    images: Iterable[str | Path],
    *,
    top: int = 5,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    batch: int = 8,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[list[Prediction]]:
    """Yield the predictions of one batch after the other, one per image, in the order of `find_images(images)`.

    Pictures are decoded a batch ahead of the model, so that memory does not grow with their number.

    Args:
        directory: an artifact of a classifier.
        images: files, and folders that are searched for images.
        top: how many classes to name; a model with fewer classes names them all.
        backend, device, threads, precision: see `load`.
        batch: pictures that go through the model at once; a model exported for a fixed batch takes that instead.
        skip_bad: report a picture that cannot be read in its `Prediction.error` and go on.
        progress: called after each batch with the number of files done and of all files.

    Raises:
        UsageError: a path does not exist, a number is below 1, or the artifact is no classifier of photographs.
        ImageError: a picture cannot be read, and `skip_bad` is not given; the message names the file.
        ArtifactError: the artifact cannot be loaded, or its labels do not fit its classes.
        VerificationError: the model gives scores that are not finite.
    """
    for name, value in (("top", top), ("batch", batch)):
        if value < 1:
            raise UsageError(f"{name} is {value}", "at least 1")
    paths = find_images(images)
    done = 0
    with load(directory, backend, device, threads=threads, max_batch=batch, precision=precision) as session:
        preprocessing = classifier_preprocessing(session.manifest, directory)
        for part in predict_pictures(session, preprocessing, paths, top=top, threads=threads, skip_bad=skip_bad):
            done += len(part)
            if progress is not None:
                progress(done, len(paths))
            yield part


def predict_pictures(
    session: Session,
    preprocessing: Preprocessing,
    pictures: Sequence[Picture],
    *,
    top: int,
    threads: int | None,
    skip_bad: bool,
) -> Iterator[list[Prediction]]:
    """Yield the predictions of one batch after the other, while threads decode the next; see `predict_batches`.

    Those before a picture that cannot be read come before its error.
    """
    read = functools.partial(prepare, preprocessing=preprocessing)
    for part, prepared in batches(pictures, read, session.max_batch, threads):
        errors = {index: item for index, item in enumerate(prepared) if isinstance(item, ImageError)}
        if skip_bad or not errors:
            yield _predict_part(session, part, prepared, top)
            continue
        first = min(errors)
        if first:
            yield _predict_part(session, part[:first], prepared[:first], top)
        raise or_skip_it(errors[first])


def _predict_part(
    session: Session, pictures: Sequence[Picture], prepared: Sequence[np.ndarray | ImageError], top: int
) -> list[Prediction]:
    """Return the predictions of one batch, of which some pictures may have failed."""
    tensors = [item for item in prepared if not isinstance(item, ImageError)]
    names = [str(name) for name, item in zip(pictures, prepared, strict=True) if not isinstance(item, ImageError)]
    scores = iter(_scores(session, np.stack(tensors), names, top) if tensors else [])
    return [
        Prediction(str(name), error=str(item)) if isinstance(item, ImageError) else Prediction(str(name), next(scores))
        for name, item in zip(pictures, prepared, strict=True)
    ]


def _scores(session: Session, pixels: np.ndarray, names: Sequence[str], top: int) -> list[tuple[ClassScore, ...]]:
    """Return the best classes of each row.

    Args:
        pixels: (N, C, H, W) float32, contiguous.
        names: of the N files, for the error message.
    """
    return top_classes(run_logits(session, pixels, names), session.manifest.labels, top)
