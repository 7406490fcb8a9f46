"""From a histogram to the range that 8 bits should cover: four ways.

Values outside of a range are clipped; a narrower range makes the steps finer for the values inside.

- `minmax`: everything that was seen.
- `percentile`: all but a part of 1e-4 of the values, half of it on each side.
- `entropy`: the threshold at which the quantized distribution is nearest to the original one (smallest Kullback-Leibler
  divergence), as in Migacz, "8-bit inference with TensorRT", GTC 2017.
- `mse`: the threshold with the smallest mean squared error of rounding and clipping.

`entropy` and `mse` search one threshold T and clip to [max(minimum, -T), min(maximum, T)].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlpdeploy.quant.histogram import HALF, Histogram
from mlpdeploy.quant.recipe import Calibrator

PERCENTILE = 99.99
LEVELS = 256
BINS_PER_STEP = 4  # at least, for `entropy`: with fewer, a step hardly differs from what it stands for
THRESHOLDS = 128  # candidates of `entropy` and `mse`, evenly spaced up to the largest magnitude

Range = tuple[float, float]


def value_range(histogram: Histogram, calibrator: Calibrator, *, symmetric: bool) -> Range:
    """Return (low, high) with low <= 0 <= high; for `symmetric`, low = -high.

    Zero is always inside: it is what padding adds, and must be exact.

    Args:
        histogram: of at least one value.
        calibrator: see the module.
        symmetric: whether the steps will lie symmetrically around zero (255 of them; else 256 from low to high).
    """
    low, high = _CALIBRATORS[calibrator](histogram, symmetric)
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    return low, high


def _minmax(histogram: Histogram, symmetric: bool) -> Range:
    return histogram.minimum, histogram.maximum


def _percentile(histogram: Histogram, symmetric: bool) -> Range:
    outside = histogram.total * (1 - PERCENTILE / 100)
    if symmetric:
        # The tail of the magnitudes, counted from the outside.
        magnitudes = histogram.counts[HALF:] + histogram.counts[:HALF][::-1]
        tail = np.cumsum(magnitudes[::-1])[::-1]
        bins = int(np.count_nonzero(tail > outside))
        limit = min(bins * histogram.width, max(-histogram.minimum, histogram.maximum))
        return -limit, limit
    below, above = np.cumsum(histogram.counts), np.cumsum(histogram.counts[::-1])
    first = int(np.argmax(below > outside / 2))
    last = len(below) - 1 - int(np.argmax(above > outside / 2))
    low, high = (first - HALF) * histogram.width, (last + 1 - HALF) * histogram.width
    return max(low, histogram.minimum), min(high, histogram.maximum)


def _search(cost: Callable[[Histogram, float, float, bool], float]) -> Callable[[Histogram, bool], Range]:
    """Return a calibrator that tries thresholds and takes the one of least cost; of equal ones the largest."""

    def calibrator(histogram: Histogram, symmetric: bool) -> Range:
        if histogram.minimum == histogram.maximum == 0:
            return 0.0, 0.0
        best = (np.inf, 0.0, 0.0)
        for low, high in candidates(histogram, symmetric):
            found = cost(histogram, low, high, symmetric)
            if found < best[0]:
                best = (found, low, high)
        return best[1:] if best[0] < np.inf else (histogram.minimum, histogram.maximum)

    return calibrator


def candidates(histogram: Histogram, symmetric: bool) -> list[Range]:
    """Return the ranges that are tried, the widest first; thresholds lie on the bins' edges."""
    largest = max(-histogram.minimum, histogram.maximum)
    bins = max(int(np.ceil(largest / histogram.width)), 1)
    thresholds = sorted({-(-bins * step // THRESHOLDS) for step in range(1, THRESHOLDS + 1)}, reverse=True)
    ranges = []
    for threshold in thresholds:
        limit = threshold * histogram.width
        if symmetric:
            ranges.append((-limit, limit))
        else:
            ranges.append((max(min(histogram.minimum, 0.0), -limit), min(max(histogram.maximum, 0.0), limit)))
    return ranges


def mean_squared_error(histogram: Histogram, low: float, high: float, symmetric: bool) -> float:
    """Return the mean squared error of the bins' centres, rounded to levels from `low` to `high` and clipped.

    There are 256 levels; of `symmetric` ones 255, so that zero, where most values may lie, is one of them.
    """
    used = np.flatnonzero(histogram.counts)
    counts, centres = histogram.counts[used], histogram.centres[used]
    steps = LEVELS - 2 if symmetric else LEVELS - 1
    step = (high - low) / steps
    rounded = low + np.clip(np.rint((centres - low) / step), 0, steps) * step
    return float((counts * (centres - rounded) ** 2).sum() / counts.sum())


def divergence(histogram: Histogram, low: float, high: float) -> float:
    """Return the Kullback-Leibler divergence of the distribution within [low, high] from its 256-step version.

    The clipped values are counted in the outermost bins of the original, but not of the quantized distribution: that is
    what clipping costs. A step's share is spread evenly over those of its bins that are not empty.
    """
    first = max(int(np.floor(low / histogram.width)) + HALF, 0)
    last = min(int(np.ceil(high / histogram.width)) + HALF, len(histogram.counts))
    inside = histogram.counts[first:last].astype(np.float64)
    if len(inside) < BINS_PER_STEP * LEVELS:
        return float("inf")
    original = inside.copy()
    original[0] += histogram.counts[:first].sum()
    original[-1] += histogram.counts[last:].sum()
    filled = inside > 0
    if np.any((original > 0) & ~filled):
        return float("inf")  # the quantized distribution has nothing where the clipped values went
    step = np.arange(len(inside)) * LEVELS // len(inside)
    shares = np.bincount(step, inside, LEVELS) / np.maximum(np.bincount(step, filled, LEVELS), 1)
    quantized = shares[step][filled] / inside.sum()
    original = original[filled] / original.sum()
    return float((original * np.log(original / quantized)).sum())


_CALIBRATORS: dict[Calibrator, Callable[[Histogram, bool], Range]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _search(lambda histogram, low, high, symmetric: divergence(histogram, low, high)),
    "mse": _search(mean_squared_error),
}
