"""Throughput: several threads call one session at once, each as soon as it has its answer (a closed loop)."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlpdeploy.bench.measure import Run, percentile
from mlpdeploy.errors import UsageError

ROUNDS = 3
_MOST_CALLERS = 1024


@dataclass(frozen=True)
class Throughput:
    """What so many callers got together.

    Attributes:
        callers: threads.
        batch: rows of one run.
        runs: finished runs of all of them, over all rounds.
        images_per_s: of all of them together, the median of the rounds.
        lowest_images_per_s, highest_images_per_s: of the rounds.
        p50_ms, p95_ms, p99_ms: wall time of one run, over all rounds.
    """

    callers: int
    batch: int
    runs: int
    images_per_s: float
    lowest_images_per_s: float
    highest_images_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def check_callers(callers: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of callers, or raise UsageError where one comes twice or cannot be."""
    if len(set(callers)) != len(callers) or any(not 1 <= count <= _MOST_CALLERS for count in callers):
        raise UsageError(f"{', '.join(map(str, callers))} callers", f"different numbers from 1 to {_MOST_CALLERS}")
    return tuple(callers)


def measure_concurrent(run: Run, feed: np.ndarray, callers: Sequence[int], seconds: float) -> list[Throughput]:
    """Return one record for each number of callers, in the order given.

    The numbers take turns, `ROUNDS` times, so that a slow second of the machine does not hit one of them alone. Each
    caller's first run of a round is not counted: it takes buffers that later runs find there.

    Args:
        run: may be called from several threads.
        feed: the batch that every call computes.
        callers: see `check_callers`.
        seconds: of all rounds of all numbers together.

    Raises:
        Whatever a run raises.
    """
    rates: dict[int, list[float]] = {count: [] for count in callers}
    times: dict[int, list[float]] = {count: [] for count in callers}
    for _ in range(ROUNDS):
        for count in callers:
            rate, took = _round(run, feed, count, seconds / (ROUNDS * len(callers)))
            rates[count].append(rate * len(feed))
            times[count] += took
    return [
        Throughput(
            callers=count,
            batch=len(feed),
            runs=len(times[count]),
            images_per_s=statistics.median(rates[count]),
            lowest_images_per_s=min(rates[count]),
            highest_images_per_s=max(rates[count]),
            p50_ms=percentile(times[count], 50),
            p95_ms=percentile(times[count], 95),
            p99_ms=percentile(times[count], 99),
        )
        for count in callers
    ]


def _round(run: Run, feed: np.ndarray, count: int, seconds: float) -> tuple[float, list[float]]:
    """Return (runs a second of all callers, milliseconds of each run).

    A caller's rate is that of its own runs over its own time, so that it does not matter whose run ends last.
    """
    together = threading.Barrier(count)
    found: list[tuple[float, list[float]]] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            run(feed)
            together.wait()
            times: list[float] = []
            began = before = time.perf_counter()
            while before - began < seconds or not times:
                run(feed)
                now = time.perf_counter()
                times.append(1000 * (now - before))
                before = now
            found.append((len(times) / (before - began), times))
        except threading.BrokenBarrierError:
            pass  # another caller's error is in `errors`
        except BaseException as error:  # noqa: BLE001 - raised again by who waits for the threads
            errors.append(error)
            together.abort()

    threads = [threading.Thread(target=call, name=f"caller-{index}", daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(rate for rate, _ in found), [took for _, times in found for took in times]
