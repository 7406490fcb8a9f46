"""What a count of hits says about the truth: Wilson's interval, and the exact test of two models on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z_95 = 1.959963984540054  # the normal distribution's quantile at 0.975


@dataclass(frozen=True)
class Rate:
    """A share of images, with the interval that covers the true share in 95 of 100 samples.

    Attributes:
        hits, total: counts.
        value: hits / total, 0..1; None where there is no image.
        low, high: Wilson's score interval at 95 %; None where there is no image.
    """

    hits: int
    total: int
    value: float | None
    low: float | None
    high: float | None


def rate(hits: int, total: int) -> Rate:
    """Return the share with its interval (Wilson 1927; Brown, Cai and DasGupta 2001, equation 4)."""
    if total == 0:
        return Rate(0, 0, None, None, None)
    share = hits / total
    z2 = _Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    # At the ends the bound is exactly 0 or 1; rounding would leave it beside.
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == total else centre + half
    return Rate(hits, total, share, low, high)


@dataclass(frozen=True)
class Pair:
    """Two candidates on the same images.

    Attributes:
        first, second: their names.
        images: compared.
        only_first, only_second: images that only one of them gets right.
        difference: accuracy of the second less that of the first, -1..1.
        p_value: how often a fair coin would share these images as unevenly or more so: McNemar's test, exact.
    """

    first: str
    second: str
    images: int
    only_first: int
    only_second: int
    difference: float
    p_value: float


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p-value: `only_first` of n tosses of a fair coin, n = only_first + only_second."""
    tosses = only_first + only_second
    term = total = 1
    for index in range(min(only_first, only_second)):
        term = term * (tosses - index) // (index + 1)
        total += term
    return min(1.0, 2 * total / 2**tosses)
