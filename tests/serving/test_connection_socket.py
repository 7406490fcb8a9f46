"""A connection of HTTP/1 over a real socket, with an application that is a function."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.serving.options import ServeOptions
from mlpdeploy.serving.protocol import connection, listener
from mlpdeploy.serving.protocol.http import Answer, Request, json_answer
from mlpdeploy.serving.protocol.limits import MAX_HEADER_BYTES, Budget
from mlpdeploy.serving.server import _http_server, listen

MEGABYTE = 1 << 20
LARGE = 32 * MEGABYTE
GET = b"GET /get HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /post HTTP/1.1\r\nHost: a\r\n"
REFUSED = b"POST /refused HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the length of the body and the names of the headers; /refused without reading, /large at length."""
    request = Request(scope, receive, Budget())
    if request.path == ("large",):
        await Answer(parts=[b"{}", memoryview(bytes(LARGE // 2)), bytes(LARGE // 2)]).send(send)
        return
    size = -1 if request.path == ("refused",) else len(await request.body())
    request.release()
    await json_answer({"size": size, "headers": [name.decode() for name, _ in scope["headers"]]}).send(send)


@contextlib.asynccontextmanager
async def clients(
    count: int = 1,
    receive_bytes: int = 0,
    options: ServeOptions | None = None,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[list[Client]]:
    """Connections to a server of `echo`."""
    listening = listen("127.0.0.1", 0, "--http-port")
    server = _http_server(echo, Budget(), options or ServeOptions())
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    found: list[Client] = []
    for _ in range(count):
        end = socket.socket()
        if receive_bytes:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        end.connect(listening.getsockname())
        name = "localhost" if context else None
        found.append(await asyncio.open_connection(sock=end, limit=1 << 17, ssl=context, server_hostname=name))
    try:
        yield found
    finally:
        for _, writer in found:
            writer.close()
        server.should_exit = True
        await serving


async def answer(client: Client) -> tuple[bytes, Any]:
    """Return (status, body) of one answer; (b"", b"") where the connection was closed."""
    try:
        head = await asyncio.wait_for(client[0].readuntil(b"\r\n\r\n"), 10)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b"", b""
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head[9:12], await asyncio.wait_for(client[0].readexactly(size), 10)


async def send(client: Client, *parts: bytes) -> None:
    """Send each in a packet of its own."""
    for part in parts:
        client[1].write(part)
        await client[1].drain()
        await asyncio.sleep(0.05)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ServeOptions, ssl.SSLContext]:
    """Options of a server, and what its client trusts."""
    trustme = pytest.importorskip("trustme", reason="trustme is not installed")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return ServeOptions(tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem"), context


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_body_that_nobody_wants_takes_no_memory() -> None:
    async def test() -> None:
        async with clients(3) as found:
            for client in found:
                await send(client, GET)
                await answer(client)
            gc.collect()
            gc.disable()
            tracemalloc.start()
            for client in found:
                await send(client, REFUSED + b"Content-Length: %d\r\n\r\n" % (16 * MEGABYTE), b"x" * MEGABYTE)
                assert await answer(client) == (b"200", b'{"size": -1, "headers": ["host", "content-length"]}')
                for _ in range(15):
                    await send(client, b"x" * MEGABYTE)
            assert tracemalloc.get_traced_memory()[0] < 4 * MEGABYTE
            for client in found:  # the bytes were counted: what follows them is a request
                await send(client, GET)
                assert (await answer(client))[1].startswith(b'{"size": 0')

    try:
        run(test)
    finally:
        tracemalloc.stop()
        gc.enable()


def test_a_body_that_was_read_takes_no_memory_after_its_answer() -> None:
    async def test() -> None:
        async with clients() as (client,):
            await send(client, GET)
            await answer(client)
            gc.collect()
            gc.disable()
            tracemalloc.start()
            for _ in range(3):
                await send(client, POST + b"Content-Length: %d\r\n\r\n" % (16 * MEGABYTE), bytes(16 * MEGABYTE))
                assert (await answer(client))[1].startswith(b'{"size": 16777216,')
            assert tracemalloc.get_traced_memory()[0] < 4 * MEGABYTE

    try:
        run(test)
    finally:
        tracemalloc.stop()
        gc.enable()


@pytest.mark.parametrize("size", [0, 5, 300_000])
@pytest.mark.parametrize("packets", ["one", "body apart", "all apart"])
@pytest.mark.parametrize("chunked", [False, True])
def test_another_protocol_is_not_taken_and_the_request_is_answered(size: int, packets: str, chunked: bool) -> None:
    """Java's client asks for HTTP/2 with its first request, whatever that is."""
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: %d\r\n" % size
    body = (b"%x\r\n%s\r\n" % (size, bytes(size)) if size else b"") + b"0\r\n\r\n" if chunked else bytes(size)
    head = POST + UPGRADE + framing + b"\r\n"
    sent = {"one": [head + body + GET], "body apart": [head, body + GET], "all apart": [head, body, GET]}[packets]

    async def test() -> None:
        async with clients() as (client,):
            for _ in range(2):
                await send(client, *sent)
                assert (await answer(client))[1].startswith(b'{"size": %d, "headers": ["host", "connection"' % size)
                assert await answer(client) == (b"200", b'{"size": 0, "headers": ["host"]}')

    run(test)


def test_one_connection_too_many_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 2)

    async def test() -> None:
        async with clients(3) as found:
            assert (await answer(found[2])) == (b"", b"")
            for client in found[:2]:
                await send(client, GET)
                assert (await answer(client))[0] == b"200"

    run(test)


def test_connections_that_never_begin_with_tls_are_counted_and_let_others_in_when_they_go(
    monkeypatch: pytest.MonkeyPatch, tls: tuple[ServeOptions, ssl.SSLContext], capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 2)

    async def test() -> None:
        async with clients(5, options=tls[0]) as found:
            for client in found[2:]:  # at once, and not when the handshake has taken too long
                assert await asyncio.wait_for(client[0].read(), 5) == b""
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(found[0][0].read(), 0.1)
            host, port = found[0][1].get_extra_info("peername")
            for client in found[:2]:
                client[1].close()
            await asyncio.sleep(0.3)
            for _ in range(5):  # each goes before the next one comes
                client = await asyncio.open_connection(host, port, ssl=tls[1], server_hostname="localhost")
                await send(client, GET)
                assert (await answer(client))[0] == b"200"
                client[1].close()
                await asyncio.sleep(0.1)

    run(test)
    assert capfd.readouterr() == ("", "")


def test_another_protocol_and_nothing_else() -> None:
    get = GET[:-2] + UPGRADE + b"\r\n"

    async def test() -> None:
        async with clients() as (client,):
            await send(client, get + get + GET + get, GET)
            assert [(await answer(client))[0] for _ in range(5)] == [b"200"] * 5

    run(test)


def test_a_slow_body_behind_an_answered_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.3)

    async def test() -> None:
        async with clients() as (client,):
            await send(client, POST + b"Content-Length: 2\r\n\r\n{}" + POST + b"Content-Length: 3\r\n\r\na")
            await asyncio.sleep(0.8)
            await send(client, b"bc")
            assert [(await answer(client))[1][:10] for _ in range(2)] == [b'{"size": 2', b'{"size": 3']

    run(test)


@pytest.mark.parametrize(
    "parts",
    [
        (GET, b"\r\n"),
        (REFUSED + b"Content-Length: 5\r\n\r\n", b"hello"),
        (REFUSED + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n0\r\n\r\n"),
        (REFUSED + b"Content-Length: 300000\r\n\r\n", bytes(300_000)),
        (REFUSED + b"Content-Length: 300000\r\n\r\n", bytes(3)),
    ],
)
def test_no_connection_stays_open_forever(parts: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.3)
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr("mlpdeploy.serving.server.KEEP_ALIVE_SECONDS", 1)

    async def test() -> None:
        async with clients() as (client,):
            await send(client, parts[0])
            assert (await answer(client))[0] == b"200"
            await send(client, *parts[1:])
            assert await asyncio.wait_for(client[0].read(), 5) == b""

    run(test)


def test_trailers_are_not_headers() -> None:
    async def test() -> None:
        async with clients() as (client,):
            trailers = b"Content-Encoding: gzip\r\nX: y\r\n\r\n"
            await send(client, CHUNKED, b"2\r\n{}\r\n0\r\n" + trailers + GET)
            assert (await answer(client))[1] == b'{"size": 2, "headers": ["host", "transfer-encoding"]}'
            assert (await answer(client))[1] == b'{"size": 0, "headers": ["host"]}'

    run(test)


@pytest.mark.parametrize("start", [b"0\r\nX: ", b"0\r\nX", b"0\r\n" + b"X: y\r\n" * 1000, b"1;x="])
def test_endless_trailers_are_refused(start: bytes) -> None:
    async def test() -> None:
        async with clients() as (client,):
            await send(client, CHUNKED, b"2\r\n{}\r\n", start, b"a" * MAX_HEADER_BYTES)
            assert (await answer(client))[0] == b"400"

    run(test)


def test_chunks_may_be_as_small_as_they_like() -> None:
    async def test() -> None:
        async with clients() as (client,):
            for _ in range(2):
                await send(client, CHUNKED, b"1\r\nx\r\n" * MAX_HEADER_BYTES, b"0\r\n", b"\r\n")
                assert (await answer(client))[1].startswith(b'{"size": %d,' % MAX_HEADER_BYTES)

    run(test)


async def read_slowly(client: Client) -> None:
    """Read a large answer, 12 MB a second."""
    await send(client, GET.replace(b"get", b"large"))
    size = 0
    while size <= LARGE and (piece := await client[0].read(1 << 17)):
        size += len(piece)
        await asyncio.sleep(0.01)
    assert size > LARGE


def test_an_answer_is_written_for_as_long_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SEND_SECONDS", 0.7)

    async def test() -> None:
        async with clients(receive_bytes=1 << 17) as (client,):
            await read_slowly(client)

    run(test)


def test_an_encrypted_answer_is_written_for_as_long_as_it_is_read(
    monkeypatch: pytest.MonkeyPatch, tls: tuple[ServeOptions, ssl.SSLContext]
) -> None:
    monkeypatch.setattr(connection, "SEND_SECONDS", 0.7)

    async def test() -> None:
        async with clients(1, 1 << 17, *tls) as (client,):
            await read_slowly(client)

    run(test)


def test_an_answer_that_nobody_reads_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SEND_SECONDS", 0.7)

    async def test() -> None:
        async with clients(receive_bytes=1 << 17) as (client,):
            await send(client, GET.replace(b"get", b"large"))
            await asyncio.sleep(2)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client[0].readexactly(LARGE)

    run(test)


def test_a_connection_that_never_begins_with_tls_is_closed(
    monkeypatch: pytest.MonkeyPatch, tls: tuple[ServeOptions, ssl.SSLContext]
) -> None:
    monkeypatch.setattr("mlpdeploy.serving.server.HEADER_SECONDS", 0.3)

    async def test() -> None:
        async with clients(options=tls[0]) as (client,):
            assert await asyncio.wait_for(client[0].read(), 5) == b""
        async with clients(1, 0, *tls) as (client,):
            await send(client, GET)
            assert (await answer(client))[0] == b"200"

    run(test)
