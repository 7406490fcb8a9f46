"""A connection of HTTP/1, without a server around it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from mlpdeploy.serving.protocol.connection import CONNECTION, connection_class
from mlpdeploy.serving.protocol.http import JOIN_BYTES, Answer
from mlpdeploy.serving.protocol.limits import Budget

GET = b" /a HTTP/1.1\r\nHost: a\r\n\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written, a call an entry."""

    def __init__(self) -> None:
        super().__init__({"peername": ("test", 1), "sockname": ("test", 2)})
        self.written: list[bytes] = []
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


async def written(requests: list[bytes], body: bytes, seen: list[Any] | None = None) -> list[list[bytes]]:
    """Return what is written for each of the requests of a connection, all of which are answered with `body`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await Answer(parts=[body]).send(send, scope["method"] == "HEAD")

    config = uvicorn.Config(app, lifespan="off", log_config=None)
    connection: Any = connection_class(Budget())(config, ServerState(), {})
    transport, found = Transport(), []
    connection.connection_made(transport)
    for request in requests:
        connection.data_received(request)
        if seen is not None:
            seen.append(weakref.ref(connection.cycle))
        for _ in range(10):
            await asyncio.sleep(0)
        found.append(transport.written[:])
        transport.written.clear()
    connection.connection_lost(None)
    return found


def test_head_and_body_leave_together() -> None:
    answers = asyncio.run(written([b"GET" + GET, b"HEAD" + GET, b"GET" + GET], b"{}"))
    assert [len(answer) for answer in answers] == [1, 1, 1]
    assert answers[0] == answers[2] and answers[0][0].endswith(b"content-length: 2\r\n\r\n{}")
    assert answers[1][0].endswith(b"content-length: 2\r\n\r\n")


def test_a_large_body_is_not_copied_behind_its_head() -> None:
    ((head, body),) = asyncio.run(written([b"GET" + GET], bytes(JOIN_BYTES + 1)))
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and head.endswith(b"\r\n\r\n") and len(body) == JOIN_BYTES + 1


def test_a_client_that_waits_before_it_sends_is_told_to_go_on() -> None:
    head = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    answers = asyncio.run(written([head, b"ab"], b"{}"))
    assert answers[0] == [b"HTTP/1.1 100 Continue\r\n\r\n"] and answers[1][0].endswith(b"{}")


def test_what_a_client_that_has_gone_asked_for_is_not_computed_on() -> None:
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"][CONNECTION].task = asyncio.current_task()
        try:
            await asyncio.sleep(5)
        finally:
            ended.append(scope["path"])

    async def main() -> None:
        config = uvicorn.Config(app, lifespan="off", log_config=None)
        connection: Any = connection_class(Budget())(config, ServerState(), {})
        connection.connection_made(Transport())
        connection.data_received(b"GET" + GET)
        await asyncio.sleep(0.01)
        assert not ended
        connection.connection_lost(None)
        await asyncio.sleep(0.01)
        assert ended == ["/a"] and connection.lost

    asyncio.run(main())


def test_nothing_of_an_answered_request_stays() -> None:
    """Not even until the garbage is collected: a body may have many megabytes."""
    seen: list[Any] = []
    gc.disable()
    try:
        asyncio.run(written([b"GET" + GET] * 3, b"{}", seen))
    finally:
        gc.enable()
    assert [reference() for reference in seen[:2]] == [None, None]
