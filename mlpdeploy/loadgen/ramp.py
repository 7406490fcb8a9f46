"""Raise the rate until the server no longer keeps up: the knee is the highest rate that it kept up with."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlpdeploy.errors import UsageError
from mlpdeploy.loadgen.loops import closed_loop, open_loop
from mlpdeploy.loadgen.options import LoadOptions, RampOptions
from mlpdeploy.loadgen.step import Step
from mlpdeploy.loadgen.target import LoadError, Target

MOST_STEPS = 40
ALONE_SECONDS = 2.0  # at most, for the one client that the limits are taken from
LIMIT_OVER_MEDIAN, LEAST_LIMIT_MS = 10.0, 10.0
LEAST_REQUESTS = 10  # of a step: fewer say nothing about a percentile
KEEPS_UP = 0.95  # of what arrives has to be answered in the same time
_LEAST_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Ramp:
    """What a ramp found.

    Attributes:
        alone: one client without neighbours, which the defaults come from.
        steps: by rate.
        verdicts: for each step why it was too much; empty where it was not.
        p99_limit_ms, error_limit: what was asked of a step.
        knee: the highest rate below the first that was too much; None where every rate was.
        reason: what ended the ramp.
    """

    alone: Step
    steps: tuple[Step, ...]
    verdicts: tuple[str, ...]
    p99_limit_ms: float
    error_limit: float
    knee: float | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the ramp for a JSON file."""
        body = dataclasses.asdict(self)
        steps = [
            {**step.to_dict(), "too_much": verdict} for step, verdict in zip(self.steps, self.verdicts, strict=True)
        ]
        return {**{key: body[key] for key in body if key != "verdicts"}, "alone": self.alone.to_dict(), "steps": steps}


async def find_knee(
    target: Target,
    options: LoadOptions,
    ramp: RampOptions,
    tell: Callable[[str], None] = lambda text: None,
    stop: asyncio.Event | None = None,
) -> Ramp:
    """Return the steps of a ramp: first by a factor each, then between the last good rate and the first bad one.

    `stop` ends it early, with the steps that are whole and without a knee.

    Raises:
        LoadError: one client alone gets no answer, or it was stopped before one step was whole.
        UsageError: the first step would have too few requests to judge.
    """
    least_rate = LEAST_REQUESTS / options.duration_s
    if ramp.start_rate is not None and ramp.start_rate < least_rate:
        raise UsageError(
            f"a ramp from {ramp.start_rate:g} requests/s in steps of {options.duration_s:g} s",
            f"at least {LEAST_REQUESTS} requests in a step",
            "raise --rate or --duration",
        )
    stop = stop or asyncio.Event()
    alone = await closed_loop(
        target, dataclasses.replace(options, clients=1, duration_s=min(options.duration_s, ALONE_SECONDS)), stop
    )
    if not alone.answered:
        kinds = ", ".join(alone.errors)
        raise LoadError(f"one client alone gets no answer ({kinds})", "a server that answers before the ramp begins")
    limit_ms = ramp.p99_limit_ms or max(LEAST_LIMIT_MS, LIMIT_OVER_MEDIAN * alone.latency_ms["p50"])
    # What takes twice the limit is too late in any case; waiting longer for it would only make the ramp slow.
    options = dataclasses.replace(options, timeout_s=min(options.timeout_s, max(_LEAST_TIMEOUT_S, 2e-3 * limit_ms)))
    found: dict[float, tuple[Step, str]] = {}

    async def good(rate: float) -> bool:
        try:
            step = await open_loop(target, options, rate, stop)
        except LoadError:
            if not stop.is_set():
                raise
        if stop.is_set():
            return False
        verdict = too_much(step, limit_ms, ramp.error_limit)
        found[rate] = step, verdict
        p99 = f"p99 {step.latency_ms['p99']:.1f} ms" if step.latency_ms else "no answer"
        tell(f"{rate:.1f} requests/s: {step.throughput:.1f} answered, {p99}" + (f": {verdict}" if verdict else ""))
        return not verdict

    rate = ramp.start_rate or max(least_rate, alone.throughput / 2)
    below, above = 0.0, math.inf
    while rate >= least_rate and len(found) < MOST_STEPS and not stop.is_set():
        if await good(rate):
            below, rate = rate, rate * ramp.factor
        else:
            above, rate = rate, rate / ramp.factor  # where the first rate is too much, go down to one that is not
        if below and math.isfinite(above):
            break
    for _ in range(ramp.refinements if below and math.isfinite(above) else 0):
        middle = math.sqrt(below * above)
        if stop.is_set():
            break
        if await good(middle):
            below = middle
        else:
            above = middle
    if not found:
        raise LoadError("stopped before a step was measured")
    rates = sorted(found)
    reason = found[above][1] if above in found else f"nothing after {MOST_STEPS} steps"
    if above in found and found[above][0].notes:
        reason += "; " + "; ".join(found[above][0].notes)
    if stop.is_set():
        below, reason = 0.0, "stopped before the knee was known"
    return Ramp(
        alone=alone,
        steps=tuple(found[rate][0] for rate in rates),
        verdicts=tuple(found[rate][1] for rate in rates),
        p99_limit_ms=limit_ms,
        error_limit=ramp.error_limit,
        knee=below or None,
        reason=reason,
    )


def too_much(step: Step, p99_limit_ms: float, error_limit: float) -> str:
    """Return why a step was more than the server can take, or an empty text."""
    if not step.sent:
        return "no request was due in it"
    if step.failed > error_limit * step.sent:
        kinds = ", ".join(step.errors)
        return f"{100 * step.failed / step.sent:.1f} % failed ({kinds})"
    if step.latency_ms and step.latency_ms["p99"] > p99_limit_ms:
        return f"p99 {step.latency_ms['p99']:.1f} ms is above {p99_limit_ms:.1f} ms"
    if step.throughput * step.seconds < KEEPS_UP * step.sent:
        return f"only {step.throughput:.1f} of {step.sent / step.seconds:.1f} requests/s were answered in time"
    return ""
