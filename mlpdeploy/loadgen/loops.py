"""The two kinds of load: clients that wait for their answers, and arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

from mlpdeploy.loadgen.arrivals import arrival_times
from mlpdeploy.loadgen.options import LoadOptions
from mlpdeploy.loadgen.step import Recorder, Step, step_from
from mlpdeploy.loadgen.target import LoadError, RequestError, Target

RETRY_PAUSE_S = 0.01  # of a client whose request failed; without it a server that is down is asked in a tight loop
NEVER_SENT = "timeout before a connection was free"


class _Busy:
    """How much of a processor this thread takes between two times."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.thread_time(), time.monotonic()

    def share(self) -> float:
        return (time.thread_time() - self._cpu) / max(time.monotonic() - self._wall, 1e-9)


class _Window:
    """The measured time, in seconds of the monotonic clock: it ends at `end`, or when somebody stops it."""

    def __init__(self, options: LoadOptions, stop: asyncio.Event | None) -> None:
        self.begin = time.monotonic() + options.warmup_s
        self.end = self.begin + options.duration_s
        self._stop = stop or asyncio.Event()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    @property
    def over(self) -> bool:
        return self.stopped or time.monotonic() >= self.end

    def has(self, moment: float) -> bool:
        return self.begin <= moment < self.end

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    async def busy(self) -> float:
        """Wait for its end, and return the share of a processor that this thread takes in it.

        Raises:
            LoadError: it is stopped before it has begun.
        """
        if await self._stopped_before(self.begin):
            raise LoadError("stopped before anything was measured")
        busy = _Busy()
        if await self._stopped_before(self.end):
            self.end = time.monotonic()
        return busy.share()

    async def _stopped_before(self, moment: float) -> bool:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stop.wait(), max(0.0, moment - time.monotonic()))
        return self.stopped


async def closed_loop(target: Target, options: LoadOptions, stop: asyncio.Event | None = None) -> Step:
    """Return what `options.clients` clients see, each of which sends again when it has its answer.

    Requests that were sent in the measured time count for the latency, however long they take; answers that came in it
    count for the throughput. `stop` ends that time early.

    Raises:
        LoadError: it was stopped before the measured time.
    """
    await target.connect(options.clients)
    recorder, now = Recorder(), time.monotonic
    window = _Window(options, stop)
    turn = count()

    async def client(slot: int) -> None:
        while not window.over:
            sent = now()
            try:
                await target.send(slot, target.requests[next(turn) % len(target.requests)], options.timeout_s)
            except RequestError as error:
                if sent >= window.begin:
                    recorder.errors[str(error)] += 1
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            done = now()
            recorder.completed += window.has(done)
            if sent >= window.begin:
                recorder.latencies.append(done - sent)

    clients = asyncio.gather(*map(client, range(options.clients)))
    async with _ended(clients):
        busy = await window.busy()
        await clients
    return step_from(
        recorder,
        mode="closed",
        clients=options.clients,
        seconds=window.seconds,
        rows=options.rows,
        busy=busy,
    )


async def open_loop(target: Target, options: LoadOptions, rate: float, stop: asyncio.Event | None = None) -> Step:
    """Return what requests see that arrive at `rate` a second, whatever the server does.

    The latency of each counts from the time at which it was due, so a server that stalls is charged with every
    request that would have come meanwhile, and not with one only (coordinated omission). `stop` ends the measured time
    early.

    Raises:
        LoadError: it was stopped before the measured time.
    """
    await target.connect(options.connections)
    recorder, now = Recorder(), time.monotonic
    free = list(range(options.connections))
    backlog: deque[float] = deque()
    tasks: set[asyncio.Task[None]] = set()
    start = now()
    window = _Window(options, stop)
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
                    if due >= window.begin:
                        recorder.errors[str(error)] += 1
                else:
                    done = now()
                    recorder.completed += window.has(done)
                    if due >= window.begin:
                        recorder.latencies.append(done - due)
                if not backlog:
                    return
                due = backlog.popleft()
        finally:
            free.append(slot)

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            tasks.discard(task)  # one that failed is kept: the error is ours, and raised at the end

    watch = asyncio.ensure_future(window.busy())
    try:
        for offset in arrival_times(rate, options.arrivals, options.warmup_s + options.duration_s, options.seed):
            due = start + offset
            await asyncio.sleep(max(0.0, due - now()))  # a generator that is behind must still read answers
            if window.stopped:
                break
            if free:
                if due >= window.begin:
                    recorder.lateness.append(max(0.0, now() - due))
                task = asyncio.ensure_future(serve(free.pop(), due))
                tasks.add(task)
                task.add_done_callback(ended)
            else:
                recorder.without_connection += due >= window.begin
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
        seconds=window.seconds,
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
