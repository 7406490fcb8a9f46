"""What the runtime needs of CUDA, and which package provides it on this machine.

Two packages do: `cuda-python` (wheels; the default) and `pycuda` (compiled on the user's machine). Both use the
driver's interface and share the GPU's primary context, which is the one that PyTorch, CuPy and TensorRT use too: so a
pointer of theirs is a pointer of ours. docs/adr/0013-cuda-providers.md says why there are two.
"""

from __future__ import annotations

import importlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mlpdeploy.env import closest, installed_version
from mlpdeploy.errors import MissingDependencyError, MlpDeployError, UsageError

PROVIDER_VARIABLE = "MLPDEPLOY_CUDA"
# Name -> (module with a class `Provider(index)`, the package that it imports); the first that is installed is taken.
PROVIDERS = {
    "cuda-python": ("mlpdeploy.runtime.cuda.cuda_python", "cuda"),
    "pycuda": ("mlpdeploy.runtime.cuda.pycuda", "pycuda"),
}
LEGACY_STREAM = 1  # the handle by which CUDA names its default stream
INVALID_VALUE, OUT_OF_MEMORY = 1, 2  # CUDA_ERROR_...
# CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED and _INVALIDATED: the call, or one of another thread, broke a capture.
CAPTURE_DISTURBED = (900, 901)


class CudaError(MlpDeployError):
    """CUDA refused a call, or an earlier one failed on the GPU.

    Attributes:
        status: CUDA's number of the error; None where the provider does not tell it.
    """

    def __init__(self, got: str, wanted: str = "", fix: str = "", status: int | None = None) -> None:
        super().__init__(got, wanted, fix)
        self.status = status


class Cuda(ABC):
    """One GPU's primary context; it is kept until the process ends, as CUDA's own runtime keeps it.

    Every call but `current` needs this context to be current in the calling thread: `with cuda.current():`.
    Pointers are plain numbers. What is created is destroyed by hand, in a block of `current`: a destructor would run in
    whatever thread happens to drop the last reference. Every method raises CudaError when CUDA does.

    Attributes:
        provider: a key of `PROVIDERS`.
        index: which GPU.
        has_graphs: whether streams can be captured.
    """

    provider: str
    index: int
    has_graphs: bool

    @abstractmethod
    def push(self) -> None:
        """Make the context current in this thread; what was current stays beneath it."""

    @abstractmethod
    def pop(self) -> None:
        """Undo the last `push` of this thread."""

    @contextmanager
    def current(self) -> Iterator[None]:
        """Have the context current within a block."""
        self.push()
        try:
            yield
        finally:
            self.pop()

    @abstractmethod
    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory, aligned to 256 bytes at least."""

    @abstractmethod
    def free(self, pointer: int) -> None:
        """Free what `allocate` gave."""

    @abstractmethod
    def allocate_pinned(self, size_bytes: int) -> np.ndarray:
        """Return page-locked host memory: (size_bytes,) uint8. `free_pinned` takes this very object."""

    @abstractmethod
    def free_pinned(self, array: np.ndarray) -> None:
        """Free what `allocate_pinned` gave."""

    @abstractmethod
    def is_foreign(self, pointer: int) -> bool:
        """Return whether memory is known to be of another context: what runs in this one fails when it touches it.

        What stream-ordered pools and virtual memory management give is of no context, and every one can use it.
        """

    @abstractmethod
    def create_stream(self) -> Any:
        """Return a stream that does not wait for the default stream."""

    @abstractmethod
    def destroy_stream(self, stream: Any) -> None:
        """Destroy a stream; nothing may use the object afterwards."""

    @abstractmethod
    def handle(self, stream: Any) -> int:
        """Return the stream's handle, as TensorRT and `__dlpack__` take it."""

    @abstractmethod
    def synchronize(self, stream: Any) -> None:
        """Wait until everything in the stream has run."""

    @abstractmethod
    def wait_for_producer(self, stream: Any, producer: int) -> None:
        """Have the stream wait for what is in another one now; `producer` is its handle, ours or not."""

    @abstractmethod
    def copy_in(self, pointer: int, array: np.ndarray, stream: Any) -> None:
        """Copy a contiguous array in pinned memory to the device; it must not change before the stream has run."""

    @abstractmethod
    def copy_out(self, array: np.ndarray, pointer: int, stream: Any) -> None:
        """Copy from the device to a contiguous array in pinned memory, which is full when the stream has run."""

    @abstractmethod
    def copy_within(self, pointer: int, source: int, size_bytes: int, stream: Any) -> None:
        """Copy on the device."""

    @abstractmethod
    def clear(self, pointer: int, size_bytes: int, stream: Any) -> None:
        """Set device memory to zero."""

    @abstractmethod
    def create_event(self) -> Any:
        """Return an event that takes the time."""

    @abstractmethod
    def destroy_event(self, event: Any) -> None:
        """Destroy an event; nothing may use the object afterwards."""

    @abstractmethod
    def record(self, event: Any, stream: Any) -> None:
        """Have the event happen when everything that is in the stream now has run."""

    @abstractmethod
    def elapsed_ms(self, first: Any, second: Any) -> float:
        """Return the GPU's time between two events that have happened."""

    def begin_capture(self, stream: Any) -> None:
        """Begin to record the stream's calls instead of running them; other threads are not affected."""
        raise CudaError(f"{self.provider} has no CUDA graphs")

    def end_capture(self, stream: Any) -> Any:
        """End the recording, also a broken one, and return a graph that can be launched."""
        raise CudaError(f"{self.provider} has no CUDA graphs")

    def launch(self, graph: Any, stream: Any) -> None:
        """Put all calls of a graph into the stream."""
        raise CudaError(f"{self.provider} has no CUDA graphs")

    def destroy_graph(self, graph: Any) -> None:
        """Destroy a graph; nothing may use the object afterwards."""
        raise CudaError(f"{self.provider} has no CUDA graphs")


_opened: dict[tuple[str, int], Cuda] = {}
_opening = threading.Lock()


def open_cuda(index: int = 0) -> Cuda:
    """Return the GPU with this index through an installed provider, or the one that MLPDEPLOY_CUDA names.

    A process has one object for each.

    Raises:
        UsageError: MLPDEPLOY_CUDA names no provider.
        MissingDependencyError: no provider is installed, or there is no driver.
        CudaError: the driver refuses.
    """
    named = os.environ.get(PROVIDER_VARIABLE)
    if named and named not in PROVIDERS:
        raise UsageError(f"{PROVIDER_VARIABLE} is {named!r}", fix=closest(named, PROVIDERS))
    installed = [name for name, (_, package) in PROVIDERS.items() if installed_version(package) is not None]
    if not named and not installed:
        raise MissingDependencyError(
            "no package for CUDA is installed", "cuda-python or pycuda", "run: pip install 'mlpdeploy[cuda]'"
        )
    name = named or installed[0]
    with _opening:
        if (name, index) not in _opened:
            _opened[name, index] = importlib.import_module(PROVIDERS[name][0]).Provider(index)
        return _opened[name, index]
