"""CUDA by `pycuda`, which is compiled on the user's machine.

It frees what is dropped in the thread that drops it, and warns and leaks where another thread made the context: so here
everything is freed by hand with the context current. It has no CUDA graphs and cannot take another library's stream.
"""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mlpdeploy.env import require
from mlpdeploy.errors import MissingDependencyError
from mlpdeploy.runtime.cuda.interface import INVALID_VALUE, LEGACY_STREAM, OUT_OF_MEMORY, Cuda, CudaError

_LIBRARY = "libcuda.so.1"
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, which pycuda has no name for
_CONTEXT = 1  # CU_POINTER_ATTRIBUTE_CONTEXT, which pycuda has a name for and nothing that takes it


class _Owner:
    """Holds the only reference to an object of pycuda, so that it can be dropped at a known place."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _pointer_get_attribute() -> Any:
    """Return the driver's cuPointerGetAttribute(data, attribute, pointer) -> status, which pycuda does not call."""
    function = ctypes.CDLL(_LIBRARY).cuPointerGetAttribute
    function.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64)  # a plain number would be cut to 32 bits
    return function


class Provider(Cuda):
    """See Cuda; streams and events are `_Owner`s."""

    provider = "pycuda"
    has_graphs = False

    def __init__(self, index: int) -> None:
        self.index = index
        try:
            self._driver = require("pycuda.driver")
            self._attribute_of = _pointer_get_attribute()
        except (ImportError, OSError) as error:  # libcuda.so.1 cannot be loaded, or pycuda was built for another CUDA
            raise MissingDependencyError(
                f"pycuda cannot be loaded ({error})", "a GPU and its driver", "see: mlpdeploy doctor"
            ) from error
        self._memory: dict[int, Any] = {}
        with self._errors():
            self._driver.init()
            self._context = self._driver.Device(index).retain_primary_context()
        # Left to its destructor, pycuda detaches a primary context as if it were its own, and warns that this failed.
        atexit.register(self._context.detach)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            status = OUT_OF_MEMORY if isinstance(error, self._driver.MemoryError) else None
            raise CudaError(f"CUDA failed: {error}", status=status) from error

    def push(self) -> None:
        with self._errors():
            self._context.push()

    def pop(self) -> None:
        with self._errors():
            self._driver.Context.pop()

    def allocate(self, size_bytes: int) -> int:
        with self._errors():
            allocation = self._driver.mem_alloc(size_bytes)
        self._memory[int(allocation)] = allocation
        return int(allocation)

    def free(self, pointer: int) -> None:
        with self._errors():
            self._memory.pop(pointer).free()

    def allocate_pinned(self, size_bytes: int) -> np.ndarray:
        with self._errors():
            array: np.ndarray = self._driver.pagelocked_empty(size_bytes, np.uint8)
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        with self._errors():
            array.base.free()  # type: ignore[union-attr]  # the base is pycuda's allocation

    def is_foreign(self, pointer: int) -> bool:
        context = ctypes.c_void_p()
        status = self._attribute_of(ctypes.byref(context), _CONTEXT, pointer)
        if status == INVALID_VALUE:  # how the driver says that it knows of no context
            return False
        if status:
            raise CudaError(f"CUDA's cuPointerGetAttribute failed ({status})", status=status)
        return context.value not in (None, self._context.handle)

    def create_stream(self) -> Any:
        with self._errors():
            return _Owner(self._driver.Stream(_NON_BLOCKING))

    def destroy_stream(self, stream: Any) -> None:
        stream.value = None

    def handle(self, stream: Any) -> int:
        return int(stream.value.handle)

    def synchronize(self, stream: Any) -> None:
        with self._errors():
            stream.value.synchronize()

    def wait_for_producer(self, stream: Any, producer: int) -> None:
        with self._errors():
            if producer != LEGACY_STREAM:  # no stream of pycuda: only everything can be waited for
                self._driver.Context.synchronize()
                return
            event = self._driver.Event()
            event.record()
            stream.value.wait_for_event(event)

    def copy_in(self, pointer: int, array: np.ndarray, stream: Any) -> None:
        with self._errors():
            self._driver.memcpy_htod_async(pointer, array, stream.value)

    def copy_out(self, array: np.ndarray, pointer: int, stream: Any) -> None:
        with self._errors():
            self._driver.memcpy_dtoh_async(array, pointer, stream.value)

    def copy_within(self, pointer: int, source: int, size_bytes: int, stream: Any) -> None:
        with self._errors():
            self._driver.memcpy_dtod_async(pointer, source, size_bytes, stream.value)

    def clear(self, pointer: int, size_bytes: int, stream: Any) -> None:
        with self._errors():
            self._driver.memset_d8_async(pointer, 0, size_bytes, stream.value)

    def create_event(self) -> Any:
        with self._errors():
            return _Owner(self._driver.Event())

    def destroy_event(self, event: Any) -> None:
        event.value = None

    def record(self, event: Any, stream: Any) -> None:
        with self._errors():
            event.value.record(stream.value)

    def elapsed_ms(self, first: Any, second: Any) -> float:
        with self._errors():
            return float(first.value.time_till(second.value))
