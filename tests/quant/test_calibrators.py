"""Each calibrator against its definition, computed the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpdeploy.quant.calibrators import (
    BINS_PER_STEP,
    LEVELS,
    PERCENTILE,
    candidates,
    divergence,
    mean_squared_error,
    value_range,
)
from mlpdeploy.quant.histogram import HALF, Histogram
from mlpdeploy.quant.recipe import CALIBRATORS


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    return histogram


def heavy_tailed(seed: int, count: int = 20_000) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, count)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_zero_is_inside_and_nothing_lies_outside_of_what_was_seen(calibrator: str, symmetric: bool) -> None:
    for values in (heavy_tailed(0), heavy_tailed(1).clip(0), 5 + np.random.default_rng(2).random(5000), np.zeros(9)):
        low, high = value_range(histogram_of(values), calibrator, symmetric=symmetric)  # type: ignore[arg-type]
        assert low <= 0 <= high
        if symmetric:
            assert low == -high
        width = histogram_of(values).width
        assert high <= np.abs(values).max() + width
        assert low >= -np.abs(values).max() - width


def test_minmax_is_exact() -> None:
    values = heavy_tailed(3).astype(np.float32)
    assert value_range(histogram_of(values), "minmax", symmetric=False) == (values.min(), values.max())
    assert value_range(histogram_of(values), "minmax", symmetric=True)[1] == np.abs(values).max()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_percentile_leaves_out_its_part_on_each_side(seed: int) -> None:
    values, outside = heavy_tailed(seed), 1 - PERCENTILE / 100
    histogram = histogram_of(values)
    low, high = value_range(histogram, "percentile", symmetric=False)
    for side, bound, inner in (
        (values < low, low, low + histogram.width),
        (values > high, high, high - histogram.width),
    ):
        assert side.mean() <= outside / 2
        nearer = values < inner if bound < 0 else values >= inner
        assert nearer.mean() > outside / 2  # one bin less would leave out too much
    limit = value_range(histogram, "percentile", symmetric=True)[1]
    assert (np.abs(values) > limit).mean() <= outside < (np.abs(values) >= limit - histogram.width).mean()


@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_finds_the_best_threshold(symmetric: bool) -> None:
    values = np.append(np.random.default_rng(4).standard_normal(400_000), [-12, 12])
    histogram = histogram_of(values)

    def error(low: float, high: float) -> float:
        steps = LEVELS - 2 if symmetric else LEVELS - 1
        step = (high - low) / steps
        rounded = low + np.clip(np.round((values - low) / step), 0, steps) * step
        return float(((values - rounded) ** 2).mean())

    best = min(error(low, high) for low, high in candidates(histogram, symmetric))
    assert error(*value_range(histogram, "mse", symmetric=symmetric)) <= 1.02 * best
    low, high = candidates(histogram, symmetric)[40]
    assert mean_squared_error(histogram, low, high, symmetric) == pytest.approx(error(low, high), rel=0.02)
    assert best < 0.7 * error(-12, 12)


def test_mse_knows_that_zero_is_exact() -> None:
    """Most values of a tensor may be zero, or nearly, as behind a GELU; then the few others need their range."""
    random = np.random.default_rng(8)
    values = random.standard_t(3, 100_000) * (random.random(100_000) < 0.05)
    histogram = histogram_of(values)

    def error(high: float) -> float:
        step = np.float32(high / 127)
        return float(((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2).mean())

    best = min(error(high) for _, high in candidates(histogram, symmetric=True))
    assert error(value_range(histogram, "mse", symmetric=True)[1]) <= 1.02 * best


def slow_divergence(histogram: Histogram, low: float, high: float) -> float:
    """Return what `divergence` computes, bin by bin."""
    first, last = math.floor(low / histogram.width) + HALF, math.ceil(high / histogram.width) + HALF
    counts = histogram.counts.tolist()
    inside = counts[first:last]
    original = list(inside)
    original[0] += sum(counts[:first])
    original[-1] += sum(counts[last:])
    if len(inside) < BINS_PER_STEP * LEVELS:
        return math.inf
    groups: dict[int, list[int]] = {}
    for index in range(len(inside)):
        groups.setdefault(index * LEVELS // len(inside), []).append(index)
    quantized = [0.0] * len(inside)
    for members in groups.values():
        filled = [index for index in members if inside[index]]
        for index in filled:
            quantized[index] = sum(inside[i] for i in members) / len(filled)
    total = 0.0
    for p, q in zip(original, quantized, strict=True):
        if p and not q:
            return math.inf
        if p:
            p, q = p / sum(original), q / sum(quantized)
            total += p * math.log(p / q)
    return total


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_finds_the_smallest_divergence(symmetric: bool) -> None:
    histogram = histogram_of(np.append(np.random.default_rng(6).standard_normal(1_000_000), [-7, 7]))
    ranges = candidates(histogram, symmetric)
    slow = [slow_divergence(histogram, low, high) for low, high in ranges]
    for (low, high), wanted in zip(ranges, slow, strict=True):
        assert divergence(histogram, low, high) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert value_range(histogram, "entropy", symmetric=symmetric) == ranges[int(np.argmin(slow))]
    assert int(np.argmin(slow)) > 0
