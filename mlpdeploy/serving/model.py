"""One served version of a model: takes requests of any size, answers each with its own rows."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.errors import InternalError, MlpDeployError
from mlpdeploy.manifest import Manifest, usual_size
from mlpdeploy.runtime.feeds import Arrays, check_feeds
from mlpdeploy.runtime.session import DEFAULT_MAX_BATCH
from mlpdeploy.serving.batcher import Batch, Batcher, Ticket
from mlpdeploy.serving.failures import DeadlineError, UnavailableError
from mlpdeploy.serving.options import ServeOptions
from mlpdeploy.serving.pool import Pool, Workers
from mlpdeploy.serving.stats import ModelStats

_ATTEMPTS = 2


@dataclass(eq=False)
class Request(Ticket):
    """A request while it is open: its rows, and where its answer goes."""

    feeds: Arrays = field(default_factory=dict)
    future: asyncio.Future[Arrays] = field(kw_only=True)
    timer: asyncio.TimerHandle | None = None
    outputs: Arrays = field(default_factory=dict)
    answered: int = 0


class ServedModel:
    """A model that answers. Made by `ServedModel.start`, ended by `close`.

    Attributes:
        name, version: under which it is asked for.
        manifest: the artifact's.
        max_batch: rows that a worker computes at once.
        instances: workers.
        asked: calls of `infer` so far.
    """

    def __init__(
        self,
        name: str,
        version: str,
        directory: Path,
        manifest: Manifest,
        options: ServeOptions,
        workers: Workers,
    ) -> None:
        """Prepare; see `start`."""
        self.name, self.version, self.manifest, self.options = name, version, manifest, options
        fixed = manifest.inputs[0].shape[0]
        self.max_batch = fixed if isinstance(fixed, int) else options.max_batch or DEFAULT_MAX_BATCH
        self.asked = 0
        self._loop = asyncio.get_running_loop()
        self._stats = ModelStats()
        self._batcher: Batcher[Request] = Batcher(options.max_delay_ms / 1000, options.queue_limit)
        self._inputs = manifest.inputs
        self._dtypes = [spec.dtype for spec in manifest.inputs]
        self._batch_bytes = self.max_batch * _native_row_bytes(manifest)
        self.instances, threads = options.workers_for(manifest.model.get("macs"))
        order = {
            "directory": str(directory.absolute()),
            "manifest": manifest.identity,
            "backend": options.backend,
            "device": options.device,
            "threads": threads,
            "max_batch": self.max_batch,
            "precision": options.precision,
            "share_processors": True,
        }
        self._pool = Pool(
            self,
            order,
            manifest.outputs,
            self.instances,
            workers,
        )
        self._wake: asyncio.TimerHandle | None = None
        self._drained = asyncio.Event()
        self._closing = False

    @classmethod
    async def start(
        cls,
        name: str,
        version: str,
        directory: Path,
        manifest: Manifest,
        options: ServeOptions,
        workers: Workers | None = None,
    ) -> ServedModel:
        """Return the model when all of its workers are warm.

        Raises:
            MlpDeployError: the artifact cannot be loaded.
        """
        model = cls(name, version, directory, manifest, options, workers or Workers())
        try:
            await model._pool.start()
        except BaseException:
            await model.close()
            raise
        model._batcher.fixed_seconds = model._pool.fixed_seconds
        return model

    @property
    def ready(self) -> bool:
        """Whether a worker is warm and requests are taken."""
        return self._pool.ready and not self._closing

    @property
    def stats(self) -> ModelStats:
        """What was counted so far; the same object each time."""
        self._stats.queued_rows = self._batcher.waiting
        self._stats.rows_in_flight = self._pool.rows
        self._stats.restarts = self._pool.restarts
        return self._stats

    @property
    def pids(self) -> list[int]:
        """Of the worker processes."""
        return self._pool.pids

    async def infer(self, feeds: dict[str, Any], timeout: float | None = None) -> Arrays:
        """Return {output name: array} for {input name: array} of any number of rows.

        Cancelling the task that waits takes the rows out of the queue, or discards their answer. The feeds must not
        be changed before the answer is there.

        Args:
            feeds: as `Session.run` takes them.
            timeout: seconds from now; None means the options' `timeout_ms`.

        Raises:
            UsageError: the feeds do not fit the model.
            QueueFullError, DeadlineError, UnavailableError: see `failures`.
            InternalError: the model failed on these rows.
        """
        self.asked += 1
        arrays = check_feeds(self._inputs, feeds)
        limit = self.options.timeout_ms / 1000 if timeout is None else timeout
        request = self._request(arrays)
        try:
            self._accept(request, limit)
            return await request.future
        except asyncio.CancelledError:
            self._stats.failures["cancelled"] += 1
            raise
        except (MlpDeployError, InternalError) as error:
            self._stats.failures[type(error).__name__] += 1
            raise
        finally:
            self._end(request)

    def _request(self, arrays: Arrays) -> Request:
        rows = len(next(iter(arrays.values())))
        key = tuple(array.shape[1:] for array in arrays.values())
        row_bytes = sum(array.nbytes for array in arrays.values()) // rows
        capacity = max(1, min(self.max_batch, self._batch_bytes // row_bytes))
        return Request(rows, key, capacity, time.monotonic(), feeds=arrays, future=self._loop.create_future())

    def _accept(self, request: Request, limit: float) -> None:
        """Queue a request, or raise why not."""
        if self._closing:
            raise UnavailableError(f"model {self.name} is being closed", fix="try again later")
        if (down := self._pool.down) is not None:
            raise UnavailableError(f"model {self.name} has no worker ({down})", fix="try again later")
        if not limit > 0:
            raise DeadlineError("the deadline had passed when the request came")
        self._batcher.add(request)
        request.timer = self._loop.call_later(limit, self._expire, request, limit)
        self._pump()

    def _expire(self, request: Request, limit: float) -> None:
        self._fail(request, DeadlineError(f"no answer within {limit:.3g} s", fix="allow more time, or try again later"))

    def _fail(self, request: Request, error: Exception) -> None:
        if not request.future.done():
            request.future.set_exception(error)
        self._end(request)

    def _end(self, request: Request) -> None:
        """Forget a request, whatever became of it; doing so twice is fine."""
        if request.timer is not None:
            request.timer.cancel()
        if not request.ended:
            self._batcher.end(request)
            self._pool.give_up()
        if not self._batcher.open:
            self._drained.set()

    def _pump(self) -> None:
        """Hand out what can be handed out now, and wake up when more can."""
        if not self._batcher.waiting:
            return
        while idle := self._pool.idle:
            batch = self._batcher.take(time.monotonic(), idle, self._pool.idle_since)
            if not batch:
                break
            self._submit(batch)
        while self._pool.ahead and (batch := self._batcher.take_ahead()):
            self._submit(batch)
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        at = self._batcher.wake_at(self._pool.idle_since) if self._pool.idle else None
        if at is not None:
            self._wake = self._loop.call_later(max(0.0, at - time.monotonic()), self._pump)

    def _submit(self, batch: Batch[Request]) -> None:
        first = batch[0].ticket
        now = time.monotonic()
        try:
            self._pool.submit(batch, [array.shape[1:] for array in first.feeds.values()], self._dtypes)
        except OSError as error:
            for part in batch:
                self._fail(part.ticket, UnavailableError(f"no memory for a batch ({error})", fix="try again later"))
            return
        self._stats.batches[sum(part.rows for part in batch)] += 1
        self._stats.queue_seconds += sum(now - part.ticket.arrived for part in batch)

    def fill(self, batch: Batch[Request], arrays: list[np.ndarray]) -> None:
        """Write the rows of a batch to the arrays of its slot: the only copy of them that is made."""
        start = 0
        for part in batch:
            for target, array in zip(arrays, part.ticket.feeds.values(), strict=True):
                target[start : start + part.rows] = array[part.start : part.stop]
            start += part.rows

    def done(
        self, batch: Batch[Request], outputs: list[np.ndarray], failed: dict[int, Exception], seconds: float
    ) -> None:
        """Give each request of a batch its rows, or its failure; before that, let the worker go on with the next."""
        self._stats.compute_seconds += seconds
        wanted = [not part.ticket.ended for part in batch]
        for part in batch:
            part.ticket.answered += part.rows
            if part.ticket.answered == part.ticket.rows:
                self._batcher.end(part.ticket)
        self._pump()
        start = 0
        for index, part in enumerate(batch):
            if index in failed:
                self._fail(part.ticket, failed[index])
            elif wanted[index]:
                self._give(part.ticket, part.start, [array[start : start + part.rows] for array in outputs])
            start += part.rows

    def _give(self, request: Request, start: int, outputs: list[np.ndarray]) -> None:
        for spec, rows in zip(self.manifest.outputs, outputs, strict=True):
            if spec.name not in request.outputs:
                request.outputs[spec.name] = np.empty((request.rows, *rows.shape[1:]), rows.dtype)
            request.outputs[spec.name][start : start + len(rows)] = rows
        if request.answered == request.rows and not request.future.done():
            self._stats.requests += 1
            self._stats.rows += request.rows
            request.future.set_result(request.outputs)
            self._end(request)

    def returned(self, batch: Batch[Request], started: bool) -> None:
        """Queue the rows of a dead worker again, in front; those that were with two by now are given up."""
        for part in batch:
            if started and part.attempts + 1 >= _ATTEMPTS:
                text = f"the process that computed it ended {_ATTEMPTS} times"
                self._fail(part.ticket, UnavailableError(text, fix="try again later"))
        self._batcher.give_back(batch, started=started)

    def changed(self) -> None:
        """Go on: a worker is free, or the last one is gone."""
        down = self._pool.down
        if down is not None:
            for ticket in list(self._batcher.open):
                self._fail(ticket, UnavailableError(f"model {self.name} has no worker ({down})", fix="try again later"))
        self._pump()

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, answer the accepted ones within `drain_seconds`, fail the rest, end the workers."""
        self._closing = True
        if self._batcher.open and drain_seconds > 0:
            self._drained.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drained.wait(), drain_seconds)
        for ticket in list(self._batcher.open):
            self._fail(ticket, UnavailableError(f"model {self.name} was closed", fix="try again later"))
        if self._wake is not None:
            self._wake.cancel()
        await self._pool.close()


def _native_row_bytes(manifest: Manifest) -> int:
    """Return the bytes of a row of the inputs, with open sizes taken as those of a common photograph."""
    total = 0
    for spec in manifest.inputs:
        total += math.prod(map(usual_size, spec.shape[1:])) * np.dtype(spec.dtype).itemsize
    return total
