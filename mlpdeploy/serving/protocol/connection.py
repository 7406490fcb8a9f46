"""One HTTP connection: uvicorn's protocol, with limits on slow and endless clients, and large bodies read in place.

uvicorn hands a body on in pieces of at most 64 KiB, and pauses the socket between them. For a tensor of
600 kB that was more than half of the round trip. Here the bytes of a large body with a known length go from the
socket into one buffer of that length, and the application gets the buffer itself.
"""

from __future__ import annotations

import asyncio
import functools
import json
from typing import Any

import httptools
import numpy as np
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlpdeploy.serving.failures import UnavailableError
from mlpdeploy.serving.protocol.http import JOIN_BYTES, READER
from mlpdeploy.serving.protocol.limits import (
    HEADER_SECONDS,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    SEND_SECONDS,
    Budget,
    body_seconds,
)

LARGE_BYTES = 64 << 10  # bodies above are read in place
CONTINUE = b"HTTP/1.1 100 "
BODY_HEADERS = (b"content-length", b"transfer-encoding")  # that say how long a body is
LINGER_SECONDS = 5.0  # for the rest of a request that was answered before it was read
CONNECTION = "mlpdeploy.connection"  # key in the scope's state


class LargeBody(asyncio.BufferedProtocol):
    """Takes over a connection's socket until a body is complete.

    Attributes:
        size: of the body in bytes.
        done: the body; or an exception where it did not come.
        taken: bytes of the budget: those that came, not those that were announced.
    """

    def __init__(self, connection: Connection, size: int, start: bytearray) -> None:
        self.size, self.taken, self._at = size, 0, len(start)
        self._connection, self._budget = connection, connection.budget
        # Not zeroed: what is announced and never comes takes no memory. None when it is nobody's.
        self._view: memoryview | None = np.empty(size, np.uint8).data
        self._view[: len(start)] = start
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[memoryview] = loop.create_future()
        self._timer = loop.call_later(body_seconds(size), self._fail, TimeoutError())
        self._take(len(start))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes belong; those of a body that nobody wants are only counted."""
        if self._view is None:
            return self._connection.buffer[: self.size - self._at]
        return self._view[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        """Note bytes that came; the last of them gives the socket back."""
        self._at += nbytes
        self._take(nbytes)
        if self._at == self.size:
            self._timer.cancel()
            self._connection.large_body_complete()
            if self._view is not None and not self.done.done():
                self.done.set_result(self._view)

    def _take(self, size: int) -> None:
        if self._view is None:
            return
        if self._budget.take(size):
            self.taken += size
        else:
            self._fail(UnavailableError("too much is being uploaded to this server", fix="try again in a moment"))

    def release(self) -> None:
        """Give back the memory and what was taken of the budget; the rest of the body, if there is one, is nobody's."""
        self._budget.give(self.taken)
        self.taken, self._view = 0, None
        self._timer.cancel()

    def _fail(self, error: Exception) -> None:
        self._timer.cancel()
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # nobody may be waiting

    def eof_received(self) -> None:
        """Close, as for any other half-sent request."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell both who wait."""
        self._fail(ConnectionError())
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._connection.resume_writing()


