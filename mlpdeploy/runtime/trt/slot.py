"""What one set of shapes needs to run: a context, its buffers and its graph. Nothing in a slot ever changes place."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from mlpdeploy.runtime.cuda.interface import Cuda
from mlpdeploy.runtime.tensorrt_api import EngineError
from mlpdeploy.runtime.trt.engine import LoadedEngine
from mlpdeploy.runtime.trt.graphs import Launcher, capture_lock
from mlpdeploy.runtime.trt.profiles import Shape


@dataclass(frozen=True)
class Layout:
    """What a slot is made for.

    Attributes:
        profile: index of the optimization profile.
        shapes: (input name, shape) pairs, the batch included.
        bound: inputs and outputs that are the caller's own device memory, at another address each time.
    """

    profile: int
    shapes: tuple[tuple[str, Shape], ...]
    bound: frozenset[str]


class Buffer:
    """A tensor in device memory and its staging area in pinned host memory, both as large as the shape says.

    Attributes:
        pointer: the device memory.
        host: the staging area, with the tensor's shape and dtype.
    """

    def __init__(self, cuda: Cuda, shape: Shape, dtype: np.dtype) -> None:
        self._cuda = cuda
        size_bytes = max(prod(shape) * dtype.itemsize, 1)
        self._pinned = cuda.allocate_pinned(size_bytes)
        try:
            self.pointer = cuda.allocate(size_bytes)
        except BaseException:
            cuda.free_pinned(self._pinned)
            raise
        self.host: np.ndarray = self._pinned.view(dtype).reshape(shape)

    def free(self) -> None:
        """Free both."""
        self._cuda.free(self.pointer)
        self._cuda.free_pinned(self._pinned)


class Slot:
    """One context with its shapes set, and a buffer for every tensor that is not bound to the caller's memory.

    A slot is used by one thread at a time, in one stream. The GPU's context must be current in every call.

    Attributes:
        buffers: by tensor name.
        shapes: of all inputs and outputs, the batch included.
        launcher: puts the work into the stream.
    """

    def __init__(self, engine: LoadedEngine, layout: Layout, stream: Any, scratch: int) -> None:
        self._engine = engine
        self.buffers: dict[str, Buffer] = {}
        with capture_lock(engine.cuda.index):
            self._make(layout, stream, scratch)
        why = "the caller's own device memory is bound" if layout.bound else ""
        if not engine.cuda.has_graphs:
            why = f"{engine.cuda.provider} has no CUDA graphs: pip install 'mlpdeploy[cuda]'"
        self.launcher = Launcher(engine, self._context, stream, _label(engine, layout), why)

    def _make(self, layout: Layout, stream: Any, scratch: int) -> None:
        """Make the context and the buffers."""
        engine, api, cuda = self._engine, self._engine.api, self._engine.cuda
        self._context = api.create_context(engine.engine)
        try:
            if engine.has_profiles:
                chosen = api.choose_profile(self._context, layout.profile, cuda.handle(stream))
                self._accepted(chosen, f"profile {layout.profile}")
            for name, shape in layout.shapes:
                self._accepted(self._context.set_input_shape(name, shape), name)
            api.give_scratch(self._context, scratch, engine.scratch_bytes)
            shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in engine.tensors}
            self.shapes: dict[str, Shape] = shapes
            for name in engine.tensors:
                if name not in layout.bound:
                    self.buffers[name] = Buffer(cuda, self.shapes[name], engine.dtype(name))
                    self.bind(name, self.buffers[name].pointer)
        except BaseException:
            self._free()
            raise

    def bind(self, name: str, pointer: int) -> None:
        """Have a tensor at this address."""
        self._accepted(self._context.set_tensor_address(name, pointer), name)

    def _accepted(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise EngineError(f"{self._engine.api.name} refused {what}: {self._engine.complaints.last()}")

    def close(self) -> None:
        """Free everything; the stream must have run."""
        with capture_lock(self._engine.cuda.index):
            self.launcher.close()
            self._free()

    def _free(self) -> None:
        self._context = None
        for buffer in self.buffers.values():
            buffer.free()
        self.buffers = {}


def _label(engine: LoadedEngine, layout: Layout) -> str:
    """Return what a layout is called in the notes: its shapes, and what else two layouts may differ in."""
    label = ", ".join("x".join(map(str, shape)) for _, shape in layout.shapes)
    if len(engine.profiles) > 1:
        label += f" (profile {layout.profile})"
    return f"{label} with {', '.join(sorted(layout.bound))} bound" if layout.bound else label
