"""One load, measured: what was answered, how fast, and whether the generator itself kept up."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Mode = Literal["closed", "open"]

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
# For the chart: dense where the tail is.
CURVE = (*range(0, 90, 5), *(100 - 10 ** (1 - index / 8) for index in range(33)))
BUSY_SHARE = 0.85  # of one processor: above it, the generator may be what is slow
LATE_MS, LATE_SHARE = 1.0, 0.1  # lateness that is too much: in itself, and as a share of the median latency


@dataclass
class Recorder:
    """Collects samples while a load runs; seconds."""

    latencies: array[float] = field(default_factory=lambda: array("d"))
    lateness: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    without_connection: int = 0


@dataclass(frozen=True)
class Step:
    """What one load found. Percentiles are exact: the smallest sample that so many percent do not exceed.

    Attributes:
        mode: `closed`: clients that wait for their answers; latency counts from the sending. `open`: arrivals at a
            rate; latency counts from the time at which the request was due, whether or not it could be sent then.
        clients: of a closed loop.
        rate: requests a second that an open loop was to send.
        seconds: that were measured.
        sent: requests that fell into them.
        answered: of these, the good answers.
        errors: {kind: how many} of these.
        throughput: good answers a second that came within the measured time.
        rows_per_s: the same in rows.
        latency_ms: {`p50`: ...} with `mean` and `max`, of the good answers; empty where there is none.
        curve_ms: (percentile, latency) for a chart.
        late_p99_ms: by how much requests left later than they were due although a connection was free.
        without_connection: requests that found every connection in use.
        generator_busy: share of one processor that the generator's event loop took.
    """

    mode: Mode
    clients: int | None
    rate: float | None
    seconds: float
    sent: int
    answered: int
    errors: dict[str, int]
    throughput: float
    rows_per_s: float
    latency_ms: dict[str, float]
    curve_ms: tuple[tuple[float, float], ...]
    late_p99_ms: float
    without_connection: int
    generator_busy: float

    @property
    def failed(self) -> int:
        """Requests without a good answer."""
        return sum(self.errors.values())

    @property
    def notes(self) -> list[str]:
        """What one must know before one believes the figures: where the generator was the slow part."""
        found = []
        if not self.sent:
            found.append("no request fell into the measured time: measure longer, or at a higher rate")
        if self.generator_busy > BUSY_SHARE:
            found.append(
                f"the generator was busy {100 * self.generator_busy:.0f} % of the time: it may be the limit, and not "
                "the server"
            )
        if self.late_p99_ms > max(LATE_MS, LATE_SHARE * self.latency_ms.get("p50", 0.0)):
            found.append(
                f"the generator sent 1 % of the requests more than {self.late_p99_ms:.1f} ms late; the latencies "
                "contain that"
            )
        if self.without_connection:
            found.append(
                f"{self.without_connection} requests found all connections in use and waited; their latencies contain "
                "the wait"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the step for a JSON file."""
        return {**dataclasses.asdict(self), "notes": self.notes}


def step_from(
    recorder: Recorder,
    *,
    mode: Mode,
    seconds: float,
    rows: int,
    busy: float,
    clients: int | None = None,
    rate: float | None = None,
) -> Step:
    """Return what a recorder collected in `seconds`, `rows` in each request."""
    samples = np.sort(np.frombuffer(recorder.latencies, np.float64) * 1e3)
    late = np.sort(np.frombuffer(recorder.lateness, np.float64) * 1e3)
    latency: dict[str, float] = {}
    curve: tuple[tuple[float, float], ...] = ()
    if len(samples):
        latency = {f"p{p:g}": percentile(samples, p) for p in PERCENTILES}
        latency |= {"mean": round(float(samples.mean()), 4), "max": round(float(samples.max()), 4)}
        # A percentile that fewer than one sample stands for says nothing.
        sure = [p for p in CURVE if (100 - p) * len(samples) >= 100]
        curve = tuple((round(float(p), 6), percentile(samples, p)) for p in sure)
    return Step(
        mode=mode,
        clients=clients,
        rate=rate,
        seconds=round(seconds, 3),
        sent=len(samples) + sum(recorder.errors.values()),
        answered=len(samples),
        errors=dict(recorder.errors.most_common()),
        throughput=round(recorder.completed / seconds, 3),
        rows_per_s=round(recorder.completed * rows / seconds, 3),
        latency_ms=latency,
        curve_ms=curve,
        late_p99_ms=percentile(late, 99) if len(late) else 0.0,
        without_connection=recorder.without_connection,
        generator_busy=round(busy, 3),
    )


def percentile(ordered: np.ndarray, percent: float) -> float:
    """Return the smallest sample that `percent` of all samples do not exceed (nearest rank).

    Args:
        ordered: (N,) float64, rising, at least one.
        percent: 0 to 100.
    """
    # Rounded first: 99.9 % of 1000 samples is 999, not the next integer above 999.0000000000001.
    rank = math.ceil(round(percent / 100 * len(ordered), 6))
    return round(float(ordered[max(rank, 1) - 1]), 4)
