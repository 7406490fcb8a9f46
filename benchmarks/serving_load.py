"""The other processes of serving.py: clients in a closed loop, and servers that answer without looking (the floor).

They have no model and nothing of mlpdeploy in them, so that what they take can be told from what the server takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

METHOD = "/inference.GRPCInferenceService/ModelInfer"
ANSWER = b"x" * 300
_POOL = (("grpc.use_local_subchannel_pool", 1),)
_LIMIT = (("grpc.max_receive_message_length", 1 << 26),)


def rest_call(port: int, request: bytes) -> Callable[[], bytes]:
    """Return a blocking call on one socket: a whole request out, a whole answer in."""
    found: list[socket.socket] = []

    def call() -> bytes:
        if not found:
            found.append(socket.create_connection(("127.0.0.1", port)))
            found[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found[0].sendall(request)
        head, body = b"", b""
        while b"\r\n\r\n" not in head:
            head += _received(found[0])
        head, _, body = head.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head + body
        length = _content_length(head)
        while len(body) < length:
            body += _received(found[0])
        return body

    return call


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 20)
    assert data, "the server has closed the connection"
    return data


def _content_length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


def grpc_call(address: str, message: bytes) -> Callable[[], bytes]:
    """Return a blocking call of gRPC's own client; the message is built and the answer stays bytes."""
    infer = grpc.insecure_channel(address, options=_POOL).unary_unary(METHOD)
    return lambda: bytes(infer(message))


async def _rest_client(port: str, request: bytes, until: float, ends: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    while time.perf_counter() < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        await reader.readexactly(_content_length(head))
        ends.append(time.perf_counter())
    writer.close()


async def _grpc_client(address: str, message: bytes, until: float, ends: list[float]) -> None:
    async with grpc.aio.insecure_channel(address, options=_POOL) as channel:
        infer = channel.unary_unary(METHOD)
        while time.perf_counter() < until:
            await infer(message)
            ends.append(time.perf_counter())


def _clients(pipe: Connection, protocol: str, address: str, payload: bytes, count: int, seconds: float) -> None:
    """Send, for each client, when its answers came; the first is when it began."""
    ask = {"rest": _rest_client, "grpc": _grpc_client}[protocol]

    async def run() -> list[list[float]]:
        began = time.perf_counter()
        ends = [[began] for _ in range(count)]
        await asyncio.gather(*(ask(address, payload, began + seconds, times) for times in ends))
        return ends

    pipe.send("ready")
    pipe.recv()
    pipe.send(asyncio.run(run()))


def _echo_http(pipe: Connection, size: int) -> None:
    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.seen = 0

        def data_received(self, data: bytes) -> None:
            self.seen += len(data)
            if self.seen >= size:
                self.seen -= size
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER)

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def _echo_grpc(pipe: Connection, size: int) -> None:
    async def answer(data: bytes, context: Any) -> bytes:
        return ANSWER

    async def run() -> None:
        server = grpc.aio.server(options=_LIMIT)
        _, service, method = METHOD.split("/")
        handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        pipe.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


@contextlib.contextmanager
def _process(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[int, Connection]]:
    """Run a function with a pipe in a process of its own; yields (pid, our end of the pipe)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    try:
        yield process.pid or 0, ours
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def floors(request: bytes, message: bytes) -> Iterator[dict[str, Callable[[], bytes]]]:
    """Yield the same requests to servers that answer a few bytes without looking, one a protocol."""
    with _process(_echo_http, len(request)) as (_, http), _process(_echo_grpc, 0) as (_, rpc):
        yield {
            "floor_rest": rest_call(http.recv(), request),
            "floor_grpc": grpc_call(f"127.0.0.1:{rpc.recv()}", message),
        }


def processor_seconds(pid: int) -> float:
    """Return what a process has computed, all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def closed_loop(
    protocol: str, address: str, payload: bytes, count: int, seconds: float, watched: dict[str, list[int]]
) -> tuple[list[list[float]], dict[str, float]]:
    """Return (for each client when its answers came, {processes: processors they took}); `watched`: {name: pids}."""
    with _process(_clients, protocol, address, payload, count, seconds) as (pid, pipe):
        groups = {"clients": [pid], **watched}

        def spent() -> dict[str, float]:
            return {name: sum(map(processor_seconds, pids)) for name, pids in groups.items()}

        pipe.recv()
        before, began = spent(), time.perf_counter()
        pipe.send("go")
        ends = pipe.recv()
        took, after = time.perf_counter() - began, spent()
        return ends, {name: (after[name] - before[name]) / took for name in groups}
