"""A context's work as a CUDA graph: one launch by the processor instead of one for each kernel."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from typing import Any

from mlpdeploy.runtime.cuda.interface import CAPTURE_DISTURBED, CudaError
from mlpdeploy.runtime.tensorrt_api import EngineError
from mlpdeploy.runtime.trt.engine import LoadedEngine

CAPTURED = "CUDA graph"
CAPTURE_TRIES = 2
# {GPU: held while a stream is captured, and by whoever allocates, frees or prepares a context}. What one thread does of
# that breaks another one's capture, or fails. Reentrant: a session that nobody closed is closed in whatever thread.
_capture_locks: defaultdict[int, threading.RLock] = defaultdict(threading.RLock)
_locks_lock = threading.Lock()


def capture_lock(index: int) -> threading.RLock:
    """Return the lock of a GPU that keeps captures apart from what breaks them."""
    with _locks_lock:
        return _capture_locks[index]


class Launcher:
    """Puts the work of one context into one stream.

    The first launch runs directly: TensorRT finishes its preparations for the shapes in it. The second is captured, if
    it is wanted; all later ones launch the graph. A capture that calls of another thread broke is tried once more in a
    later launch. Shapes, addresses and scratch memory of the context must not change once a graph is wanted: they are
    part of it.
    """

    def __init__(self, engine: LoadedEngine, context: Any, stream: Any, label: str, why_no_graph: str = "") -> None:
        """Begin without a graph.

        Args:
            engine: whose `notes` are kept.
            context: with everything set.
            stream: where the work goes.
            label: what is run, for the note.
            why_no_graph: not empty where none is wanted.
        """
        self._engine, self._context, self._stream, self._label = engine, context, stream, label
        self._handle = engine.cuda.handle(stream)
        self._graph: Any = None
        self._wants_graph, self._ran, self._tries = not why_no_graph, False, 0
        self._lock = capture_lock(engine.cuda.index)
        engine.notes[label] = why_no_graph or "runs directly the first time"

    def launch(self) -> None:
        """Enqueue the work once.

        Raises:
            EngineError: TensorRT cannot.
            CudaError: CUDA cannot.
        """
        if self._graph is None and self._wants_graph and self._ran:
            self._capture()
        if self._graph is not None:
            self._engine.cuda.launch(self._graph, self._stream)
        elif self._ran:
            self._run()
        else:  # TensorRT allocates what these shapes need
            with self._lock:
                self._run()
        self._ran = True

    def _run(self) -> None:
        if not self._context.execute_async_v3(self._handle):
            raise EngineError(f"{self._engine.api.name} could not run the engine: {self._engine.complaints.last()}")

    def _capture(self) -> None:
        """Capture the work into a graph, or note why it cannot be; the stream is as before either way."""
        cuda = self._engine.cuda
        self._tries += 1
        self._wants_graph = False
        if not self._engine.api.can_capture(self._context, self._handle):
            self._say(f"no CUDA graph: {self._engine.api.name} says that this engine cannot be captured")
            return
        try:
            with self._lock:
                cuda.begin_capture(self._stream)
                try:
                    enqueued = self._context.execute_async_v3(self._handle)
                finally:
                    graph = cuda.end_capture(self._stream)
        except CudaError as error:
            if error.status in CAPTURE_DISTURBED and self._tries < CAPTURE_TRIES:
                self._wants_graph = True
                self._engine.notes[self._label] = "runs directly: another thread disturbed the capture"
            else:
                self._say(f"no CUDA graph: {error}")
            return
        if not enqueued:
            cuda.destroy_graph(graph)
            self._say(f"no CUDA graph: {self._engine.complaints.last()}")
            return
        self._graph, self._engine.notes[self._label] = graph, CAPTURED

    def _say(self, note: str) -> None:
        """Keep why there is no graph, and tell it once for these shapes."""
        if self._engine.notes.get(self._label) != note:
            sys.stderr.write(f"mlpdeploy: {self._label} runs with {note}\n")
        self._engine.notes[self._label] = note

    def close(self) -> None:
        """Destroy the graph."""
        if self._graph is not None:
            self._engine.cuda.destroy_graph(self._graph)
            self._graph = None