class OneWrite:
    """What an answer is written to: its head waits for the beginning of its body, so that a client wakes up once.

    It knows nothing of the request that is answered: a circle would keep the body until the garbage is collected.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None  # empty when it has left
        self.is_closing = transport.is_closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write, or keep the head; `100 Continue` comes before the answer and does not wait."""
        if self._head is None and not bytes(data[:13]).startswith(CONTINUE):
            self._head = bytes(data)
        elif self._head and len(data) <= JOIN_BYTES:
            self._head, head = b"", self._head
            self._transport.write(head + data)
        else:
            self.flush()
            self._transport.write(data)

    def flush(self) -> None:
        """Write the head of an answer that has no body."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def close(self) -> None:
        """Close behind what was written."""
        self.flush()
        self._transport.close()


class Connection(HttpToolsProtocol, asyncio.BufferedProtocol):
    """uvicorn's protocol with limits; `budget` and `buffer` are set by `connection_class`.

    Bytes are read to one buffer for all connections: what the loop reads at once is handled before it reads again.
    """

    budget: Budget
    buffer: memoryview
    parser: Any
    task: asyncio.Task[None] | None = None  # that answers now; cancelled when the client goes
    lost = False  # whether it went
    _in_headers = False
    _message_complete = True
    _header_bytes = 0  # as they came, or what else came since the last piece of a body
    _parsed_bytes = 0  # of names and values
    _large_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, but not forever."""
        super().connection_made(transport)
        self._start_timer(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what nobody waits for any more."""
        self.lost = True
        self._stop_timer()
        self.resume_writing()
        if self.task is not None:
            self.task.cancel()
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes are read to."""
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes that came."""
        self.data_received(bytes(self.buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Parse, within the limits."""
        if self.parser is None or self.transport.is_closing():
            return
        self._header_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self.transport.is_closing():
            return
        if not self._message_complete and self._header_bytes > MAX_HEADER_BYTES:
            self.send_400_response("the headers are too long")
        elif self._in_headers and self._timer is None:
            self._start_timer(HEADER_SECONDS)
        elif self._large_bytes:
            self._read_large_body()
        elif self._timer is None and self.cycle.response_complete:  # no request came, only the end of one or a new line
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _parse(self, data: memoryview) -> None:
        """Parse bytes as HTTP/1, also where a client asks for another protocol.

        The parser stops behind the headers of such a request. A new one reads on, and is told in a head of our own how
        long the body is; what it calls for that head is ignored, as the request's own headers are complete.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            lengths = [b"%s: %s\r\n" % header for header in self.headers if header[0] in BODY_HEADERS]
            self._new_parser()
            self.parser.feed_data(b"".join([b"POST / HTTP/1.1\r\n", *lengths, b"\r\n"]))

    def _new_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own

    def on_message_begin(self) -> None:
        """A request begins."""
        if not self._message_complete:
            return
        super().on_message_begin()
        self._in_headers, self._message_complete, self._parsed_bytes = True, False, 0

    def on_url(self, url: bytes) -> None:
        """Part of the request's line."""
        if not self._in_headers:
            return
        super().on_url(url)
        if len(self.url) > MAX_HEADER_BYTES:
            raise ValueError("the address is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; raising makes it status 400. What comes behind the body is none."""
        if not self._in_headers:
            return
        super().on_header(name, value)
        self._parsed_bytes += len(name) + len(value)
        if self._parsed_bytes > MAX_HEADER_BYTES:
            raise ValueError("the headers are too long")

    def on_headers_complete(self) -> None:
        """Start the answer; a large body is read in place if there is room for it."""
        if not self._in_headers:
            return
        self._in_headers, self._header_bytes = False, 0
        self._stop_timer()
        self.scope["state"][CONNECTION] = self
        super().on_headers_complete()
        out = OneWrite(self.transport)
        self.cycle.transport = out  # type: ignore[assignment]  # has what a cycle asks of it
        self.cycle.on_response = functools.partial(self._answered, out)
        size = _content_length(self.headers)
        fits = LARGE_BYTES < size <= MAX_BODY_BYTES and not self.expect_100_continue and not self.pipeline
        self._large_bytes = size if fits else 0

    def on_body(self, body: bytes) -> None:
        """Part of the body; between two of them there may be as much else as in the headers."""
        self._header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has been read."""
        if self.parser.should_upgrade():  # it has not: see _parse
            return
        self._message_complete = True
        self._stop_timer()
        super().on_message_complete()

    def _answered(self, out: OneWrite) -> None:
        out.flush()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """The answer has been written; what is left of the request is read and thrown away, for a while."""
        super().on_response_complete()
        if self.cycle.response_complete and not self._in_headers and not self._message_complete:
            self._start_timer(LINGER_SECONDS)

    def _read_large_body(self) -> None:
        """Give the socket to a LargeBody, which the application finds in its scope."""
        size, self._large_bytes = self._large_bytes, 0
        cycle = self.cycle
        if self._message_complete:  # all of it came with the headers, and perhaps the next request behind it
            return
        reader = LargeBody(self, size, cycle.body)
        cycle.body = bytearray()
        cycle.scope["state"][READER] = reader
        self.transport.set_protocol(reader)
        self.flow.resume_reading()

    def large_body_complete(self) -> None:
        """Take the socket back, with a parser that knows nothing of the body."""
        self._new_parser()
        self.transport.set_protocol(self)
        self.on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the protocol's form, and close."""
        body = json.dumps({"error": msg}).encode()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[400] + head + body)
        self.transport.close()

    def pause_writing(self) -> None:
        """The client does not read: wait for it, but not forever."""
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _content_length(headers: list[tuple[bytes, bytes]]) -> int:
    """Return a request's Content-Length; 0 where it has none."""
    found = [value for name, value in headers if name == b"content-length"]
    return int(found[0]) if len(found) == 1 and found[0].isdigit() and len(found[0]) < 19 else 0


def connection_class(limits: Budget) -> type[Connection]:
    """Return the class of one server's connections."""

    class Limited(Connection):
        budget = limits
        buffer = memoryview(bytearray(LARGE_BYTES))

    return Limited
