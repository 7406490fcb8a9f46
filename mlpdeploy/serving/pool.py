"""The worker processes of one model: batches go to them, and what dies is started again."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

import mlpdeploy.errors
from mlpdeploy.errors import InternalError, MlpDeployError
from mlpdeploy.manifest import TensorSpec
from mlpdeploy.serving.batcher import Batch
from mlpdeploy.serving.failures import UnavailableError
from mlpdeploy.serving.process import SLOTS, WorkerProcess
from mlpdeploy.serving.slots import Wanted

LOG = logging.getLogger("mlpdeploy.serving")

_LONGEST_FACTOR = 4  # a batch may take so many times the longest yet before it counts as hanging
_START_SECONDS = 600.0
_CHECK_SECONDS = 0.25
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
_PATIENCE = 3  # so often a worker may die while it loads before the model counts as down

RowShapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Workers:
    """What processes a model is computed by.

    Attributes:
        command: of one process; the descriptors that `worker` takes are appended.
        hang_seconds: a process is killed when nobody wants the answer any more that it computes for so long.
    """

    command: tuple[str, ...] = (sys.executable, "-m", "mlpdeploy.serving.worker")
    hang_seconds: float = 5.0


class Owner(Protocol):
    """Who gives batches to the pool and is told what becomes of them."""

    def fill(self, batch: Batch[Any], arrays: list[np.ndarray]) -> None:
        """Write the inputs' rows."""

    def done(self, batch: Batch[Any], outputs: list[np.ndarray], failed: dict[int, Exception], seconds: float) -> None:
        """Take the outputs' rows, which are not the caller's any more afterwards; `failed` has the parts without."""

    def returned(self, batch: Batch[Any], started: bool) -> None:
        """Take back a batch whose worker has died; `started` says whether it was being computed."""

    def changed(self) -> None:
        """A worker may have become free, or the last one may have gone."""


@dataclass(eq=False)
class _Running:
    """A batch that a worker has. `place` is the byte of its slot where the outputs begin."""

    batch: Batch[Any]
    rows: int
    slot: int
    place: int
    started: float


@dataclass(eq=False)
class _Instance:
    """One worker, through all of its processes; batches by number, the one that is computed first."""

    process: WorkerProcess | None = None
    ready: bool = False
    spawned: float = 0.0
    free_since: float = 0.0
    held: int | None = None  # the slot whose outputs are being read
    deaths: int = 0  # without a batch computed in between
    error: MlpDeployError | None = None
    batches: dict[int, _Running] = field(default_factory=dict)

    @property
    def free_slots(self) -> list[int]:
        taken = {self.held, *(running.slot for running in self.batches.values())}
        return [slot for slot in range(SLOTS) if slot not in taken]

    @property
    def computed(self) -> _Running | None:
        """The batch that is being computed."""
        return next(iter(self.batches.values()), None)


