"""When the requests of an open loop are meant to be sent, and a clock that keeps to it."""

from __future__ import annotations

import asyncio
import select
import selectors
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import numpy as np

from mlpdeploy.loadgen.options import Arrivals

Result = TypeVar("Result")

_CHUNK = 4096


def arrival_times(rate: float, arrivals: Arrivals, duration_s: float, seed: int) -> Iterator[float]:
    """Yield the seconds after the start at which requests are due, below `duration_s`.

    Args:
        rate: requests a second.
        arrivals: `constant`: every 1 / rate; `poisson`: intervals drawn from the exponential distribution.
        seed: the same seed gives the same times.
    """
    generator = np.random.default_rng(seed)
    start = 0.0
    while True:
        if arrivals == "poisson":
            times = start + np.cumsum(generator.exponential(1 / rate, _CHUNK))
        else:
            times = start + np.arange(1, _CHUNK + 1) / rate
        for due in times.tolist():
            if due >= duration_s:
                return
            yield due
        start = float(times[-1])


if hasattr(selectors, "EpollSelector"):

    class _FineSelector(selectors.EpollSelector):
        """epoll rounds a wait up to whole milliseconds, which is longer than some answers take; select does not.

        An epoll descriptor can itself be waited for, so select only has to watch that one.
        """

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)

else:
    _FineSelector = selectors.DefaultSelector  # type: ignore[misc,assignment]


def run_precisely(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on an event loop of its own, whose timers are good to about a tenth of a millisecond."""
    loop = asyncio.SelectorEventLoop(_FineSelector())
    try:
        return loop.run_until_complete(main)
    finally:
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        if pending:
            loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
