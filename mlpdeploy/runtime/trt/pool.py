"""The lanes of a session: made when they are first needed, lent to one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlpdeploy.errors import UsageError
from mlpdeploy.runtime.cuda.interface import CudaError
from mlpdeploy.runtime.trt.engine import LoadedEngine
from mlpdeploy.runtime.trt.lane import Lane

# Two lanes fill a GPU with copies and work; each costs the engine's scratch memory. Not measured yet.
LANES = 2


class LanePool:
    """At most LANES lanes."""

    def __init__(self, engine: LoadedEngine) -> None:
        self._engine = engine
        self._lanes: list[Lane] = []
        self._free: list[Lane] = []
        self._changed = threading.Condition()
        self._waiting_for_all = 0  # while somebody does, nobody else is lent a lane: it would never be its turn
        self._closed = False

    @contextmanager
    def lend(self, wanted: int, all_of_them: bool = False) -> Iterator[list[Lane]]:
        """Lend one lane, waiting for it, and as many more as are wanted and free at once.

        A thread that holds a lane never waits for another one, so threads cannot wait for each other.

        Args:
            all_of_them: wait until nobody has a lane, and lend all.

        Raises:
            UsageError: the session was closed meanwhile.
        """
        lanes = self._take(LANES if all_of_them else wanted, all_of_them)
        try:
            yield lanes
        except BaseException:
            for lane in lanes:
                lane.drain()
            raise
        finally:
            with self._changed:
                self._free.extend(lanes)
                self._changed.notify_all()

    def _take(self, wanted: int, all_of_them: bool) -> list[Lane]:
        with self._changed:
            self._waiting_for_all += all_of_them
            try:
                while not self._ready(wanted, all_of_them):
                    self._changed.wait()
            finally:
                self._waiting_for_all -= all_of_them
                if all_of_them:
                    self._changed.notify_all()
            taken = self._free[-wanted:]
            del self._free[-wanted:]
            return taken

    def _ready(self, wanted: int, all_of_them: bool) -> bool:
        """Return whether a lane is free that may be lent now, after making those that are wanted and can be.

        Raises:
            UsageError: the session is closed.
            CudaError: there is no lane, and none can be made.
        """
        if self._closed:
            raise UsageError("this session is closed", fix="load the artifact again")
        if len(self._free) < len(self._lanes) if all_of_them else self._waiting_for_all:
            return False
        while len(self._free) < wanted and len(self._lanes) < LANES:
            try:
                lane = Lane(self._engine)
            except CudaError:  # no memory for another one: slower, but it runs
                if not self._lanes:
                    raise
                break
            self._lanes.append(lane)
            self._free.append(lane)
        return bool(self._free)

    def close(self, wait: bool = True) -> None:
        """Free the lanes, and refuse to lend more; those that are lent are waited for, or left to the end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while wait and len(self._free) < len(self._lanes):
                self._changed.wait()
            free, self._free = self._free, []
            self._lanes = [lane for lane in self._lanes if lane not in free]
        with self._engine.cuda.current():
            for lane in free:
                lane.close()
