"""What every use of a classifier needs: is it one, its input from a photograph, batches ready in time, sound scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mlpdeploy.env import cpu_count
from mlpdeploy.errors import ArtifactError, ImageError, UsageError, VerificationError
from mlpdeploy.images import image_from_bytes, preprocess, read_image
from mlpdeploy.manifest import Manifest, Preprocessing
from mlpdeploy.runtime.session import Session

LOGITS = "NK"  # the layout of an output with one score per row and class
MAX_DECODERS = 4  # threads that decode ahead of the model; each may hold one picture in full size

Item = TypeVar("Item")


@dataclass(frozen=True)
class ClassScore:
    """One class of a prediction.

    Attributes:
        index: of the logit.
        label: from the manifest, empty where the artifact carries no labels.
        probability: softmax over all classes, 0..1; of a model with one logit its sigmoid.
    """

    index: int
    label: str
    probability: float


def check_classifier(manifest: Manifest, directory: str | Path) -> None:
    """Raise UsageError unless the model takes one input and gives logits."""
    instead = "run it with mlpdeploy.load(...).run(...)"
    if manifest.outputs[0].layout != LOGITS:
        shape = ", ".join(map(str, manifest.outputs[0].shape))
        raise UsageError(
            f"{directory} gives feature maps ({manifest.outputs[0].layout}: {shape})",
            "a classifier that gives logits",
            instead,
        )
    if len(manifest.inputs) != 1:
        raise UsageError(f"{directory} takes {len(manifest.inputs)} inputs", "a classifier with one input", instead)


def classifier_preprocessing(manifest: Manifest, directory: str | Path) -> Preprocessing:
    """Return the manifest's preprocessing, or raise UsageError where the model does not classify photographs."""
    check_classifier(manifest, directory)
    if manifest.preprocessing is None:
        raise UsageError(
            f"{directory} does not say how a photograph becomes its input",
            "an artifact with preprocessing",
            "prepare the input yourself and run it with mlpdeploy.load(...).run(...)",
        )
    return manifest.preprocessing


@dataclass(frozen=True)
class EncodedPicture:
    """A picture that is no file of its own: a row of a table.

    Attributes:
        name: for messages.
        data: the bytes of an image file.
    """

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


Picture = Path | EncodedPicture


def prepare(picture: Picture, preprocessing: Preprocessing) -> np.ndarray | ImageError:
    """Return a picture's (C, H, W) float32 tensor, or the error that names it."""
    if isinstance(picture, Path):
        try:
            image = read_image(picture)
        except ImageError as error:
            return error
    try:
        if isinstance(picture, EncodedPicture):
            image = image_from_bytes(picture.data)
        return preprocess(image, preprocessing)
    except ImageError as error:
        return ImageError(f"{picture}: {error.got}", error.wanted, error.fix)


def batches(
    items: Sequence[Item],
    prepare_item: Callable[[Item], np.ndarray | ImageError],
    size: int,
    threads: int | None,
) -> Iterator[tuple[Sequence[Item], list[np.ndarray | ImageError]]]:
    """Yield (items, prepared items) for each batch of `size`, while threads prepare the next batch."""
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    if not parts:
        return
    with ThreadPoolExecutor(min(MAX_DECODERS, threads or cpu_count())) as pool:
        ahead = pool.map(prepare_item, parts[0])  # starts at once
        for part, following in zip(parts, [*parts[1:], []], strict=True):
            prepared, ahead = list(ahead), pool.map(prepare_item, following)
            yield part, prepared


def run_logits(session: Session, pixels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the logits, (N, K) in the model's dtype, of (N, C, H, W) float32 pixels.

    Args:
        session: of a classifier.
        pixels: contiguous; cast to the dtype of the model's input.
        names: of the N pictures, for the error message.

    Raises:
        ArtifactError: the labels do not fit the classes.
        VerificationError: the model gives scores that are not finite.
    """
    spec, output = session.inputs[0], session.outputs[0].name
    logits = session.run({spec.name: pixels.astype(spec.dtype, copy=False)})[output]
    check_logits(logits, session.manifest.labels, names)
    return logits


def check_logits(logits: np.ndarray, labels: Sequence[str], names: Sequence[str]) -> None:
    """Raise ArtifactError if the labels do not fit the classes, VerificationError if a score is not finite.

    Args:
        logits: (N, K) in the model's dtype.
        labels: of the classes; empty where the artifact has none.
        names: of the N pictures, for the error message.
    """
    if labels and len(labels) != logits.shape[1]:
        raise ArtifactError(f"the artifact has {len(labels)} labels", f"{logits.shape[1]}, one for each class")
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise VerificationError(
            f"{names[int(np.argmin(finite))]}: the model gives scores that are not finite numbers",
            fix="check it with mlpdeploy verify",
        )


def top_classes(logits: np.ndarray, labels: Sequence[str], top: int) -> list[tuple[ClassScore, ...]]:
    """Return the best classes of each row, best first; of equal scores the lower index comes first.

    Args:
        logits: (N, K), all finite.
        labels: of the K classes; empty where the artifact has none.
    """
    logits = logits.astype(np.float64)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return [
        tuple(ClassScore(int(index), labels[index] if labels else "", float(row[index])) for index in order)
        for row, order in zip(_softmax(logits), best, strict=True)
    ]


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis, of one logit that beside a zero: its sigmoid; logits: (N, K) float64."""
    if logits.shape[1] == 1:
        return _softmax(np.pad(logits, ((0, 0), (0, 1))))[:, :1]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
