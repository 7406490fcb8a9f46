"""The socket that HTTP clients connect to: a connection too many is closed before anything is made for it."""

from __future__ import annotations

import errno
import socket
import weakref
from typing import Any

from mlpdeploy.serving.protocol.limits import MAX_CONNECTIONS


class Listener(socket.socket):
    """Accepts no more than are allowed to be open at once.

    Those that have not begun with TLS count too: asyncio tells a protocol of a connection only after the handshake.
    """

    def __init__(self, family: int, kind: int, number: int) -> None:
        super().__init__(family, kind, number)
        self._accepted: weakref.WeakSet[socket.socket] = weakref.WeakSet()  # a closed one stays until it is collected

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a connection and its address.

        Raises:
            ConnectionAbortedError: it was one too many; asyncio takes it for a client that has gone, and says nothing.
        """
        end, address = super().accept()
        if sum(one.fileno() != -1 for one in self._accepted) >= MAX_CONNECTIONS:
            end.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, f"{MAX_CONNECTIONS} connections are open")
        self._accepted.add(end)
        return end, address
