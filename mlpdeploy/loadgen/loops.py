"""The two kinds of load: clients that wait for their answers, and arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from mlpdeploy.loadgen.arrivals import arrival_times
from mlpdeploy.loadgen.options import LoadOptions
from mlpdeploy.loadgen.step import Recorder, Step, step_from
from mlpdeploy.loadgen.target import RequestError, Target

RETRY_PAUSE_S = 0.01  # of a client whose request failed; without it a server that is down is asked in a tight loop
NEVER_SENT = "timeout before a connection was free"


class _Busy:
    """How much of a processor this thread takes between two times."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.thread_time(), time.monotonic()

    def share(self) -> float:
        return (time.thread_time() - self._cpu) / max(time.monotonic() - self._wall, 1e-9)


async def closed_loop(target: Target, options: LoadOptions) -> Step:
    """Return what `options.clients` clients see, each of which sends again when it has its answer.

    Requests that were sent in the measured time count for the latency, however long they take; answers that came in it
    count for the throughput.
    """
    await target.connect(options.clients)
    recorder, now = Recorder(), time.monotonic
    begin = now() + options.warmup_s
    end = begin + options.duration_s
    turn = count()

    async def client(slot: int) -> None:
        while (sent := now()) < end:
            try:
                await target.send(slot, target.requests[next(turn) % len(target.requests)], options.timeout_s)
            except RequestError as error:
                if sent >= begin:
                    recorder.errors[str(error)] += 1
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            done = now()
            recorder.completed += begin <= done < end
            if sent >= begin:
                recorder.latencies.append(done - sent)

    clients = asyncio.gather(*map(client, range(options.clients)))
    async with _ended(clients):
        busy = await _busy_between(begin, end)
        await clients
    return step_from(
        recorder,
        mode="closed",
        clients=options.clients,
        seconds=options.duration_s,
        rows=options.rows,
        busy=busy,
    )


async def open_loop(target: Target, options: LoadOptions, rate: float) -> Step:
    """Return what requests see that arrive at `rate` a second, whatever the server does.

    The latency of each counts from the time at which it was due, so a server that stalls is charged with every
    request that would have come meanwhile, and not with one only (coordinated omission).
    """
    await target.connect(options.connections)
    recorder, now = Recorder(), time.monotonic
    free = list(range(options.connections))
    backlog: deque[float] = deque()
    tasks: set[asyncio.Task[None]] = set()
    start = now()
    begin = start + options.warmup_s
    end = begin + options.duration_s
    turn = count()

    async def serve(slot: int, due: float) -> None:
        """Send what is due, then what has waited for a connection."""
        try:
            while True:
                try:
                    if now() - due > options.timeout_s:
                        raise RequestError(NEVER_SENT)
                    await target.send(slot, target.requests[next(turn) % len(target.requests)], options.timeout_s)
                except RequestError as error:
                    if due >= begin:
                        recorder.errors[str(error)] += 1
                else:
                    done = now()
                    recorder.completed += begin <= done < end
                    if due >= begin:
                        recorder.latencies.append(done - due)
                if not backlog:
                    return
                due = backlog.popleft()
        finally:
            free.append(slot)

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            tasks.discard(task)  # one that failed is kept: the error is ours, and raised at the end

    watch = asyncio.ensure_future(_busy_between(begin, end))
    try:
        for offset in arrival_times(rate, options.arrivals, options.warmup_s + options.duration_s, options.seed):
            due = start + offset
            await asyncio.sleep(max(0.0, due - now()))  # a generator that is behind must still read answers
            if free:
                if due >= begin:
                    recorder.lateness.append(max(0.0, now() - due))
                task = asyncio.ensure_future(serve(free.pop(), due))
                tasks.add(task)
                task.add_done_callback(ended)
            else:
                recorder.without_connection += due >= begin
                backlog.append(due)
        await asyncio.gather(*tasks)
        busy = await watch
    finally:
        for future in (watch, *tasks):
            future.cancel()
        await asyncio.gather(watch, *tasks, return_exceptions=True)
    return step_from(
        recorder,
        mode="open",
        rate=rate,
        seconds=options.duration_s,
        rows=options.rows,
        busy=busy,
    )


@asynccontextmanager
async def _ended(*futures: asyncio.Future[Any]) -> AsyncIterator[None]:
    """End what still runs when the block is left, as by Ctrl-C."""
    try:
        yield
    finally:
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)


async def _busy_between(begin: float, end: float) -> float:
    """Return the share of a processor that this thread takes from `begin` to `end`."""
    await asyncio.sleep(max(0.0, begin - time.monotonic()))
    busy = _Busy()
    await asyncio.sleep(max(0.0, end - time.monotonic()))
    return busy.share()
