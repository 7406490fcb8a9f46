"""Which optimization profile computes how many rows: any batch is split and padded to what an engine takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mlpdeploy.errors import UsageError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """One optimization profile.

    Attributes:
        index: in the engine.
        shapes: {input name: (min, opt, max) shapes}; the first axis is the batch.
    """

    index: int
    shapes: dict[str, tuple[Shape, Shape, Shape]]

    @property
    def rows(self) -> tuple[int, int, int]:
        """The (min, opt, max) batch."""
        low, middle, high = next(iter(self.shapes.values()))
        return low[0], middle[0], high[0]

    def takes(self, sizes: dict[str, Shape]) -> bool:
        """Return whether the axes behind the batch fit; sizes: {input name: shape without the batch}."""
        return all(
            low[1:] <= size and all(a <= b <= c for a, b, c in zip(low[1:], size, high[1:], strict=True))
            for name, size in sizes.items()
            for low, _, high in [self.shapes[name]]
        )


@dataclass(frozen=True)
class Chunk:
    """Rows start..stop of a batch, computed as `computed` rows by a profile; those beyond stop are padding."""

    start: int
    stop: int
    computed: int
    profile: int


def split(profiles: tuple[Profile, ...], rows: int, sizes: dict[str, Shape], limit: int | None = None) -> list[Chunk]:
    """Return how a batch is computed: as few and as large chunks as the profiles allow.

    A chunk is computed by the profile whose optimum is nearest to its rows. Rows are only added where no profile takes
    so few.

    Args:
        profiles: of the engine.
        rows: of the batch.
        sizes: {input name: shape without the batch}.
        limit: rows that go through at once, unless all profiles take more; None for what the profiles take.

    Raises:
        UsageError: no profile takes these sizes.
    """
    fitting = [profile for profile in profiles if profile.takes(sizes)]
    if not fitting:
        asked = ", ".join("x".join(map(str, size)) for size in sizes.values())
        known = " or ".join(sorted({_range(profile) for profile in profiles}))
        raise UsageError(f"inputs of {asked}", f"{known}, as the engine was built", "build one with --image-size")
    least, most = min(profile.rows[0] for profile in fitting), max(profile.rows[2] for profile in fitting)
    most = max(least, min(most, limit or most))
    chunks = []
    for start in range(0, rows, most):
        stop = min(start + most, rows)
        profile, computed = _profile_for(fitting, stop - start)
        chunks.append(Chunk(start, stop, computed, profile.index))
    return chunks


def of_few_sizes(chunk: Chunk, profiles: tuple[Profile, ...]) -> Chunk:
    """Return the chunk with as many rows computed as the next of few sizes has, where its profile takes so many.

    Each size has a context, buffers and a CUDA graph of its own. Up to seven rows are exact; above, the sizes are a
    quarter of a power of two apart: 8, 10, 12, 14, 16, 20, 24, 28, 32, 40.
    """
    apart = 1 << max(0, chunk.computed.bit_length() - 3)
    most = next(profile.rows[2] for profile in profiles if profile.index == chunk.profile)
    return dataclasses.replace(chunk, computed=min(-(-chunk.computed // apart) * apart, most))


def _profile_for(profiles: list[Profile], rows: int) -> tuple[Profile, int]:
    """Return the profile for so many rows, and how many it computes."""
    able = [profile for profile in profiles if profile.rows[0] <= rows <= profile.rows[2]]
    if able:
        return min(able, key=lambda profile: (abs(profile.rows[1] - rows), profile.index)), rows
    # Between two profiles, or below all: the next one up, padded to its least.
    above = [profile for profile in profiles if profile.rows[0] > rows]
    profile = min(above, key=lambda profile: (profile.rows[0], profile.index))
    return profile, profile.rows[0]


def _range(profile: Profile) -> str:
    low, _, high = next(iter(profile.shapes.values()))
    texts = ["x".join(map(str, shape[1:])) for shape in (low, high)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"