class Pool:
    """The workers of one model.

    Attributes:
        restarts: processes that had to be started again.
        longest: seconds of the longest batch yet.
        fixed_seconds: what a batch costs beside what each of its rows does, as measured when the last worker started.
    """

    def __init__(
        self,
        owner: Owner,
        order: dict[str, Any],
        outputs: tuple[TensorSpec, ...],
        instances: int,
        workers: Workers,
    ) -> None:
        """Keep what is needed to start; `order` is each worker's first message."""
        self.restarts = 0
        self.longest = 0.0
        self.fixed_seconds = 0.0
        self._owner, self._order, self._outputs = owner, order, outputs
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._instances = [_Instance() for _ in range(instances)]
        self._numbers = itertools.count(1)
        self._timers: set[asyncio.TimerHandle] = set()
        self._warm: asyncio.Future[None] = self._loop.create_future()
        self._closed = False

    async def start(self) -> None:
        """Start all workers, and wait until they are warm.

        Raises:
            MlpDeployError: one cannot load the model, or dies of it.
        """
        for instance in self._instances:
            self._spawn(instance)
        self._later(_CHECK_SECONDS, self._check)
        await self._warm

    @property
    def ready(self) -> bool:
        """Whether a worker is warm."""
        return any(instance.ready for instance in self._instances)

    @property
    def down(self) -> MlpDeployError | None:
        """Why no worker is there and none is starting; None where one is, or is expected to be soon."""
        if self.ready or any(instance.process for instance in self._instances):
            return None
        return next((instance.error for instance in self._instances if instance.error), None)

    @property
    def idle(self) -> int:
        """How many workers have nothing to do."""
        return sum(instance.ready and not instance.batches for instance in self._instances)

    @property
    def idle_since(self) -> float:
        """When the first of the idle workers became so."""
        return min(one.free_since for one in self._instances if one.ready and not one.batches)

    @property
    def ahead(self) -> int:
        """How many workers are busy, but can take another batch."""
        return sum(bool(instance.batches) for instance in self._open())

    def _open(self) -> list[_Instance]:
        """Return the workers that can take a batch: warm, with a free slot, and not stuck in another batch."""
        return [one for one in self._instances if one.ready and one.free_slots and not self._overdue(one)]

    def _overdue(self, instance: _Instance) -> bool:
        """Whether a worker computes for so long that it may hang."""
        limit = max(self._workers.hang_seconds, _LONGEST_FACTOR * self.longest)
        computed = instance.computed
        return computed is not None and time.monotonic() - computed.started > limit

    @property
    def rows(self) -> int:
        """Rows that the workers have."""
        return sum(running.rows for instance in self._instances for running in instance.batches.values())

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return [instance.process.pid for instance in self._instances if instance.process]

    def submit(self, batch: Batch[Any], inputs: RowShapes, dtypes: Sequence[str]) -> None:
        """Give a batch to the worker that has the least to do; one must be idle or take another ahead.

        Raises:
            OSError: there is no memory for it.
        """
        instance = min(self._open(), key=lambda one: len(one.batches))
        assert instance.process is not None
        slot = instance.free_slots[0]
        counts = [part.rows for part in batch]
        rows = sum(counts)
        wanted: list[Wanted] = [(dtype, (rows, *row)) for dtype, row in zip(dtypes, inputs, strict=True)]
        arrays, place = instance.process.slots[slot].arrays(wanted)
        self._owner.fill(batch, arrays)
        number = next(self._numbers)
        instance.batches[number] = _Running(batch, rows, slot, place, time.monotonic())
        instance.process.send({"number": number, "slot": slot, "rows": counts, "inputs": inputs})

    def give_up(self) -> None:
        """Have workers skip the batches whose answers nobody wants any more."""
        for instance in self._instances:
            for number, running in instance.batches.items():
                if instance.process and all(part.ticket.ended for part in running.batch):
                    instance.process.slots[running.slot].given_up = number

    async def close(self) -> None:
        """End all workers and wait until they are gone."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        if not self._warm.done():
            self._warm.cancel()
        processes = [instance.process for instance in self._instances if instance.process]
        for process in processes:
            process.end()
        for instance in self._instances:
            instance.process, instance.ready = None, False
            instance.batches.clear()
        await asyncio.gather(*(process.gone() for process in processes))

    def _later(self, seconds: float, call: Any, *arguments: Any) -> None:
        def run() -> None:
            self._timers.discard(timer)
            call(*arguments)

        timer = self._loop.call_later(seconds, run)
        self._timers.add(timer)

    def _spawn(self, instance: _Instance) -> None:
        instance.error, instance.spawned = None, time.monotonic()
        try:
            process = WorkerProcess(
                self._workers.command, lambda message: self._hear(instance, message), lambda: self._lost(instance)
            )
        except OSError as error:  # no memory, or too many processes
            instance.error = UnavailableError(f"a worker process cannot be started ({error})")
            self._lost(instance)
            return
        instance.process = process
        process.send(self._order)

    def _hear(self, instance: _Instance, message: dict[str, Any]) -> None:
        if self._closed:
            return
        if message["kind"] == "error":
            instance.error = error_of(message)  # type: ignore[assignment]
        elif message["kind"] == "ready":
            instance.ready, instance.free_since = True, time.monotonic()
            (_, one), (rows, many) = message["seconds"][0], message["seconds"][-1]
            self.longest = max(self.longest, many)
            self.fixed_seconds = max(0.0, (rows * one - many) / (rows - 1)) if rows > 1 else 0.0
            if not self._warm.done() and all(one.ready for one in self._instances):
                self._warm.set_result(None)
            self._owner.changed()
        else:
            self._done(instance, message)

    def _done(self, instance: _Instance, message: dict[str, Any]) -> None:
        assert instance.process is not None
        running = instance.batches.pop(message["number"])
        instance.deaths, instance.held, instance.free_since = 0, running.slot, time.monotonic()
        self.longest = max(self.longest, message["seconds"])
        following = instance.computed
        if following is not None:
            following.started = time.monotonic()
        failed = {int(index): error_of(told) for index, told in message["failed"].items()}
        outputs: list[np.ndarray] = []
        if message["outputs"]:
            wanted: list[Wanted] = [
                (spec.dtype, (running.rows, *row)) for spec, row in zip(self._outputs, message["outputs"], strict=True)
            ]
            outputs, _ = instance.process.slots[running.slot].arrays(wanted, running.place)
        try:
            self._owner.done(running.batch, outputs, failed, message["seconds"])
        finally:
            instance.held = None
        self._owner.changed()

    def _lost(self, instance: _Instance) -> None:
        """Give back what a worker had that is gone, and start another."""
        if self._closed:
            return
        ended = instance.process.end_text() if instance.process else "could not be started"
        directory, starting = self._order["directory"], not self._warm.done()
        LOG.warning("worker of %s: %s", directory, instance.error or ended)
        if instance.error is None and (starting or (not instance.ready and instance.deaths >= _PATIENCE)):
            instance.error = UnavailableError(f"the worker process {ended} while {directory} was loaded")
        instance.process, instance.ready, instance.held = None, False, None
        if starting and instance.error is not None:
            self._warm.set_exception(instance.error)
            return
        batches, instance.batches = list(instance.batches.values()), {}
        pause = min(_FIRST_PAUSE_SECONDS * 2 ** (instance.deaths - 1), _LONGEST_PAUSE_SECONDS) if instance.deaths else 0
        instance.deaths += 1
        self.restarts += 1
        if pause:
            self._later(pause, self._spawn, instance)
        else:
            self._spawn(instance)
        for index, running in enumerate(batches):
            self._owner.returned(running.batch, started=index == 0)
        self._owner.changed()

    def _check(self) -> None:
        """Kill workers that hang."""
        now = time.monotonic()
        for instance in self._instances:
            if instance.process is None:
                continue
            if instance.ready:
                wanted = instance.computed and any(not part.ticket.ended for part in instance.computed.batch)
                hangs = self._overdue(instance) and not wanted
            else:
                hangs = now - instance.spawned > _START_SECONDS
            if hangs:
                LOG.warning("worker %d of %s hangs and is killed", instance.process.pid, self._order["directory"])
                instance.process.kill()
        self._later(_CHECK_SECONDS, self._check)


def error_of(told: dict[str, Any]) -> Exception:
    """Return the error that a worker has told."""
    kind = getattr(mlpdeploy.errors, told["type"], MlpDeployError)
    if kind is InternalError:
        return InternalError(f"the model failed: {told['got']}")
    return kind(told["got"], told["wanted"], told["fix"])
