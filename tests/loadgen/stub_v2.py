"""A small server of the Open Inference Protocol v2, REST and gRPC, whose slowness and failures a test decides.

gRPC's messages are read and written by tritonclient's classes, REST's by hand: neither is the code under test.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MODEL, CLASSES, SIDE = "stub", 7, 8


@dataclass
class Stub:
    """What the server does; change it while it runs. Times in seconds."""

    delay_s: float = 0.0
    stall: tuple[float, float] | None = None  # (from, to) seconds after the first request
    workers: int = 64  # requests that are computed at once
    fail_every: int = 0
    fail_status: int = 429
    models: tuple[str, ...] = (MODEL,)
    rows: int = -1
    chunked: bool = False
    close_after: bool = False
    reset_after: int | None = None  # requests, from which on connections are accepted and reset at once
    api_key: str = ""
    http_port: int = 0
    grpc_port: int = 0
    seen: list[dict[str, np.ndarray]] = field(default_factory=list)
    requests: int = 0
    first: float | None = None

    async def wait(self) -> bool:
        """Take the time that a request takes; return whether it succeeds."""
        now = time.monotonic()
        self.first = now if self.first is None else self.first
        self.requests += 1
        number = self.requests
        async with self.slots:
            if self.stall and self.stall[0] <= time.monotonic() - self.first < self.stall[1]:
                await asyncio.sleep(self.stall[1] - (time.monotonic() - self.first))
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
        return not (self.fail_every and number % self.fail_every == 0)

    def metadata(self) -> dict[str, Any]:
        image = {"name": "input", "datatype": "FP32", "shape": [self.rows, 3, SIDE, SIDE]}
        logits = {"name": "logits", "datatype": "FP32", "shape": [self.rows, CLASSES]}
        return {"name": MODEL, "versions": ["1"], "platform": "stub", "inputs": [image], "outputs": [logits]}

    def keep(self, feeds: dict[str, np.ndarray]) -> None:
        if len(self.seen) < 64:
            self.seen.append(feeds)


async def _http(stub: Stub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            if stub.reset_after is not None and stub.requests >= stub.reset_after:
                linger = struct.pack("ii", 1, 0)  # closing becomes a reset
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                break
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, path, _ = first.split(" ")
            status, answer, extra = await _answer(stub, method, path, headers, body)
            extra += "Connection: close\r\n" if stub.close_after else ""
            if stub.chunked:
                parts = [answer[i : i + 100] for i in range(0, len(answer), 100)]
                sent = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
                writer.write(f"HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n{extra}\r\n".encode() + sent)
            else:
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(answer)}\r\n{extra}\r\n".encode() + answer)
            await writer.drain()
            if stub.close_after:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _answer(stub: Stub, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, str]:
    if stub.api_key and headers.get("authorization") != f"Bearer {stub.api_key}":
        return 401, b'{"error": "no key"}', ""
    if path == "/v2/repository/index":
        return 200, json.dumps([{"name": name} for name in stub.models]).encode(), ""
    if method == "GET" and path == f"/v2/models/{MODEL}":
        return 200, json.dumps(stub.metadata()).encode(), ""
    if path.startswith("/v1/classify"):
        stub.keep({"image": np.frombuffer(body, np.uint8)})
        return (200 if await stub.wait() else stub.fail_status), b"{}", ""
    if path != f"/v2/models/{MODEL}/infer":
        return 404, b'{"error": "unknown"}', ""
    size = int(headers["inference-header-content-length"])
    asked = json.loads(body[:size])
    (tensor,) = asked["inputs"]
    assert tensor["parameters"]["binary_data_size"] == len(body) - size
    array = np.frombuffer(body[size:], np.float32).reshape(tensor["shape"])
    stub.keep({tensor["name"]: array})
    if not await stub.wait():
        return stub.fail_status, b'{"error": "stub"}', ""
    shape = [len(array), CLASSES]
    raw = np.zeros(shape, np.float32).tobytes()
    output = {"name": "logits", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"model_name": MODEL, "outputs": [output]}).encode()
    return 200, text + raw, f"Inference-Header-Content-Length: {len(text)}\r\n"


def _grpc_server(stub: Stub) -> Any:
    import grpc
    from google.protobuf import json_format
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
        async def _check(self, context: Any) -> None:
            if stub.api_key and dict(context.invocation_metadata()).get("authorization") != f"Bearer {stub.api_key}":
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no key")

        async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802 (the protocol's name)
            await self._check(context)
            if request.name != MODEL:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name}")
            return json_format.ParseDict(stub.metadata(), service_pb2.ModelMetadataResponse())

        async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
            models = [{"name": name, "state": "READY"} for name in stub.models]
            return json_format.ParseDict({"models": models}, service_pb2.RepositoryIndexResponse())

        async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
            await self._check(context)
            (tensor,) = request.inputs
            array = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(list(tensor.shape))
            stub.keep({tensor.name: array})
            assert (request.model_name, tensor.datatype) == (MODEL, "FP32")
            assert [output.name for output in request.outputs] == ["logits"]
            if not await stub.wait():
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "stub")
            output = {"name": "logits", "datatype": "FP32", "shape": [len(array), CLASSES]}
            answer = json_format.ParseDict({"model_name": MODEL, "outputs": [output]}, service_pb2.ModelInferResponse())
            answer.raw_output_contents.append(bytes(4 * len(array) * CLASSES))
            return answer

    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(), server)
    stub.grpc_port = server.add_insecure_port("127.0.0.1:0")
    return server


@contextmanager
def serving(stub: Stub, *, grpc: bool = False) -> Iterator[Stub]:
    """Serve in a thread while the block runs; the ports stand in the stub."""
    ready, stop = threading.Event(), threading.Event()

    async def main() -> None:
        stub.slots = asyncio.Semaphore(stub.workers)  # type: ignore[attr-defined]
        handler: Callable[..., Any] = lambda reader, writer: _http(stub, reader, writer)  # noqa: E731
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        stub.http_port = server.sockets[0].getsockname()[1]
        remote = _grpc_server(stub) if grpc else None
        if remote is not None:
            await remote.start()
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.02)
        server.close()
        if remote is not None:
            await remote.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield stub
    finally:
        stop.set()
        thread.join(10)
