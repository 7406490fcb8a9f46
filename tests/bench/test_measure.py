"""The arithmetic and the order of a measurement, with a clock that the test moves."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpdeploy.bench import measure
from mlpdeploy.bench.measure import Candidate, measure_interleaved, median_ratio, percentile
from mlpdeploy.errors import InternalError, UsageError

MS = 1_000_000
FEED = np.zeros((4, 3, 2, 2), np.float32)


@pytest.fixture(autouse=True)
def settled_after_20_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short, so that the runs of a test can be counted."""
    monkeypatch.setattr(measure, "SETTLE_NS", 20 * MS)


class Clock:
    """Nanoseconds that pass only when a candidate runs."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Machine:
    """Candidates on one fake clock; `calls` has (name, first value of the batch) of every run."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.calls: list[tuple[str, float]] = []

    def candidate(self, name: str, times_ms: list[float]) -> Candidate:
        runs = iter(times_ms)

        def run(batch: np.ndarray) -> list[np.ndarray]:
            self.calls.append((name, float(batch.flat[0])))
            self.clock.now += round(next(runs) * MS)
            return [batch]

        return Candidate(name, run)

    def steady(self, name: str, time_ms: float) -> Candidate:
        return self.candidate(name, [time_ms] * 1000)


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=40),
    st.one_of(st.sampled_from([0.0, 50.0, 95.0, 99.0, 100.0]), st.floats(0, 100)),
)
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-9, abs=1e-9)


def test_percentile_interpolates_between_ranks() -> None:
    assert percentile([30.0, 10.0, 20.0, 40.0], 50) == 25.0
    assert percentile([7.0], 99) == 7.0


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_refuses_what_has_none(values: list[float], percent: float) -> None:
    with pytest.raises(InternalError):
        percentile(values, percent)


def test_ratio_is_the_median_of_the_rounds_not_the_ratio_of_the_medians() -> None:
    times, baseline = [10.0, 40.0, 90.0], [10.0, 10.0, 30.0]
    assert median_ratio(times, baseline) == 3.0
    assert statistics.median(times) / statistics.median(baseline) == 4.0


def test_rounds_are_interleaved_and_rotated_and_each_turn_begins_untimed() -> None:
    machine = Machine()
    candidates = [machine.steady(name, 25) for name in "abc"]
    measure_interleaved(candidates, [FEED], warmup=1, min_runs=4, seconds=0, clock=machine.clock)
    order = "".join(name for name, _ in machine.calls)
    assert order == "abc" + "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc"


def test_only_the_second_run_of_a_turn_counts() -> None:
    machine = Machine()
    candidate = machine.candidate("a", [50.0, 900.0, 1.0, 900.0, 3.0, 900.0, 2.0])
    (timing,) = measure_interleaved([candidate], [FEED], warmup=1, min_runs=3, seconds=0, clock=machine.clock)
    assert (timing.min_ms, timing.p50_ms, timing.mean_ms, timing.runs) == (1.0, 2.0, 2.0, 3)
    assert timing.p99_ms == pytest.approx(np.percentile([1, 2, 3], 99))


def test_a_short_run_is_repeated_until_the_other_threads_have_settled() -> None:
    machine = Machine()
    candidates = [machine.steady("short", 6), machine.steady("long", 21)]
    measure_interleaved(candidates, [FEED], warmup=0, min_runs=1, seconds=0, clock=machine.clock)
    assert [name for name, _ in machine.calls] == ["short"] * 4 + ["short"] + ["long"] + ["long"]


def test_throughput_and_ratio_are_of_the_right_candidate() -> None:
    machine = Machine()
    candidates = [machine.steady("slow", 20), machine.steady("ours", 5)]
    slow, ours = measure_interleaved(
        candidates, [FEED], baseline="ours", warmup=0, min_runs=2, seconds=0, clock=machine.clock
    )
    assert (slow.name, slow.batch, slow.images_per_s, slow.time_over_baseline) == ("slow", 4, 200.0, 4.0)
    assert (ours.name, ours.images_per_s, ours.time_over_baseline) == ("ours", 800.0, 1.0)


def test_a_slow_second_does_not_change_the_ratio() -> None:
    machine = Machine()
    slow_round = [30.0, 30.0, 300.0, 300.0, 30.0, 30.0]
    candidates = [machine.candidate("a", slow_round), machine.candidate("b", [2 * time for time in slow_round])]
    _, timing = measure_interleaved(candidates, [FEED], warmup=0, min_runs=3, seconds=0, clock=machine.clock)
    assert timing.time_over_baseline == 2.0


def test_rounds_go_on_until_the_time_has_passed() -> None:
    machine = Machine()
    candidates = [machine.steady("a", 100), machine.steady("b", 150)]
    timings = measure_interleaved(candidates, [FEED], warmup=0, min_runs=1, seconds=1.9, clock=machine.clock)
    assert [timing.runs for timing in timings] == [4, 4]  # half a second each


def test_batches_take_turns_by_round() -> None:
    machine = Machine()
    feeds = [np.full((1, 1), value, np.float32) for value in (1, 2)]
    measure_interleaved([machine.steady("a", 20)], feeds, warmup=0, min_runs=3, seconds=0, clock=machine.clock)
    assert [value for _, value in machine.calls] == [1, 1, 2, 2, 1, 1]


def test_progress_is_told_now_and_then() -> None:
    machine, told = Machine(), list[str]()
    measure_interleaved(
        [machine.steady("a", 2000)], [FEED], warmup=0, min_runs=4, seconds=0, progress=told.append, clock=machine.clock
    )
    assert told == ["round 2, 8 of at least 0 s", "round 4, 16 of at least 0 s"]


@pytest.mark.parametrize(
    ("names", "feeds", "options", "message"),
    [
        ("", [FEED], {}, "candidates named nothing"),
        ("aa", [FEED], {}, "candidates named a, a"),
        ("ab", [FEED], {"baseline": "c"}, "the baseline is 'c'; wanted one of: a, b"),
        ("ab", [], {}, "wanted one shape"),
        ("ab", [FEED, FEED[:1]], {}, "wanted one shape"),
        ("ab", [FEED], {"min_runs": 0}, "0 timed runs"),
        ("ab", [FEED], {"warmup": -1}, "-1 warm-up"),
        ("ab", [FEED], {"seconds": float("nan")}, "seconds is nan"),
    ],
)
def test_impossible_requests_are_refused(names: str, feeds: list[np.ndarray], options: dict, message: str) -> None:
    machine = Machine()
    with pytest.raises(UsageError, match=message):
        measure_interleaved([machine.steady(name, 1) for name in names], feeds, clock=machine.clock, **options)
    assert not machine.calls
