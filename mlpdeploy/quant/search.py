"""Which blocks to keep out of INT8: what each one costs alone, and the search for just enough of them.

The search is greedy: blocks are kept in the order of the damage that they do alone, until the goal is reached (found by
bisection, since keeping more rarely hurts), and then given back one by one, the largest first, where the goal still
holds without them. Every answer was measured: the set that is returned has been quantized, run and compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mlpdeploy.errors import UsageError

Keep = frozenset[str]


@dataclass(frozen=True)
class Cost:
    """What a quantization costs on the images that it was measured on.

    Attributes:
        sqnr_db: power of the float32 logits over power of the error, in decibels.
        drop: points of top-1 accuracy lost, or, without labels, percent of images that get another class than in
            float32, which the loss cannot exceed.
    """

    sqnr_db: float
    drop: float


@dataclass(frozen=True)
class Goal:
    """What a mixed-precision model has to keep; None means no demand."""

    max_drop: float | None = None
    min_sqnr_db: float | None = None

    def __post_init__(self) -> None:
        if self.max_drop is not None and not self.max_drop >= 0:
            raise UsageError(f"max-drop is {self.max_drop}", "points of accuracy, 0 or more")
        if self.min_sqnr_db is not None and math.isnan(self.min_sqnr_db):
            raise UsageError("min-sqnr is nan", "decibels")

    def reached(self, cost: Cost) -> bool:
        """Return whether a cost is within the goal."""
        return (self.max_drop is None or cost.drop <= self.max_drop) and (
            self.min_sqnr_db is None or cost.sqnr_db >= self.min_sqnr_db
        )


@dataclass(frozen=True)
class BlockCost:
    """One block's part in the damage.

    Attributes:
        block: its name.
        macs: multiply-adds of its quantized products, per image.
        alone: cost with this block alone in INT8.
        without: cost with every block but this one in INT8.
    """

    block: str
    macs: int
    alone: Cost
    without: Cost


@dataclass(frozen=True)
class SearchResult:
    """What the search found.

    Attributes:
        keep: blocks that stay out of INT8.
        cost: measured with exactly these.
        tried: how many sets were measured.
    """

    keep: tuple[str, ...]
    cost: Cost
    tried: int


Measure = Callable[[Keep], Cost]


def sensitivity(macs: Mapping[str, int], measure: Measure, progress: Callable[[int, int], None]) -> list[BlockCost]:
    """Return every block's cost, the most harmful first.

    Args:
        macs: {block: multiply-adds}.
        measure: returns the cost of quantizing all blocks but those in the given set.
        progress: called with (measurements done, all of them).
    """
    everything = frozenset(macs)
    found: list[BlockCost] = []
    for index, (block, count) in enumerate(macs.items()):
        alone = measure(everything - {block})
        progress(2 * index + 1, 2 * len(macs))
        without = measure(frozenset({block}))
        progress(2 * index + 2, 2 * len(macs))
        found.append(BlockCost(block, count, alone, without))
    return sorted(found, key=lambda cost: (cost.alone.sqnr_db, cost.block))


def search(ranked: Sequence[BlockCost], goal: Goal, measure: Measure) -> SearchResult:
    """Return the fewest blocks, in the sense of the module's docstring, whose keeping reaches the goal.

    Args:
        ranked: from `sensitivity`, the most harmful first.

    Raises:
        UsageError: the goal is not reached even with a single block in INT8.
    """
    seen: dict[Keep, Cost] = {}

    def cost_of(keep: Keep) -> Cost:
        if keep not in seen:
            seen[keep] = measure(keep)
        return seen[keep]

    names = [cost.block for cost in ranked]
    low, high = 0, len(names) - 1
    last = cost_of(frozenset(names[:high]))
    if not goal.reached(last):
        raise UsageError(
            f"even with {names[-1]} alone in INT8: {last.sqnr_db:.1f} dB and a drop of {last.drop:.2f}",
            "the goal that was given",
            "take fp16, or a goal that INT8 can reach",
        )
    while low < high:
        middle = (low + high) // 2
        if goal.reached(cost_of(frozenset(names[:middle]))):
            high = middle
        else:
            low = middle + 1
    keep = frozenset(names[:high])
    for block in sorted(keep, key=lambda name: -next(cost.macs for cost in ranked if cost.block == name)):
        if goal.reached(cost_of(keep - {block})):
            keep -= {block}
    return SearchResult(tuple(name for name in names if name in keep), cost_of(keep), len(seen))
