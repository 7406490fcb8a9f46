"""Execution contexts, which refuse what would be undefined behaviour."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from fakes.fake_cuda import Device, require
from fakes.trt.engine import SCRATCH_BYTES, NewEngine


class IExecutionContext:
    """Refuses what would be undefined behaviour; the work itself runs when somebody waits for the stream."""

    _trt: Any

    def __init__(self, engine: NewEngine) -> None:
        require(engine._device is not None and engine._device.stack, "a context without a current CUDA context")
        self._engine, self._device = engine, engine._device
        require(engine._runtime() is not None, "an engine that outlives its runtime")
        self._busy = threading.Lock()
        self._profile: int | None = None
        self._open = any(-1 in engine.get_tensor_shape(value.name) for value in engine._model.graph.input)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = 0
        self._ran = self._captured = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "device_memory":
            require(not hasattr(self, "set_device_memory"), "the old name where there is a new one")
            return self._set_scratch(value)
        require(name.startswith("_"), f"IExecutionContext has no {name}")
        super().__setattr__(name, value)

    device_memory: Any = 0

    @contextmanager
    def _alone(self, changes: bool = True) -> Iterator[None]:
        require(self._busy.acquire(blocking=False), "one context used by two threads at once")
        try:
            require(not (changes and self._captured), "a context that changes after a graph was captured of it")
            require(self._device.stack, "a context used without a current CUDA context")
            yield
        finally:
            self._busy.release()

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        with self._alone():
            self._device.stream_of(stream_handle)
            if profile_index >= self._engine.num_optimization_profiles:
                raise RuntimeError("Error in set optimization profile async.")  # the bindings never return False
            other = self._engine._profile_users.get(profile_index, lambda: None)()
            if not self._engine._plan["shared_profiles"]:
                require(other in (None, self), "two contexts with one profile, in an engine that does not share them")
            self._engine._profile_users[profile_index] = weakref.ref(self)
            self._profile, self._shapes = profile_index, {}
            return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        with self._alone():
            fixed = self._engine.get_tensor_shape(name)
            if self._open:
                require(self._profile is not None, "a shape before the profile")
                low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
                if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                    return False
            elif tuple(shape) != fixed:
                return False
            self._shapes[name], self._ran = tuple(shape), False
            return True

    def get_tensor_shape(self, name: str) -> Any:
        inputs = [value.name for value in self._engine._model.graph.input]
        if name in inputs:
            return self._shapes.get(name, self._engine.get_tensor_shape(name))
        require(set(inputs) <= set(self._shapes), "the shape of an output before those of the inputs")
        dims = self._engine._values[name].type.tensor_type.shape.dim
        value = next(iter(self._engine._model.graph.input))
        known = dict(zip([d.dim_param for d in value.type.tensor_type.shape.dim], self._shapes[inputs[0]], strict=True))
        if all(dim.HasField("dim_value") or dim.dim_param in known for dim in dims):
            return tuple(dim.dim_value if dim.HasField("dim_value") else known[dim.dim_param] for dim in dims)
        return self._engine._shapes_of(tuple(self._shapes.items()))[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        with self._alone():
            require(isinstance(memory, int) and memory % 256 == 0, "an address that is no multiple of 256")
            require(set(self._shapes) or not self._open, "an address before the shapes")
            self._device.bytes_at(memory, 1)
            self._addresses[name] = memory
            return True

    def _set_scratch(self, pointer: int) -> None:
        with self._alone():
            self._device.bytes_at(pointer, SCRATCH_BYTES)
            super().__setattr__("_scratch", pointer)

    def execute_async_v3(self, stream_handle: int) -> bool:
        with self._alone(changes=False):
            stream = self._device.stream_of(stream_handle)
            require(stream_handle != 1, "the default stream")
            require(self._scratch, "no scratch memory")
            self._device.bytes_at(self._scratch, SCRATCH_BYTES)
            user = self._device.scratch_users.setdefault(self._scratch, stream_handle)
            require(user == stream_handle, "one scratch memory in two streams")
            arrays = {}
            for name in self._engine._values:
                require(name in self._addresses, f"{name} has no address")
                shape = self.get_tensor_shape(name)
                dtype = onnx.helper.tensor_dtype_to_np_dtype(self._engine._values[name].type.tensor_type.elem_type)
                arrays[name] = (self._addresses[name], shape, np.dtype(dtype))
                view(self._device, *arrays[name])
            if stream.capture is not None:
                require(self._ran, "a capture before the shapes were run once")
                self._captured = True
            self._ran = True
            alive, engine, device = weakref.ref(self), self._engine, self._device
            inputs = [value.name for value in engine._model.graph.input]

            def work() -> None:
                require(alive() is not None, "a context that was destroyed before its work had run")
                feeds = {name: view(device, *arrays[name]).copy() for name in inputs}
                for name, result in engine._run(feeds).items():
                    view(device, *arrays[name])[...] = result

            device.enqueue("execute", stream, work)
            return True


def view(device: Device, pointer: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return device memory as an array."""
    return device.bytes_at(pointer, int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)


class NewContext(IExecutionContext):
    def set_device_memory(self, memory: int, size: int) -> None:
        require(size == SCRATCH_BYTES, "the size of the scratch memory")
        self._set_scratch(memory)


class RtxContext(NewContext):
    def is_stream_capturable(self, stream: int) -> bool:
        self._device.stream_of(stream)
        return "REQUIRE_USER_ALLOCATION" in self._engine._plan["flags"]
