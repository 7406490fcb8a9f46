"""Inputs that the server finds in shared memory, where requests only say where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from mlpdeploy.errors import MlpDeployError

_ALIGNMENT = 64

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: bytes of a region that the server knows by its name."""

    region: str
    offset: int
    byte_size: int


class SharedInputs:
    """The inputs of all requests in one piece of shared memory, until it is closed.

    Attributes:
        key: of the memory, which is also the region's name.
        byte_size: of it.
    """

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        """Copy the inputs.

        Raises:
            MlpDeployError: there is not so much shared memory.
        """
        sizes = [_padded(array.nbytes) for feed in feeds for array in feed.values()]
        try:
            self._memory = SharedMemory(create=True, size=sum(sizes))
        except OSError as error:
            raise MlpDeployError(f"no shared memory for {sum(sizes)} bytes ({error.strerror})") from error
        self.key, self.byte_size = self._memory.name, sum(sizes)
        buffer = self._memory.buf
        assert buffer is not None
        self._places: list[dict[str, Place]] = []
        at = 0
        for feed in feeds:
            places = {}
            for name, array in feed.items():
                buffer[at : at + array.nbytes] = array.tobytes()
                places[name] = Place(self.key, at, array.nbytes)
                at += _padded(array.nbytes)
            self._places.append(places)

    def __iter__(self) -> Iterator[dict[str, Place]]:
        """Yield {input name: place} of each request."""
        return iter(self._places)

    def close(self) -> None:
        """Give the memory back; closing it twice is fine."""
        if self.byte_size:
            self.byte_size = 0
            self._memory.close()
            self._memory.unlink()


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
