"""Splitting a batch over profiles: every row once, in order, within what a profile takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpdeploy.errors import UsageError
from mlpdeploy.runtime.trt.profiles import Chunk, Profile, of_few_sizes, split

SIZES = {"input": (3, 32, 32)}


def profile(index: int, low: int, middle: int, high: int, size: tuple[int, int] = (32, 32)) -> Profile:
    return Profile(index, {"input": ((low, 3, 32, 32), (middle, 3, 32, 32), (high, 3, *size))})


def test_the_nearest_optimum_and_full_chunks() -> None:
    profiles = (profile(0, 1, 1, 4), profile(1, 1, 8, 16))
    assert split(profiles, 1, SIZES) == [Chunk(0, 1, 1, 0)]
    assert split(profiles, 4, SIZES) == [Chunk(0, 4, 4, 0)]
    assert split(profiles, 5, SIZES) == [Chunk(0, 5, 5, 1)]
    assert split(profiles, 33, SIZES) == [Chunk(0, 16, 16, 1), Chunk(16, 32, 16, 1), Chunk(32, 33, 1, 0)]
    assert [chunk.stop - chunk.start for chunk in split(profiles, 7, SIZES, limit=3)] == [3, 3, 1]


def test_rows_are_added_where_no_profile_takes_so_few() -> None:
    assert split((profile(0, 8, 8, 8),), 11, SIZES) == [Chunk(0, 8, 8, 0), Chunk(8, 11, 8, 0)]
    assert split((profile(0, 1, 1, 2), profile(1, 8, 8, 8)), 5, SIZES) == [Chunk(0, 5, 8, 1)]
    assert split((profile(0, 8, 8, 8),), 11, SIZES, limit=4) == [Chunk(0, 8, 8, 0), Chunk(8, 11, 8, 0)]


def test_image_sizes() -> None:
    profiles = (profile(0, 1, 4, 8), profile(1, 1, 1, 2, (64, 96)))
    assert split(profiles, 3, {"input": (3, 64, 32)}) == [Chunk(0, 2, 2, 1), Chunk(2, 3, 1, 1)]
    with pytest.raises(UsageError, match="3x96x96; wanted 3x32x32 or 3x32x32 to 3x64x96"):
        split(profiles, 1, {"input": (3, 96, 96)})
    with pytest.raises(UsageError, match="3x64x128"):
        split(profiles, 1, {"input": (3, 64, 128)})


def test_few_sizes() -> None:
    profiles = (profile(0, 1, 8, 30), profile(1, 1, 64, 64))
    sizes = {
        index: sorted({of_few_sizes(Chunk(0, rows, rows, index), profiles).computed for rows in range(1, most + 1)})
        for index, most in ((0, 30), (1, 64))
    }
    assert sizes[0] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 30]
    assert sizes[1] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64]
    assert of_few_sizes(Chunk(5, 14, 9, 1), profiles) == Chunk(5, 14, 10, 1)


ranges = st.lists(st.integers(1, 40), min_size=3, max_size=3).map(sorted)


@given(st.lists(ranges, min_size=1, max_size=4), st.integers(1, 200), st.none() | st.integers(1, 50))
def test_every_row_once(batches: list[list[int]], rows: int, limit: int | None) -> None:
    profiles = tuple(profile(index, *batch) for index, batch in enumerate(batches))
    least = min(low for low, _, _ in batches)
    chunks = split(profiles, rows, SIZES, limit)
    assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks[:-1])]
    assert chunks[-1].stop == rows
    for chunk in chunks:
        low, _, high = profiles[chunk.profile].rows
        assert low <= chunk.computed <= high and chunk.computed >= chunk.stop - chunk.start >= 1
        assert limit is None or chunk.stop - chunk.start <= max(limit, least)
