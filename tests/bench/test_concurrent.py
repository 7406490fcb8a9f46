"""Several callers at once: what they get together, and whose errors are seen."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mlpdeploy.bench.concurrent import ROUNDS, measure_concurrent
from mlpdeploy.bench.report import read_report
from mlpdeploy.bench.run import bench_artifact, write_report
from mlpdeploy.errors import UsageError

FEED = np.zeros((2, 3, 4, 4), np.float32)
SLEEP = 0.02


def sleeps(feed: np.ndarray) -> list[np.ndarray]:
    time.sleep(SLEEP)
    return [feed]


def test_callers_that_do_not_wait_for_each_other_get_more() -> None:
    one, four = measure_concurrent(sleeps, FEED, (1, 4), seconds=2.4)
    assert (one.callers, four.callers, one.batch) == (1, 4, 2)
    assert one.images_per_s <= 2 / SLEEP  # on a busy machine it sleeps longer
    assert 2.5 * one.images_per_s < four.images_per_s <= 4 * 2 / SLEEP
    assert four.p50_ms >= 1000 * SLEEP
    for each in (one, four):
        assert each.lowest_images_per_s <= each.images_per_s <= each.highest_images_per_s
        assert each.p50_ms <= each.p95_ms <= each.p99_ms


def test_callers_that_wait_for_each_other_get_no_more_and_wait_longer() -> None:
    lock = threading.Lock()

    def alone(feed: np.ndarray) -> list[np.ndarray]:
        with lock:
            return sleeps(feed)

    one, four = measure_concurrent(alone, FEED, (1, 4), seconds=2.4)
    assert four.images_per_s < 1.5 * one.images_per_s
    assert four.p99_ms > 2 * one.p50_ms


def test_each_caller_is_timed_though_there_is_no_time_and_its_first_run_is_not() -> None:
    calls: list[int] = []

    def counted(feed: np.ndarray) -> list[np.ndarray]:
        calls.append(threading.get_ident())
        return sleeps(feed)

    (three,) = measure_concurrent(counted, FEED, (3,), seconds=0.0)
    assert three.runs == 3 * ROUNDS
    assert len(calls) == 2 * 3 * ROUNDS


def test_no_caller_is_timed_before_all_are_there() -> None:
    events: list[tuple[str, str]] = []

    def uneven(feed: np.ndarray) -> list[np.ndarray]:
        name = threading.current_thread().name
        events.append(("begins", name))
        time.sleep(0.02 * int(name[-1]))
        events.append(("ends", name))
        return [feed]

    measure_concurrent(uneven, FEED, (3,), seconds=0.0)
    each = len(events) // ROUNDS
    for start in range(0, len(events), each):
        found = events[start : start + each]
        names = {name for _, name in found}
        warm = [found.index(("ends", name)) for name in names]
        timed = [found.index(("begins", name), found.index(("ends", name))) for name in names]
        assert max(warm) < min(timed)


def test_an_error_of_one_caller_ends_all() -> None:
    def fails(feed: np.ndarray) -> list[np.ndarray]:
        if threading.current_thread().name == "caller-2":
            raise UsageError("no")
        return sleeps(feed)

    with pytest.raises(UsageError, match="no"):
        measure_concurrent(fails, FEED, (3,), seconds=60.0)


def test_in_a_report(exported: Path, tmp_path: Path) -> None:
    report = bench_artifact(
        exported, batches=(1, 2), threads=1, seconds=0.1, min_runs=2, peers=(), memory=False, callers=(1, 3)
    )
    assert [(one.batch, one.callers) for one in report.concurrent] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert report.options["callers"] == (1, 3)
    write_report(report, tmp_path / "bench.json")
    assert read_report(tmp_path / "bench.json").to_dict() == report.to_dict()


@pytest.mark.parametrize("callers", [(0,), (2, 2), (5000,)])
def test_impossible_numbers(exported: Path, callers: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="different numbers from 1 to 1024"):
        bench_artifact(exported, peers=(), callers=callers)
