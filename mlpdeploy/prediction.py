"""Classify photographs with an artifact: decode, prepare, run in batches, name the most probable classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdeploy.env import cpu_count
from mlpdeploy.errors import ArtifactError, ImageError, UsageError, VerificationError
from mlpdeploy.images import find_images, preprocess, read_image
from mlpdeploy.manifest import Preprocessing
from mlpdeploy.runtime.session import Session, load

LOGITS = "NK"  # the layout of an output with one score per row and class
MAX_DECODERS = 4  # threads that decode ahead of the model; each may hold one picture in full size


@dataclass(frozen=True)
class ClassScore:
    """One class of a prediction.

    Attributes:
        index: of the logit.
        label: from the manifest, empty where the artifact carries no labels.
        probability: softmax over all classes, 0..1.
    """

    index: int
    label: str
    probability: float


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
    """Return one prediction per image, in the order of `find_images(images)`.

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
    predictions: list[Prediction] = []
    with load(directory, backend, device, threads=threads, max_batch=batch, precision=precision) as session:
        prepare = functools.partial(_prepare, preprocessing=_classifier_preprocessing(session, directory))
        parts = [paths[start : start + session.max_batch] for start in range(0, len(paths), session.max_batch)]
        with ThreadPoolExecutor(min(MAX_DECODERS, threads or cpu_count())) as pool:
            ahead = pool.map(prepare, parts[0])  # starts decoding at once
            for part, following in zip(parts, [*parts[1:], []], strict=True):
                prepared, ahead = list(ahead), pool.map(prepare, following)
                predictions += _predict_part(session, part, prepared, top, skip_bad)
                if progress is not None:
                    progress(len(predictions), len(paths))
    return predictions


def _classifier_preprocessing(session: Session, directory: str | Path) -> Preprocessing:
    """Return the manifest's preprocessing, or raise UsageError where the model does not classify photographs."""
    if session.outputs[0].layout != LOGITS:
        shape = ", ".join(map(str, session.outputs[0].shape))
        raise UsageError(
            f"{directory} gives feature maps ({session.outputs[0].layout}: {shape})",
            "a classifier that gives logits",
            "run it with mlpdeploy.load(...).run(...)",
        )
    preprocessing = session.manifest.preprocessing
    if preprocessing is None or len(session.inputs) != 1:
        raise UsageError(
            f"{directory} does not say how a photograph becomes its input",
            "an artifact with preprocessing and one input",
            "prepare the input yourself and run it with mlpdeploy.load(...).run(...)",
        )
    return preprocessing


def _prepare(path: Path, preprocessing: Preprocessing) -> np.ndarray | ImageError:
    """Return a picture's (C, H, W) float32 tensor, or the error that names the file."""
    try:
        image = read_image(path)
    except ImageError as error:
        return error
    try:
        return preprocess(image, preprocessing)
    except ImageError as error:
        return ImageError(f"{path}: {error.got}", error.wanted, error.fix)


def _predict_part(
    session: Session, paths: Sequence[Path], prepared: Sequence[np.ndarray | ImageError], top: int, skip_bad: bool
) -> list[Prediction]:
    """Return the predictions of one batch, of which some pictures may have failed."""
    errors = [item for item in prepared if isinstance(item, ImageError)]
    if errors and not skip_bad:
        raise errors[0]
    tensors = [item for item in prepared if not isinstance(item, ImageError)]
    names = [str(path) for path, item in zip(paths, prepared, strict=True) if not isinstance(item, ImageError)]
    scores = iter(_scores(session, np.stack(tensors), names, top) if tensors else [])
    return [
        Prediction(str(path), error=str(item)) if isinstance(item, ImageError) else Prediction(str(path), next(scores))
        for path, item in zip(paths, prepared, strict=True)
    ]


def _scores(session: Session, pixels: np.ndarray, names: Sequence[str], top: int) -> list[tuple[ClassScore, ...]]:
    """Return the best classes of each row.

    Args:
        pixels: (N, C, H, W) float32, contiguous.
        names: of the N files, for the error message.
    """
    spec, output = session.inputs[0], session.outputs[0].name
    logits = session.run({spec.name: pixels.astype(spec.dtype, copy=False)})[output].astype(np.float64)
    labels = session.manifest.labels
    if labels and len(labels) != logits.shape[1]:
        raise ArtifactError(f"the artifact has {len(labels)} labels", f"{logits.shape[1]}, one for each class")
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise VerificationError(
            f"{names[int(np.argmin(finite))]}: the model gives scores that are not finite numbers",
            fix="check it with mlpdeploy verify",
        )
    # Of equal scores the lower index comes first, so that the result does not depend on the sort.
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return [
        tuple(ClassScore(int(index), labels[index] if labels else "", float(row[index])) for index in order)
        for row, order in zip(_softmax(logits), best, strict=True)
    ]


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis; logits: (N, K) float64."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
