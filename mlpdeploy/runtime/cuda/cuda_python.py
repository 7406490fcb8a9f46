"""CUDA by NVIDIA's `cuda-python`, of which the package `cuda-bindings` is enough: wheels, no compiler."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from mlpdeploy.env import require
from mlpdeploy.errors import MissingDependencyError
from mlpdeploy.runtime.cuda.interface import INVALID_VALUE, Cuda, CudaError

_NO_FLAGS = 0
_MAJOR = 1000  # CUDA 12.4 is 12040


class Provider(Cuda):
    """See Cuda."""

    provider = "cuda-python"
    has_graphs = True

    def __init__(self, index: int) -> None:
        self.index = index
        try:
            self._driver = require("cuda.bindings.driver")
            self._call("cuInit", _NO_FLAGS)
        except (ImportError, RuntimeError) as error:  # the package or libcuda.so.1 cannot be loaded
            raise MissingDependencyError(
                f"cuda-python cannot reach the NVIDIA driver ({error})", "a GPU", "see: mlpdeploy doctor"
            ) from error
        self._check_driver()
        self._context = self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", index))

    def _check_driver(self) -> None:
        """Raise MissingDependencyError where the package is for a later major version of CUDA than the driver's.

        It would ask for functions that such a driver has not, and only when they are called.
        """
        served, wanted = int(self._call("cuDriverGetVersion")), int(self._driver.CUDA_VERSION)
        if wanted // _MAJOR > served // _MAJOR:
            raise MissingDependencyError(
                f"cuda-bindings here is for CUDA {wanted // _MAJOR}, the driver serves "
                f"{served // _MAJOR}.{served % _MAJOR // 10}",
                fix=f"run: pip install 'cuda-bindings<{served // _MAJOR + 1}', or update the driver",
            )

    def _call(self, name: str, *arguments: Any) -> Any:
        """Return what a function of the driver gives besides its status."""
        status, *values = getattr(self._driver, name)(*arguments)
        if int(status):
            reason = status.name.removeprefix("CUDA_ERROR_").lower()
            raise CudaError(f"CUDA's {name} failed: {reason} ({int(status)})", status=int(status))
        return values[0] if values else None

    def push(self) -> None:
        self._call("cuCtxPushCurrent", self._context)

    def pop(self) -> None:
        self._call("cuCtxPopCurrent")

    def allocate(self, size_bytes: int) -> int:
        return int(self._call("cuMemAlloc", size_bytes))

    def free(self, pointer: int) -> None:
        self._call("cuMemFree", pointer)

    def allocate_pinned(self, size_bytes: int) -> np.ndarray:
        address = int(self._call("cuMemHostAlloc", size_bytes, _NO_FLAGS))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))

    def free_pinned(self, array: np.ndarray) -> None:
        self._call("cuMemFreeHost", array.ctypes.data)

    def is_foreign(self, pointer: int) -> bool:
        attribute = self._driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_CONTEXT
        try:
            context = int(self._call("cuPointerGetAttribute", attribute, pointer))
        except CudaError as error:
            if error.status != INVALID_VALUE:  # how the driver says that it knows of no context
                raise
            return False
        return context not in (0, int(self._context))

    def create_stream(self) -> Any:
        return self._call("cuStreamCreate", int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def destroy_stream(self, stream: Any) -> None:
        self._call("cuStreamDestroy", stream)

    def handle(self, stream: Any) -> int:
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        self._call("cuStreamSynchronize", stream)

    def wait_for_producer(self, stream: Any, producer: int) -> None:
        event = self.create_event()
        try:
            self._call("cuEventRecord", event, self._driver.CUstream(producer))
            self._call("cuStreamWaitEvent", stream, event, _NO_FLAGS)
        finally:
            self.destroy_event(event)  # the driver keeps it until it has happened

    def copy_in(self, pointer: int, array: np.ndarray, stream: Any) -> None:
        self._call("cuMemcpyHtoDAsync", pointer, array.ctypes.data, array.nbytes, stream)

    def copy_out(self, array: np.ndarray, pointer: int, stream: Any) -> None:
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, pointer, array.nbytes, stream)

    def copy_within(self, pointer: int, source: int, size_bytes: int, stream: Any) -> None:
        self._call("cuMemcpyDtoDAsync", pointer, source, size_bytes, stream)

    def clear(self, pointer: int, size_bytes: int, stream: Any) -> None:
        self._call("cuMemsetD8Async", pointer, 0, size_bytes, stream)

    def create_event(self) -> Any:
        return self._call("cuEventCreate", int(self._driver.CUevent_flags.CU_EVENT_DEFAULT))

    def destroy_event(self, event: Any) -> None:
        self._call("cuEventDestroy", event)

    def record(self, event: Any, stream: Any) -> None:
        self._call("cuEventRecord", event, stream)

    def elapsed_ms(self, first: Any, second: Any) -> float:
        return float(self._call("cuEventElapsedTime", first, second))

    def begin_capture(self, stream: Any) -> None:
        # Of this thread only: others may allocate meanwhile.
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return self._call("cuGraphInstantiate", graph, _NO_FLAGS)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call("cuGraphExecDestroy", graph)
