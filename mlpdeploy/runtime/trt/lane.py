"""A lane: one stream with its scratch memory and its slots. One thread uses it at a time; two lanes overlap.

While one lane computes, the other copies: that is the double buffering of a batch that is split.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpdeploy.errors import UsageError
from mlpdeploy.runtime.cuda.arrays import DeviceArray
from mlpdeploy.runtime.cuda.interface import OUT_OF_MEMORY, CudaError
from mlpdeploy.runtime.tensorrt_api import ContextError
from mlpdeploy.runtime.trt.engine import LoadedEngine
from mlpdeploy.runtime.trt.graphs import capture_lock
from mlpdeploy.runtime.trt.profiles import Chunk
from mlpdeploy.runtime.trt.slot import Buffer, Layout, Slot

# Shapes that a lane keeps ready; the one that was not used for the longest time makes room for another.
KEPT_SLOTS = 24
# What TensorRT asks of every address.
ALIGNMENT_BYTES = 256
_LEAST_BYTES = 256


@dataclass
class Part:
    """A chunk of one batch.

    Attributes:
        chunk: which rows, how many are computed, and by which profile.
        total: rows of the whole batch.
        feeds: the whole batch's inputs: numpy or DeviceArray.
        into: the whole batch's outputs; a missing one is made, as a numpy array.
    """

    chunk: Chunk
    total: int
    feeds: dict[str, Any]
    into: dict[str, Any]

    @property
    def rows(self) -> slice:
        """The chunk's rows of the batch."""
        return slice(self.chunk.start, self.chunk.stop)

    @property
    def count(self) -> int:
        """How many they are."""
        return self.chunk.stop - self.chunk.start


class Lane:
    """See above. The GPU's context must be current in every call."""

    def __init__(self, engine: LoadedEngine) -> None:
        self._engine, self._cuda = engine, engine.cuda
        self._slots: OrderedDict[Layout, Slot] = OrderedDict()
        self._pending: tuple[Part, Slot] | None = None
        with capture_lock(self._cuda.index):
            self._stream = self._cuda.create_stream()
            try:
                self._scratch = self._cuda.allocate(max(engine.scratch_bytes, _LEAST_BYTES))
            except BaseException:
                self._cuda.destroy_stream(self._stream)
                raise

    def start(self, part: Part) -> None:
        """Enqueue copies in, work and copies out of one part; `finish` waits for them."""
        assert self._pending is None, "the lane has not finished its last part"
        slot = self._enter(part)
        slot.launcher.launch()
        for name in self._engine.outputs:
            target = part.into.get(name)
            if isinstance(target, DeviceArray):
                if not self._binds(target[part.rows], part):
                    own, rows = slot.buffers[name], target[part.rows]
                    self._cuda.copy_within(rows.pointer, own.pointer, rows.nbytes, self._stream)
            else:
                own = slot.buffers[name]
                self._cuda.copy_out(own.host, own.pointer, self._stream)
        self._pending = part, slot

    def finish(self) -> None:
        """Wait for the part that was started, if one was, and hand its rows out."""
        if self._pending is None:
            return
        (part, slot), self._pending = self._pending, None
        self._cuda.synchronize(self._stream)
        for name in self._engine.outputs:
            if not isinstance(part.into[name], DeviceArray):
                part.into[name][part.rows] = slot.buffers[name].host[: part.count]

    def drain(self) -> None:
        """Wait for whatever is in the stream, after a failure: the caller's memory is used until then."""
        self._pending = None
        with suppress(CudaError):  # the failure that led here says more
            self._cuda.synchronize(self._stream)

    def gpu_ms(self, part: Part, runs: int) -> list[float]:
        """Return the GPU's time of each of some runs, without copies."""
        slot = self._enter(part)
        events = [self._cuda.create_event() for _ in range(2)]
        times = []
        try:
            for _ in range(runs):
                self._cuda.record(events[0], self._stream)
                slot.launcher.launch()
                self._cuda.record(events[1], self._stream)
                self._cuda.synchronize(self._stream)
                times.append(self._cuda.elapsed_ms(*events))
        finally:
            for event in events:
                self._cuda.destroy_event(event)
        return times

    def close(self) -> None:
        """Free everything."""
        with capture_lock(self._cuda.index):
            for slot in self._slots.values():
                slot.close()
            self._slots.clear()
            self._cuda.free(self._scratch)
            self._cuda.destroy_stream(self._stream)

    def _enter(self, part: Part) -> Slot:
        """Return the part's slot, with every input on its way and every output's place known."""
        bound = {
            name
            for name, array in (*part.feeds.items(), *part.into.items())
            if isinstance(array, DeviceArray) and self._binds(array[part.rows], part)
        }
        shapes = tuple((name, (part.chunk.computed, *part.feeds[name].shape[1:])) for name in self._engine.inputs)
        slot = self._slot(Layout(part.chunk.profile, shapes, frozenset(bound)))
        for name, array in part.feeds.items():
            rows = array[part.rows]
            if isinstance(rows, DeviceArray):
                rows.wait(self._cuda, self._stream)
            if name in bound:
                slot.bind(name, rows.pointer)
            else:
                self._copy_in(slot.buffers[name], rows)
        for name in self._engine.outputs:
            shape = (part.total, *slot.shapes[name][1:])
            if name not in part.into:
                part.into[name] = np.empty(shape, self._engine.dtype(name))
            target = part.into[name]
            if tuple(target.shape) != shape:
                raise UsageError(f"output array {name!r} has the shape {tuple(target.shape)}", f"{shape}")
            if isinstance(target, DeviceArray):
                target.wait(self._cuda, self._stream)
            if name in bound:
                slot.bind(name, target[part.rows].pointer)
        return slot

    def _copy_in(self, buffer: Buffer, rows: Any) -> None:
        """Copy rows to a buffer of at least as many; the rest of it becomes zero."""
        count, computed = rows.shape[0], buffer.host.shape[0]
        if isinstance(rows, DeviceArray):
            self._cuda.copy_within(buffer.pointer, rows.pointer, rows.nbytes, self._stream)
            if count < computed:
                self._cuda.clear(buffer.pointer + rows.nbytes, buffer.host.nbytes - rows.nbytes, self._stream)
            return
        buffer.host[:count] = rows
        buffer.host[count:] = 0
        self._cuda.copy_in(buffer.pointer, buffer.host, self._stream)

    @staticmethod
    def _binds(rows: DeviceArray, part: Part) -> bool:
        """Whether TensorRT can use the caller's memory itself: aligned, and with a row for all that is computed."""
        return rows.pointer % ALIGNMENT_BYTES == 0 and part.count == part.chunk.computed

    def _slot(self, layout: Layout) -> Slot:
        """Return the slot for a layout; it is made where there is none."""
        slot = self._slots.get(layout)
        if slot is None:
            while len(self._slots) >= KEPT_SLOTS:
                self._close_oldest()
            slot = self._slots[layout] = self._new_slot(layout)
        self._slots.move_to_end(layout)
        return slot

    def _new_slot(self, layout: Layout) -> Slot:
        """Return a slot, for which the oldest ones make room where memory is short.

        Raises:
            CudaError, EngineError: it does not fit alone either, or something else is wrong.
        """
        while True:
            try:
                return Slot(self._engine, layout, self._stream, self._scratch)
            except (CudaError, ContextError) as error:
                short = isinstance(error, ContextError) or error.status == OUT_OF_MEMORY
                if not (short and self._slots):
                    raise
                self._close_oldest()

    def _close_oldest(self) -> None:
        self._slots.popitem(last=False)[1].close()
