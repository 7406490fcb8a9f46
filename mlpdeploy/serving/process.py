"""A worker process, as the server sees it: started, spoken to, and noticed when it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from mlpdeploy.serving.slots import Slot

SLOTS = 2  # one that is computed, one that is filled meanwhile
_READ_BYTES = 1 << 16
_POLL_SECONDS = 0.01


class WorkerProcess:
    """One process. `on_message` gets each of its messages; `on_end` is called once, when it is gone.

    Attributes:
        slots: the shared memory. A slot belongs to this process alone, so nothing that it writes late can reach a
            batch of another one.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_message: Callable[[dict[str, Any]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_end = on_message, on_end
        self._rest = b""
        self.slots: list[Slot] = []
        self._socket, theirs = socket.socketpair()
        try:
            self.slots += [Slot() for _ in range(SLOTS)]
            descriptors = [theirs.fileno(), *(slot.descriptor for slot in self.slots)]
            self._process = subprocess.Popen(
                [*command, *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server, which ends it
            )
        except BaseException:
            self._socket.close()
            self._close_slots()
            raise
        finally:
            theirs.close()
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket.fileno(), self._read)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; to a process that is gone it is lost, and `on_end` tells so."""
        data = json.dumps(message).encode() + b"\n"
        try:
            sent = self._socket.send(data)
        except (BrokenPipeError, ConnectionResetError):
            return
        except BlockingIOError:
            sent = 0
        if sent < len(data):  # it has not read two small messages: it hangs
            self.kill()

    def kill(self) -> None:
        """End the process at once; `on_end` follows."""
        self._process.kill()

    def end(self) -> None:
        """Kill the process, which has nothing to save, without a call of `on_end`."""
        self._hang_up()
        self._process.kill()

    async def gone(self) -> None:
        """Wait until the process is gone."""
        while self._process.poll() is None:
            await asyncio.sleep(_POLL_SECONDS)

    def end_text(self) -> str:
        """Return how the process ended, e.g. `was ended by SIGKILL`; only once it has."""
        status = self._process.returncode
        return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._hang_up()
            self._process.kill()  # it has closed its socket, so it is of no use, even if it still runs
            self._process.wait()
            self._on_end()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._on_message(json.loads(line))

    def _hang_up(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        self._close_slots()

    def _close_slots(self) -> None:
        for slot in self.slots:
            slot.close()
