"""The protocol's system shared memory: tensors that a client on this machine leaves in memory of its own.

A region is read and written as the file that it is on Linux, and never mapped. A process that touches a mapping which
its owner has made shorter is ended by a signal; a file that is too short is an error of one request. The bytes are
copied once, as those of a socket are, and count as a body does.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError
from mlpdeploy.serving.failures import UnavailableError
from mlpdeploy.serving.protocol.limits import MAX_BODY_BYTES, MAX_REGIONS, Budget, too_large
from mlpdeploy.serving.protocol.tensors import whole_number

MEMORY = Path("/dev/shm")  # where Linux keeps what shm_open makes
REGION, OFFSET, BYTE_SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"
MAX_NAME = 255  # characters of a region, bytes of a key
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Region:
    """Memory that a client has registered.

    Attributes:
        name: under which requests speak of it.
        key: of the shared memory object.
        offset, byte_size: of the region in that object.
        descriptor: of the file; it is closed when nobody holds the region any more.
    """

    name: str
    key: str
    offset: int
    byte_size: int
    descriptor: int

    def __post_init__(self) -> None:
        weakref.finalize(self, os.close, self.descriptor)


@dataclass(frozen=True)
class Place:
    """Bytes of a region: where a tensor lies, or where one may be written to."""

    region: Region
    offset: int
    byte_size: int

    def parameters(self) -> dict[str, str | int]:
        """Return how the protocol says it."""
        return {REGION: self.region.name, OFFSET: self.offset, BYTE_SIZE: self.byte_size}

    def write(self, data: memoryview) -> Place:
        """Write a tensor, and return where it lies.

        Raises:
            UsageError: it does not fit, or the memory has been made shorter.
            UnavailableError: the system has no memory for it.
        """
        if len(data) > self.byte_size:
            raise UsageError(
                f"an output has {len(data)} bytes", f"at most the {self.byte_size} of region {self.region.name!r}"
            )
        start, done = self.region.offset + self.offset, 0
        if os.fstat(self.region.descriptor).st_size < start + len(data):
            raise _shortened(self.region)
        try:
            while done < len(data):
                done += os.pwrite(self.region.descriptor, data[done:], start + done)
        except OSError as error:
            raise UnavailableError(
                f"region {self.region.name!r} cannot be written ({error.strerror})", fix="make room in shared memory"
            ) from error
        return Place(self.region, self.offset, len(data))


class Regions:
    """What clients have registered, by name.

    Attributes:
        allowed: whether the server was told to take any.
        budget: of the bytes that are read.
    """

    def __init__(self, budget: Budget, allowed: bool = False, memory: Path = MEMORY) -> None:
        self.allowed, self.budget, self._memory = allowed, budget, memory
        self._regions: dict[str, Region] = {}

    def register(self, name: Any, key: Any, offset: Any, byte_size: Any) -> None:
        """Take a region, which has to be there.

        Raises:
            UsageError: it is not allowed, there is no such object or it is too small, or the name is taken.
        """
        if not self.allowed:
            raise UsageError("this server reads no shared memory", fix="start it with --shared-memory")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise UsageError("the name of the region", f"1 to {MAX_NAME} characters")
        offset, byte_size = whole_number("offset", offset), whole_number("byte_size", byte_size, 1)
        if name in self._regions:
            raise UsageError(f"region {name!r} is registered already", fix="unregister it first, or take another name")
        if len(self._regions) >= MAX_REGIONS:
            raise UsageError(f"{MAX_REGIONS} regions are registered", fix="unregister some")
        region = Region(name, key, offset, byte_size, self._opened(key))
        status = os.fstat(region.descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{key!r} is no shared memory")
        if offset + byte_size > status.st_size:
            raise UsageError(f"bytes {offset} to {offset + byte_size} of {key!r}", f"at most {status.st_size}")
        self._regions[name] = region

    def _opened(self, key: Any) -> int:
        """Return a descriptor; a key is one name, with or without the slash that shm_open wants before it."""
        name = key.removeprefix("/") if isinstance(key, str) else ""
        if name in ("", ".", "..") or "/" in name or not name.isprintable() or len(os.fsencode(name)) > MAX_NAME:
            raise UsageError(f"the key {str(key)[:100]!r}", "the name of a shared memory object, such as /mine")
        try:
            return os.open(self._memory / name, _FLAGS)
        except OSError as error:
            raise UsageError(
                f"the shared memory {key!r} cannot be opened ({error.strerror})",
                "one that was made on this machine, for the user who runs this server",
            ) from error

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all of them; one that is not there is no matter. Requests that use it still may."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str = "") -> list[dict[str, str | int]]:
        """Return a region, or all of them.

        Raises:
            UsageError: there is none of this name.
        """
        found = [self._get(name)] if name else self._regions.values()
        return [{"name": r.name, "key": r.key, "offset": r.offset, "byte_size": r.byte_size} for r in found]

    def _get(self, name: Any) -> Region:
        if not isinstance(name, str) or name not in self._regions:
            raise UsageError(f"unknown region {str(name)[:100]!r}", fix=closest(str(name)[:100], self._regions))
        return self._regions[name]

    def place(self, what: str, parameters: Mapping[str, Any]) -> Place | None:
        """Return where the parameters of a tensor say that it lies; None where they say nothing of it.

        Raises:
            UsageError: there is no such region, or it is smaller than that.
        """
        if not parameters.keys() & {REGION, OFFSET, BYTE_SIZE}:
            return None
        if not self.allowed:
            raise UsageError(
                f"{what[:100]!r} is in shared memory, which this server does not read",
                fix="send the tensor, or start the server with --shared-memory",
            )
        region = self._get(parameters.get(REGION))
        offset = whole_number(OFFSET, parameters.get(OFFSET, 0))
        byte_size = whole_number(BYTE_SIZE, parameters.get(BYTE_SIZE))
        if offset + byte_size > region.byte_size:
            raise UsageError(
                f"{what[:100]!r} is in bytes {offset} to {offset + byte_size} of region {region.name!r}",
                f"at most {region.byte_size}",
            )
        return Place(region, offset, byte_size)


class RegionReader:
    """Reads the inputs of one request, which together are no larger than a body may be."""

    def __init__(self, regions: Regions) -> None:
        self._budget, self._left = regions.budget, MAX_BODY_BYTES

    def read(self, place: Place) -> memoryview:
        """Return a copy of the bytes at a place, which counts as a body until it is dropped.

        Raises:
            RefusedError: the request's inputs are too large.
            UnavailableError: too many bodies are in memory.
            UsageError: the memory has been made shorter.
        """
        size = place.byte_size
        self._left -= size
        if self._left < 0:
            raise too_large("what the request has in shared memory", MAX_BODY_BYTES)
        if not self._budget.take(size):
            raise UnavailableError("too much is being uploaded to this server", fix="try again in a moment")
        data = np.empty(size, np.uint8)
        weakref.finalize(data, self._budget.give, size)
        view, done = data.data, 0
        while done < size:
            count = os.preadv(place.region.descriptor, [view[done:]], place.region.offset + place.offset + done)
            if not count:
                raise _shortened(place.region)
            done += count
        return view


def _shortened(region: Region) -> UsageError:
    got = f"the shared memory {region.key!r} has become shorter than region {region.name!r}"
    return UsageError(got, fix="register it again")
