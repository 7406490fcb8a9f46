"""The Session: what every backend offers, and what all of them share (splitting, padding)."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import Manifest, TensorSpec, usual_size
from mlpdeploy.runtime.feeds import Arrays, check_feeds, check_outputs, open_sizes, pad_rows

DEFAULT_MAX_BATCH = 32
# Images that a stream computes in one run, at most: benchmarks/results/choices.json.
ROWS_PER_STREAM_RUN = 2

# Calls of `run_async` that compute at the same time; what else is asked for waits in order.
ASYNC_RUNS = 2


@dataclass(frozen=True)
class LoadOptions:
    """What `load` was asked for, as its docstring explains; None means the default."""

    device: str | None = None
    threads: int | None = None
    max_batch: int | None = None
    role: str | None = None
    precision: str | None = None
    share_processors: bool = False
    kernels: bool = True


class Session(ABC):
    """A loaded model. Any batch is taken: it is split, and padded where the model's batch is fixed.

    `run` may be called from several threads at once. A closed session refuses, and what was running when it was closed
    ends as it would have. A session in a forked process refuses too: the backend's threads are not there.

    Attributes:
        inputs, outputs: what the model takes and gives.
        backend, device: who computes, and where (`cpu`, `cuda:0`).
        file: name of the artifact's file that runs; empty where a backend does not say.
        kernels: the instruction set of our own kernels that run in this session; empty where the backend's run alone.
        max_batch: rows that go through the backend at once; a larger batch is split.
        precision: what is computed in: the artifact's, or the one that `load` was asked for.
        precisions: those that `load` may ask this backend for, whatever the artifact's own.
    """

    backend: str
    file: str = ""
    kernels: str = ""
    precisions: tuple[str, ...] = ()

    def __init__(self, manifest: Manifest, device: str, max_batch: int | None) -> None:
        self.manifest = manifest
        self.inputs: tuple[TensorSpec, ...] = manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = manifest.outputs
        self.device = device
        self.precision = manifest.precision
        fixed = manifest.inputs[0].shape[0]
        if max_batch is not None and max_batch < 1:
            raise UsageError(f"max_batch is {max_batch}", "at least 1")
        self.fixed_batch = fixed if isinstance(fixed, int) else None
        self.max_batch = self.fixed_batch or max_batch or DEFAULT_MAX_BATCH
        self._process = os.getpid()
        self._state = threading.RLock()  # held to change what follows; a signal's handler may close within it
        self._closed = False
        self._runs = 0  # that are not over; the last one after `close` frees the backend's memory
        self._async: ThreadPoolExecutor | None = None
        self._async_threads: set[int] = set()
        _SESSIONS.add(self)

    @abstractmethod
    def _execute(self, feeds: Arrays, into: Arrays | None) -> Arrays:
        """Run one batch that the backend takes as it is, writing to `into` where that is given. Thread-safe."""

    def run(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None) -> Arrays:
        """Return {output name: array} for {input name: array}.

        Args:
            feeds: one array per input, with the input's dtype; numpy, or anything on the CPU with `__dlpack__`. The
                backends on a GPU also take arrays there, by `__dlpack__` or `__cuda_array_interface__`.
            outputs: contiguous arrays to write the results to, one per output; they are bound, not copied to. The
                caller must not share them between threads. A backend on a GPU takes them there too. Without them
                results are numpy arrays.

        Raises:
            UsageError: an input is missing, unknown, of another dtype or of a shape that the model cannot take; an
                output array does not fit; or the session is closed, or was loaded before a fork.
        """
        self._begin_run()
        try:
            return self._run_taken(*self._take(feeds, outputs), outputs)
        finally:
            self._end_run()

    def _take(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None) -> tuple[Arrays, Arrays | None]:
        """Return the inputs and outputs as the backend's own arrays, after checking them."""
        arrays = check_feeds(self.inputs, feeds, self._on_gpu)
        rows = len(next(iter(arrays.values())))
        if outputs is None:
            return arrays, None
        return arrays, check_outputs(self.outputs, outputs, rows, self._on_gpu, open_sizes(self.inputs, arrays))

    def _run_taken(self, arrays: Arrays, into: Arrays | None, outputs: Mapping[str, Any] | None) -> Arrays:
        results = self._run_batch(arrays, into, len(next(iter(arrays.values()))))
        return results if outputs is None else {spec.name: outputs[spec.name] for spec in self.outputs}

    def run_async(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None = None) -> Future[Arrays]:
        """Return at once what `run` will return, as a Future; at most ASYNC_RUNS compute at the same time.

        The arrays must not be changed before the result is there. Arrays on a GPU are ordered after the work that this
        thread has given its current stream, as by `run`. `close` waits for what was asked for before it.

        Raises:
            UsageError: the session is closed, or was loaded before a fork. All other errors of `run` are raised by the
                Future.
        """
        with self._state:  # so that `close` comes before all of it or after
            self._begin_run()
            try:  # in this thread: another one has other current streams
                arrays, into = self._take(feeds, outputs)
                arrays, into = _ordered(arrays), None if into is None else _ordered(into)
            except Exception as error:  # noqa: BLE001 - whatever it is, the Future raises it
                self._end_run()
                failed: Future[Arrays] = Future()
                failed.set_exception(error)
                return failed

            def over(_: object) -> None:
                _release(arrays, into or {})
                self._end_run()

            if self._async is None:
                self._async = ThreadPoolExecutor(
                    ASYNC_RUNS, "mlpdeploy-async", lambda: self._async_threads.add(threading.get_ident())
                )
            given_up = threading.Event()
            try:
                future = self._async.submit(lambda: {} if given_up.is_set() else self._run_taken(arrays, into, outputs))
            except RuntimeError:  # the system gives no thread; what was asked for stays in the queue of those there are
                given_up.set()
                over(None)
                raise
            future.add_done_callback(over)
            return future

    def _begin_run(self) -> None:
        """Count a run, or refuse it: in a forked process it would wait for ever for threads that were not copied."""
        if self._process != os.getpid():
            raise UsageError(
                "this session was loaded in another process",
                fix="start processes with spawn, or load no artifact before the fork",
            )
        with self._state:
            if self._closed:
                raise UsageError("this session is closed", fix="load the artifact again")
            self._runs += 1

    def _end_run(self) -> None:
        with self._state:
            self._runs -= 1
            last = self._closed and not self._runs
        if last:
            self._release()

    def _on_gpu(self, value: Any, what: str) -> Any:
        """Return an array on a GPU as this backend's own; those that have none refuse."""
        raise UsageError(
            f"{what} is on a GPU, and the backend {self.backend} takes arrays of the CPU",
            fix="move it to the CPU, or load the artifact with backend='tensorrt' or device='cuda'",
        )

    def _run_batch(self, arrays: Arrays, into: Arrays | None, rows: int) -> Arrays:
        """Run a batch of any size: split it, and pad it where the model's batch is fixed."""
        if rows == self.max_batch or (rows < self.max_batch and self.fixed_batch is None):
            return self._execute(arrays, into)
        parts = [self._run_part(arrays, into, start, rows) for start in range(0, rows, self.max_batch)]
        if into is not None:
            return into
        return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in self.outputs}

    def _run_part(self, arrays: Arrays, into: Arrays | None, start: int, rows: int) -> Arrays:
        """Run rows start..start + max_batch, padded with zeros where the batch is fixed."""
        stop = min(start + self.max_batch, rows)
        part = {name: array[start:stop] for name, array in arrays.items()}
        target = None if into is None else {name: array[start:stop] for name, array in into.items()}
        if self.fixed_batch is None or stop - start == self.fixed_batch:
            return self._execute(part, target)
        padded = self._execute({name: pad_rows(array, self.fixed_batch) for name, array in part.items()}, None)
        result = {name: array[: stop - start] for name, array in padded.items()}
        for name, array in (target or {}).items():
            array[...] = result[name]
        return result

    def random_feeds(self, batch: int, seed: int = 0, height_width: tuple[int, int] | None = None) -> Arrays:
        """Return standard normal inputs for `batch` rows; open sizes take `height_width` (by default about 224)."""
        generator = np.random.default_rng(seed)
        sizes = dict(zip("HW", height_width, strict=True)) if height_width else {}
        feeds = {}
        for spec in self.inputs:
            axes = zip(spec.shape[1:], spec.layout[1:], strict=True)
            shape = [sizes.get(letter, usual_size(size)) if isinstance(size, str) else size for size, letter in axes]
            feeds[spec.name] = generator.standard_normal((batch, *shape)).astype(spec.dtype)
        return feeds

    def warmup(self, batch: int = 1, runs: int = 3) -> None:
        """Run random inputs a few times, so that later runs find everything allocated."""
        feeds = self.random_feeds(batch)
        for _ in range(runs):
            self.run(feeds)

    def gpu_ms(self, batch: int, runs: int, height_width: tuple[int, int] | None = None) -> list[float]:
        """Return the GPU's own times of some runs on random inputs, without copies; empty where a backend has none.

        TensorRT's has them, for a batch of at most `max_batch`.
        """
        return []

    def close(self) -> None:
        """Free the backend's memory, after the runs of other threads; later calls of `run` refuse.

        Closing twice is fine, and in a forked process it does nothing.
        """
        if self._process != os.getpid():
            return
        with self._state:
            if self._closed:
                return
            self._closed = True
            idle = not self._runs
        if self._async is not None:  # a thread of the pool, which a Future's callback may be in, cannot wait for itself
            self._async.shutdown(wait=threading.get_ident() not in self._async_threads)
        if idle:
            self._release()

    @abstractmethod
    def native_interface(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Return (inputs, outputs) as the loaded file itself tells them, apart from the manifest; layouts are empty."""

    @abstractmethod
    def _release(self) -> None:
        """Drop what the backend holds."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self.manifest.model.get("name")
        return f"<Session {name} on {self.backend} ({self.device}), at most {self.max_batch} rows at once>"


_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


def _keep_for_ever() -> None:
    """Keep the parent's sessions in a forked process: freed there, backends wait for threads that were not copied."""
    for session in _SESSIONS:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):  # where there are forks
    os.register_at_fork(after_in_child=_keep_for_ever)


def _ordered(arrays: Mapping[str, Any]) -> Arrays:
    """Return the arrays for another thread: those on a GPU are ordered after what this thread's streams hold now."""
    return {name: array if isinstance(array, np.ndarray) else array.ordered() for name, array in arrays.items()}


def _release(*groups: Mapping[str, Any]) -> None:
    for array in (array for group in groups for array in group.values()):
        if not isinstance(array, np.ndarray):
            array.release()


def stream_runs(rows: int, threads: int) -> list[tuple[int, int]]:
    """Return (start, stop) of the runs in which `threads` streams compute `rows`, a multiple of them.

    Every stream has the same number of rows to compute. The shorter runs come last, so that all streams end together.
    """
    whole, rest = divmod(rows // threads, ROWS_PER_STREAM_RUN)
    sizes = [*[ROWS_PER_STREAM_RUN] * (whole * threads), *[rest] * (threads if rest else 0)]
    return list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))
