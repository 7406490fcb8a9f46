"""A histogram that grows with its data: one pass, fixed memory, the same counts in whatever pieces the data comes.

Bins are `2**exponent` wide and begin at multiples of their width, so two neighbours (2j, 2j + 1) make exactly one bin j
of twice the width. When a value lies outside, the width doubles until it lies inside. Because the bins are aligned to
zero, the result is the histogram that the final width would have given from the start. (Negative values so small that
dividing them by the width underflows count as zero.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

BINS = 4096  # half of them for negative values; the largest magnitude falls in the upper half of its side
HALF = BINS // 2
_SMALLEST = -140  # exponent: 2**-140 * HALF is below every normal float32
_CHUNK = 1 << 15  # values at once: the intermediate arrays stay in a core's cache


@dataclass
class Histogram:
    """Counts of the values of one tensor, with their exact extremes.

    Attributes:
        minimum, maximum: of all values; +-inf before the first.
        exponent: bins are 2**exponent wide.
        counts: (BINS,) int64; bin i holds values from (i - HALF) * 2**exponent, included, to the next, excluded.
    """

    minimum: float = math.inf
    maximum: float = -math.inf
    exponent: int = _SMALLEST
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def total(self) -> int:
        """Values counted."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def centres(self) -> np.ndarray:
        """(BINS,) float64: the middle of each bin."""
        return (np.arange(-HALF, HALF) + 0.5) * self.width

    def add(self, values: np.ndarray) -> None:
        """Count float32 values of any shape. They must be finite: check `extremes` first."""
        if values.size == 0:
            return
        low, high = extremes(values)
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._grow(max(-low, high))
        scale = np.float32(1 / self.width) if self.exponent > -126 else None
        flat = values.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            piece = flat[start : start + _CHUNK]
            # A product with a power of two is exact, so the bins' edges are.
            scaled = piece * scale if scale is not None else (piece.astype(np.float64) / self.width)
            np.floor(scaled, out=scaled)
            self.counts += np.bincount(scaled.astype(np.intp) + HALF, minlength=BINS)

    def _grow(self, magnitude: float) -> None:
        """Double the bins' width until a value of this magnitude lies inside."""
        wanted = max(math.frexp(magnitude / HALF)[1], _SMALLEST) if magnitude else _SMALLEST
        for _ in range(min(wanted - self.exponent, BINS.bit_length())):
            half = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[HALF // 2 : HALF // 2 + HALF] = half
        self.exponent = max(self.exponent, wanted)


def extremes(values: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest value, NaN where any value is NaN."""
    return float(values.min()), float(values.max())
