"""Measure several ways of computing the same thing, side by side: interleaved runs, percentiles, paired ratios.

One round gives every candidate one turn, and the order rotates from round to round, so that a slow second of the
machine hits all of them alike. A turn is one run that is timed, after at least one, and at least 60 ms, that are not:
the threads of the previous candidate still spin for a while, ONNX Runtime's for 40 ms and more, and its weights fill
the caches. Timed at once, everything was 25 to 45 % slower than alone on two processors; timed like this, as fast as
alone. With 20 ms, models of 10 ms a run still were up to half as fast as alone.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlpdeploy.errors import InternalError, UsageError

Run = Callable[[np.ndarray], Sequence[np.ndarray]]
Progress = Callable[[str], None]

WARMUP = 2
MIN_RUNS = 10
SECONDS = 20.0
SETTLE_NS = 60_000_000  # of a turn, before a run is timed
_PROGRESS_INTERVAL_NS = 5_000_000_000


@dataclass(frozen=True)
class Candidate:
    """One way of computing.

    Attributes:
        name: of the row in tables and JSON.
        run: takes one batch, gives the outputs.
    """

    name: str
    run: Run


@dataclass(frozen=True)
class Timing:
    """What was measured of one candidate at one batch size.

    Attributes:
        name: the candidate's.
        batch: rows of one run.
        runs: timed runs.
        p50_ms, p95_ms, p99_ms, min_ms, mean_ms: wall time of one run.
        images_per_s: rows over the median time.
        time_over_baseline: median over the rounds of this candidate's time over the baseline's in the same round;
            2.0 says that the baseline is twice as fast.
    """

    name: str
    batch: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    mean_ms: float
    images_per_s: float
    time_over_baseline: float


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile of unsorted values by linear interpolation between the two nearest ranks."""
    if not values or not 0 <= percent <= 100:
        raise InternalError(f"percentile {percent} of {len(values)} values")
    ranked = sorted(values)
    position = (len(ranked) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (position - below)


def median_ratio(times: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the median of the per-round ratios time / baseline; element i of both is of round i."""
    return statistics.median(one / other for one, other in zip(times, baseline, strict=True))


def measure_interleaved(
    candidates: Sequence[Candidate],
    feeds: Sequence[np.ndarray],
    *,
    baseline: str | None = None,
    warmup: int = WARMUP,
    min_runs: int = MIN_RUNS,
    seconds: float = SECONDS,
    progress: Progress | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[Timing]:
    """Return one Timing per candidate, in the order given.

    Args:
        candidates: at least one, with different names.
        feeds: batches of the same size; round i uses batch i modulo their number, for all candidates.
        baseline: name of the candidate that the ratios are relative to; None means the first.
        warmup: runs of each candidate before the first round.
        min_runs: rounds at least, however long they take.
        seconds: of all candidates together; rounds begin until that time has passed.
        progress: told in words, every five seconds.
        clock: nanoseconds, monotonic.

    Raises:
        UsageError: no candidate, two of one name, an unknown baseline, no batch, unequal batches, or a count or time
            that is out of range.
    """
    names = [candidate.name for candidate in candidates]
    reference = names[0] if baseline is None and names else baseline
    _check(names, reference, feeds)
    check_effort(warmup, min_runs, seconds)
    for candidate in candidates:
        for _ in range(warmup):
            candidate.run(feeds[0])
    times = _run_rounds(candidates, feeds, min_runs, seconds, progress, clock)
    return [_timing(name, len(feeds[0]), times[name], times[str(reference)]) for name in names]


def _run_rounds(
    candidates: Sequence[Candidate],
    feeds: Sequence[np.ndarray],
    min_runs: int,
    budget_s: float,
    progress: Progress | None,
    clock: Callable[[], int],
) -> dict[str, list[float]]:
    """Return {name: milliseconds per round}."""
    times: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    began = told = clock()
    rounds = 0
    while rounds < min_runs or clock() - began < budget_s * 1e9:
        feed = feeds[rounds % len(feeds)]
        first = rounds % len(candidates)
        for candidate in (*candidates[first:], *candidates[:first]):
            entered = clock()
            candidate.run(feed)
            while clock() - entered < SETTLE_NS:
                candidate.run(feed)
            start = clock()
            candidate.run(feed)
            times[candidate.name].append(max(clock() - start, 1) / 1e6)
        rounds += 1
        now = clock()
        if progress is not None and now - told >= _PROGRESS_INTERVAL_NS:
            told = now
            progress(f"round {rounds}, {(now - began) / 1e9:.0f} of at least {budget_s:.0f} s")
    return times


def _timing(name: str, batch: int, times_ms: list[float], baseline_ms: list[float]) -> Timing:
    p50, p95, p99 = (percentile(times_ms, percent) for percent in (50, 95, 99))
    return Timing(
        name=name,
        batch=batch,
        runs=len(times_ms),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        min_ms=min(times_ms),
        mean_ms=statistics.fmean(times_ms),
        images_per_s=batch * 1000 / p50,
        time_over_baseline=median_ratio(times_ms, baseline_ms),
    )


def check_effort(warmup: int, min_runs: int, seconds: float) -> None:
    """Raise UsageError if so many runs in so many seconds cannot be measured."""
    if warmup < 0 or min_runs < 1:
        raise UsageError(f"{warmup} warm-up and {min_runs} timed runs", "at least 0 and 1")
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UsageError(f"seconds is {seconds}", "a finite number that is not negative")


def _check(names: list[str], baseline: str | None, feeds: Sequence[np.ndarray]) -> None:
    """Raise UsageError unless the candidates can be compared."""
    if not names or len(set(names)) != len(names):
        raise UsageError(f"candidates named {', '.join(names) or 'nothing'}", "at least one, with different names")
    if baseline not in names:
        raise UsageError(f"the baseline is {baseline!r}", f"one of: {', '.join(names)}")
    sizes = {feed.shape for feed in feeds}
    if len(sizes) != 1:
        raise UsageError(f"batches of the shapes {sorted(sizes)}", "one shape")
