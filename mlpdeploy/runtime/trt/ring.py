"""Places on the GPU for results, used in turns: what was computed stays there while the next ones are computed."""

from __future__ import annotations

import itertools
import threading
from math import prod
from types import TracebackType

import numpy as np

from mlpdeploy.errors import UsageError
from mlpdeploy.runtime.cuda.arrays import DeviceArray
from mlpdeploy.runtime.cuda.interface import Cuda
from mlpdeploy.runtime.trt.graphs import capture_lock


class OutputRing:
    """Some sets of output arrays on the GPU, for `run(feeds, outputs=ring.next())`.

    The arrays have `__cuda_array_interface__`, so PyTorch and CuPy take them without a copy. One that `next` gave is
    given again after as many calls as there are sets; nobody may use them after `close`.
    """

    def __init__(self, cuda: Cuda, shapes: dict[str, tuple[tuple[int, ...], np.dtype]], sets: int) -> None:
        """Allocate everything.

        Args:
            cuda: the GPU.
            shapes: {output name: (shape, dtype)}.
            sets: how many, at least one.

        Raises:
            CudaError: there is not enough memory.
        """
        if sets < 1:
            raise UsageError(f"a ring of {sets}", "at least 1")
        self._cuda, self._closing = cuda, threading.Lock()
        self._sets: list[dict[str, DeviceArray]] = []
        try:
            with cuda.current(), capture_lock(cuda.index):
                for _ in range(sets):
                    arrays: dict[str, DeviceArray] = {}
                    self._sets.append(arrays)
                    for name, (shape, dtype) in shapes.items():
                        pointer = cuda.allocate(max(prod(shape) * dtype.itemsize, 1))
                        arrays[name] = DeviceArray(pointer, shape, dtype, self)
        except BaseException:
            self.close()
            raise
        self._turns = itertools.cycle(self._sets)

    def next(self) -> dict[str, DeviceArray]:
        """Return the next set."""
        if not self._sets:
            raise UsageError("this ring is closed", fix="make another one: session.output_ring(rows)")
        return next(self._turns)

    def close(self) -> None:
        """Free the memory. Closing twice is fine."""
        with self._closing:
            sets, self._sets = self._sets, []
        with self._cuda.current(), capture_lock(self._cuda.index):
            for arrays in sets:
                for array in arrays.values():
                    self._cuda.free(array.pointer)

    def __enter__(self) -> OutputRing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
