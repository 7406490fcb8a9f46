"""Counts in pieces are counts at once; extremes are exact; memory is fixed."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlpdeploy.quant.histogram import BINS, HALF, Histogram

POSITIVE = st.floats(2.0**-40, 2.0**60, width=32)
FLOATS = POSITIVE | POSITIVE.map(lambda value: -value) | st.just(0.0)
ARRAYS = hnp.arrays(np.float32, st.integers(1, 60), elements=FLOATS)


def histogram_of(*pieces: np.ndarray) -> Histogram:
    histogram = Histogram()
    for piece in pieces:
        histogram.add(piece)
    return histogram


@settings(max_examples=150, deadline=None)
@given(ARRAYS, st.lists(st.integers(0, 60), max_size=4))
def test_pieces_in_any_cut_give_what_all_at_once_gives(values: np.ndarray, cuts: list[int]) -> None:
    whole = histogram_of(values)
    pieces = histogram_of(*np.split(values, sorted(min(cut, values.size) for cut in cuts)))
    assert (pieces.minimum, pieces.maximum) == (values.min(), values.max())
    assert pieces.exponent == whole.exponent
    np.testing.assert_array_equal(pieces.counts, whole.counts)


@settings(max_examples=150, deadline=None)
@given(ARRAYS)
def test_counts_by_brute_force(values: np.ndarray) -> None:
    histogram = histogram_of(values)
    wanted = np.zeros(BINS, np.int64)
    for value in values.tolist():
        wanted[math.floor(value / histogram.width) + HALF] += 1
    np.testing.assert_array_equal(histogram.counts, wanted)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, 5, elements=FLOATS))
def test_the_largest_value_lies_in_the_upper_half_of_its_side(values: np.ndarray) -> None:
    largest = float(np.abs(values).max())
    bins = largest / histogram_of(values).width
    assert bins < HALF
    assert bins >= HALF / 2 or largest < 1e-38


def test_more_values_than_one_chunk() -> None:
    values = np.random.default_rng(0).standard_normal(100_003).astype(np.float32)
    histogram = histogram_of(values.reshape(1, -1))
    edges = (np.arange(-HALF, HALF + 1)) * histogram.width
    np.testing.assert_array_equal(histogram.counts, np.histogram(values, edges)[0])


def test_zeros_only() -> None:
    histogram = histogram_of(np.zeros(7, np.float32), np.float32([0, 3]))
    assert histogram.counts[HALF] == 8
    assert histogram.total == 9
