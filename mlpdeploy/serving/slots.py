"""Memory that the server and a worker share: a batch's inputs are written to it once, and computed where they lie.

A slot is a file without a name, so nothing is left in the system however the processes end: the worker inherits its
descriptor. It holds one batch at a time: a header, the inputs, then the outputs, each from a multiple of 64 bytes.
Either side lets it grow, but only while the batch is its own: the server when it writes inputs, the worker when it
writes outputs.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence

import numpy as np

_ALIGNMENT = 64
HEADER_BYTES = _ALIGNMENT

# dtype and shape, rows first.
Wanted = tuple[str, tuple[int, ...]]


class Slot:
    """One side's view of a slot."""

    def __init__(self, descriptor: int | None = None) -> None:
        """Open the slot behind a descriptor, or make a new one."""
        self.descriptor = _nameless_file() if descriptor is None else descriptor
        self._map: mmap.mmap | None = None

    def arrays(self, wanted: Sequence[Wanted], start: int = HEADER_BYTES) -> tuple[list[np.ndarray], int]:
        """Return (arrays that lie behind one another from byte `start`, the byte behind them)."""
        places = []
        for dtype, shape in wanted:
            places.append(start)
            size = math.prod(shape) * np.dtype(dtype).itemsize
            start += -(-size // _ALIGNMENT) * _ALIGNMENT
        memory = self._mapped(start)
        arrays = [np.ndarray(shape, dtype, memory, place) for (dtype, shape), place in zip(wanted, places, strict=True)]
        return arrays, start

    def _mapped(self, size: int) -> mmap.mmap:
        """Return the memory, of at least `size` bytes; arrays that look at a smaller mapping keep it alive."""
        if self._map is None or len(self._map) < size:
            there = os.fstat(self.descriptor).st_size
            if there < size:
                os.ftruncate(self.descriptor, size)
            self._map = mmap.mmap(self.descriptor, max(size, there))
        return self._map

    @property
    def given_up(self) -> int:
        """Number of the last batch whose answer nobody wants any more; the worker need not compute it."""
        return int.from_bytes(self._mapped(HEADER_BYTES)[:8], "little")

    @given_up.setter
    def given_up(self, number: int) -> None:
        self._mapped(HEADER_BYTES)[:8] = number.to_bytes(8, "little")

    def close(self) -> None:
        """Close the descriptor; the memory goes when the last array on it does."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor, self._map = -1, None


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mlpdeploy-slot")
    with tempfile.TemporaryFile() as file:  # deleted already where the system can
        return os.dup(file.fileno())
