"""Figures of merit, updated batch by batch: memory depends on the number of classes, never on that of images."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np

from mlpdeploy.evaluation.statistics import Rate, rate

TOP = 5
BINS = 15  # of the reliability table, as in Guo et al. 2017


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose largest probability lies in (low, high].

    Attributes:
        low, high: edges, 0..1.
        images: how many.
        confidence: mean of the largest probabilities; None where the bin is empty.
        accuracy: share that is right; None where the bin is empty.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Quality:
    """What one candidate's scores are worth.

    Attributes:
        top1, top_k: share of images whose class is the best, or among the `k` best; of equal scores the lower index
            comes first.
        k: 5, or the number of classes where there are fewer.
        nll: mean negative log-likelihood of the true class, in nats.
        ece: expected calibration error, 0..1, over `reliability`.
        reliability: `BINS` bins of equal width.
        per_class: {class index: share of its images that are right}, for classes that the data has.
        confusion: (true class, predicted class, images), without zeros.
    """

    top1: Rate
    top_k: Rate
    k: int
    nll: float
    ece: float
    reliability: tuple[ReliabilityBin, ...]
    per_class: dict[int, Rate]
    confusion: tuple[tuple[int, int, int], ...]


class QualityTally:
    """Counts that become a `Quality`."""

    def __init__(self, classes: int) -> None:
        self._k = min(TOP, classes)
        self._images = self._top1 = self._top_k = 0
        self._nll = 0.0
        self._bins = np.zeros((BINS, 3))  # images, sum of confidences, hits
        self._confusion = np.zeros((classes, classes), np.int64)

    def update(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Count a batch and return which rows are right, (N,) bool.

        Args:
            logits: (N, K) float64, finite.
            labels: (N,) int64.
        """
        rows = np.arange(len(labels))
        own = logits[rows, labels][:, None]
        before = np.arange(logits.shape[1]) < labels[:, None]
        rank = ((logits > own) | ((logits == own) & before)).sum(axis=1)
        predicted = logits.argmax(axis=1)
        right: np.ndarray = rank == 0
        self._images += len(labels)
        self._top1 += int(right.sum())
        self._top_k += int((rank < self._k).sum())
        np.add.at(self._confusion, (labels, predicted), 1)
        largest = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - largest).sum(axis=1))
        self._nll += float((log_sum - (own - largest)[:, 0]).sum())
        confidence = np.exp(-log_sum)
        index = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        np.add.at(self._bins, index, np.stack([np.ones(len(labels)), confidence, right], axis=1))
        return right

    def result(self) -> Quality:
        """Return the figures of all images so far; there must be one at least."""
        table = tuple(_bin(index, *values) for index, values in enumerate(self._bins.tolist()))
        _, confidence, right = self._bins.T
        ece = float(np.abs(right - confidence).sum()) / self._images
        counts, hits = self._confusion.sum(axis=1).tolist(), self._confusion.diagonal().tolist()
        true, predicted = np.nonzero(self._confusion)
        return Quality(
            top1=rate(self._top1, self._images),
            top_k=rate(self._top_k, self._images),
            k=self._k,
            nll=self._nll / self._images,
            ece=ece,
            reliability=table,
            per_class={index: rate(hits[index], count) for index, count in enumerate(counts) if count},
            confusion=tuple((int(t), int(p), int(self._confusion[t, p])) for t, p in zip(true, predicted, strict=True)),
        )


def _bin(index: int, images: float, confidence: float, hits: float) -> ReliabilityBin:
    low, high = index / BINS, (index + 1) / BINS
    if not images:
        return ReliabilityBin(low, high, 0, None, None)
    return ReliabilityBin(low, high, int(images), confidence / images, hits / images)


@dataclass(frozen=True)
class Agreement:
    """How near a candidate's logits are to the reference's.

    Attributes:
        top1: share of images with the same best class.
        spread: standard deviation of all the reference's logits; errors are parts of it.
        max_error, mean_error: of all logits, over the spread.
        sqnr_db: power of the reference over power of the error, in dB; None where every bit is equal.
    """

    top1: Rate
    spread: float
    max_error: float
    mean_error: float
    sqnr_db: float | None


class AgreementTally:
    """Sums that become an `Agreement`."""

    def __init__(self) -> None:
        self._images = self._same = self._values = 0
        self._sum = self._power = self._error_sum = self._error_power = self._error_max = 0.0

    def update(self, logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Count a batch, both (N, K) float64, and return each row's largest absolute error, (N,) float64."""
        error = np.abs(logits - reference)
        self._images += len(logits)
        self._values += logits.size
        self._same += int((logits.argmax(axis=1) == reference.argmax(axis=1)).sum())
        self._sum += float(reference.sum())
        self._power += float((reference**2).sum())
        self._error_sum += float(error.sum())
        self._error_power += float((error**2).sum())
        largest: np.ndarray = error.max(axis=1)
        self._error_max = max(self._error_max, float(largest.max(initial=0.0)))
        return largest

    def result(self) -> Agreement:
        """Return the figures of all images so far; there must be one at least."""
        mean = self._sum / self._values
        spread = math.sqrt(max(self._power / self._values - mean**2, 0.0)) or 1.0
        power = max(self._power, sys.float_info.min)  # logits that are all zero have a logarithm so
        return Agreement(
            top1=rate(self._same, self._images),
            spread=spread,
            max_error=self._error_max / spread,
            mean_error=self._error_sum / self._values / spread,
            sqnr_db=None if self._error_power == 0 else 10 * (math.log10(power) - math.log10(self._error_power)),
        )
