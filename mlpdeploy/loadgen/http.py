"""HTTP/1.1 as the load needs it: connections that are kept, requests that are bytes already, one answer at a time.

On the same core this sends several times as many requests a second as general clients do (docs/adr/0017), and what the
generator needs for itself is missing from what it can measure.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import ssl
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from mlpdeploy.errors import UsageError
from mlpdeploy.loadgen.options import Address, LoadOptions
from mlpdeploy.loadgen.shared import SharedInputs
from mlpdeploy.loadgen.target import (
    LoadError,
    RequestError,
    Target,
    check_answer,
    described,
    only_model,
    random_inputs,
    tls_context,
)
from mlpdeploy.loadgen.wire import rest_metadata, rest_request, rest_shapes

JSON_HEAD = "inference-header-content-length"
_MAX_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection(asyncio.Protocol):
    """One connection, with at most one request on its way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._head: tuple[int, dict[str, str]] | None = None
        self._waiting: asyncio.Future[Answer] | None = None

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes, timeout_s: float) -> Answer:
        """Return the answer to a request, head and body in one.

        Raises:
            RequestError: the connection ended, the answer is no HTTP, or it took too long.
        """
        assert self._waiting is None
        if self._transport is None:  # some servers reset what they have just accepted
            raise RequestError("connection closed")
        loop = asyncio.get_running_loop()
        waiting = self._waiting = loop.create_future()
        timer = loop.call_later(timeout_s, self._fail, "timeout")
        try:
            self._transport.write(request)
            return await waiting
        finally:
            timer.cancel()
            self._waiting = None
            if waiting.cancelled():
                self.close()

    def close(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        head, self._transport = self._head, None
        ends_so = head is not None and "content-length" not in head[1] and "transfer-encoding" not in head[1]
        if ends_so and error is None:
            self._finish(bytes(self._buffer))
        self._fail("connection closed")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            if self._head is None and not self._read_head():
                return
            body = self._read_body()
        except ValueError:
            self._fail("no HTTP")
            return
        if body is not None:
            self._finish(body)

    def _read_head(self) -> bool:
        """Take status and headers from the buffer; return whether they are whole."""
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
            protocol, status, *_ = first.split(" ")
            if not protocol.startswith("HTTP/1.") or not status.isdigit():
                raise ValueError(first)
            del self._buffer[: end + 4]
            if status.startswith("1"):
                continue  # the answer itself comes after it
            parts = (line.partition(":") for line in lines)
            headers = {name.strip().lower(): value.strip() for name, _, value in parts}
            if protocol == "HTTP/1.0":
                headers.setdefault("connection", "close")
            self._head = (int(status), headers)
            return True
        if len(self._buffer) > _MAX_HEAD_BYTES:
            raise ValueError("a head without end")
        return False

    def _read_body(self) -> bytes | None:
        """Return the body once it is whole."""
        assert self._head is not None
        headers = self._head[1]
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return _dechunk(self._buffer)
        if "content-length" not in headers:
            return None  # it ends with the connection
        length = int(headers["content-length"])
        return bytes(self._buffer[:length]) if len(self._buffer) >= length else None

    def _finish(self, body: bytes) -> None:
        assert self._head is not None
        (status, headers), self._head = self._head, None
        self._buffer.clear()
        if "close" in re.split(r"[ ,]+", headers.get("connection", "").lower()):
            self.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(Answer(status, headers, body))

    def _fail(self, kind: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(RequestError(kind))
        self.close()


def _dechunk(data: bytearray) -> bytes | None:
    """Return the body of a chunked answer once it is whole.

    Raises:
        ValueError: it is not chunked.
    """
    parts: list[bytes] = []
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(data[at:end].split(b";")[0], 16)
        if size == 0:  # then come headers, mostly none, and an empty line
            return b"".join(parts) if data.find(b"\r\n\r\n", end) >= 0 else None
        if len(data) < end + 4 + size:
            return None
        parts.append(bytes(data[end + 2 : end + 2 + size]))
        at = end + 4 + size


class HttpTarget(Target):
    """A model behind the protocol's REST interface, or /v1/classify."""

    requests: list[bytes]

    def __init__(self, address: Address, options: LoadOptions) -> None:
        self._address, self._timeout_s = address, options.timeout_s
        self._connections: list[Connection] = []
        self._ssl = tls_context(options.ca_file) if address.tls else None
        self._fixed = f"Host: {address.authority}\r\nUser-Agent: mlpdeploy-load\r\n"
        if options.api_key:
            self._fixed += f"Authorization: Bearer {options.api_key}\r\n"

    async def connect(self, slots: int) -> None:
        while len(self._connections) < slots:
            self._connections.append(Connection())

    async def send(self, slot: int, request: bytes, timeout_s: float) -> None:
        answer = await self._ask(slot, request, timeout_s)
        if answer.status != 200:
            raise RequestError(f"HTTP {answer.status}")

    async def _close(self) -> None:
        for connection in self._connections:
            connection.close()

    async def _ask(self, slot: int, request: bytes, timeout_s: float) -> Answer:
        if not self._connections[slot].is_open:
            await self._open(slot, timeout_s)
        return await self._connections[slot].ask(request, timeout_s)

    async def _open(self, slot: int, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        opening = loop.create_connection(Connection, self._address.host, self._address.port, ssl=self._ssl)
        try:
            _, self._connections[slot] = await asyncio.wait_for(opening, timeout_s)
        except (TimeoutError, asyncio.TimeoutError):
            raise RequestError("timeout while connecting") from None
        except ssl.SSLError as error:
            raise RequestError(f"TLS: {error.reason or error}") from None
        except OSError as error:
            raise RequestError(_kind_of(error)) from None

    def _bytes_of(self, method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
        length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
        return f"{method} {path} HTTP/1.1\r\n{self._fixed}{headers}{length}\r\n".encode() + body

    async def prepare(self, options: LoadOptions) -> dict[str, Any]:
        await self.connect(1)
        if options.image is not None:
            return await self._prepare_classify(options)
        model = options.model or await self._find_model()
        path = f"/v2/models/{quote(model, safe='')}"
        if options.version:
            path += f"/versions/{quote(options.version, safe='')}"
        answer = await self._good(self._bytes_of("GET", path), f"the model {model!r}")
        try:
            metadata = rest_metadata(answer.body)
        except ValueError as error:
            raise LoadError(f"the server's metadata cannot be read ({error})", "the v2 protocol") from error
        names = tuple(spec.name for spec in metadata.outputs)
        self.requests = []
        feeds = random_inputs(metadata, options)
        for feed, places in zip(feeds, await self.share(feeds, options), strict=True):
            body, head_bytes = rest_request(feed, names, places)
            headers = f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {head_bytes}\r\n"
            self.requests.append(self._bytes_of("POST", f"{path}/infer", body, headers))
        answer = await self._good(self.requests[0], "a first request")
        head = answer.headers.get(JSON_HEAD)
        try:
            shapes = rest_shapes(answer.body, int(head) if head else None)
        except ValueError as error:
            raise LoadError(f"the first answer cannot be read ({error})", "the v2 protocol") from error
        check_answer(shapes, metadata, options.rows)
        return described(metadata)

    async def _register(self, shared: SharedInputs) -> None:
        body = json.dumps({"key": shared.key, "offset": 0, "byte_size": shared.byte_size}).encode()
        await self._region(shared, "register", body)

    async def _unregister(self, shared: SharedInputs) -> None:
        await self._region(shared, "unregister", b"{}")

    async def _region(self, shared: SharedInputs, call: str, body: bytes) -> None:
        path = f"/v2/systemsharedmemory/region/{shared.key}/{call}"
        request = self._bytes_of("POST", path, body, "Content-Type: application/json\r\n")
        await self._good(request, "shared memory")

    async def _prepare_classify(self, options: LoadOptions) -> dict[str, Any]:
        assert options.image is not None
        try:
            body = options.image.read_bytes()
        except OSError as error:
            raise UsageError(f"{options.image} cannot be read ({error.strerror})", "a picture") from error
        path = "/v1/classify" + (f"?model={quote(options.model, safe='')}" if options.model else "")
        self.requests = [self._bytes_of("POST", path, body, "Content-Type: application/octet-stream\r\n")]
        await self._good(self.requests[0], f"{options.image}")
        return {"model": options.model, "platform": "/v1/classify", "image_bytes": len(body)}

    async def _find_model(self) -> str:
        """Return the only model's name, from Triton's repository index, which others have taken over."""
        request = self._bytes_of("POST", "/v2/repository/index", b"{}", "Content-Type: application/json\r\n")
        answer = await self._first_answer(request)
        try:
            if answer.status != 200:
                raise ValueError(f"HTTP {answer.status}")
            return only_model([str(entry["name"]) for entry in json.loads(answer.body)])
        except (ValueError, TypeError, KeyError) as error:
            raise LoadError(f"the server does not list its models ({error})", fix="name one with --model") from error

    async def _good(self, request: bytes, what: str) -> Answer:
        """Return the answer to a request that has to succeed."""
        answer = await self._first_answer(request)
        if answer.status != 200:
            text = answer.body[:300].decode(errors="replace").strip()
            raise LoadError(f"{what}: the server answers HTTP {answer.status} {text}")
        return answer

    async def _first_answer(self, request: bytes) -> Answer:
        try:
            return await self._ask(0, request, self._timeout_s)
        except RequestError as error:
            where = f"{self._address.authority} over HTTP" + ("S" if self._address.tls else "")
            raise LoadError(f"no answer from {where} ({error})", fix="is the server running there?") from None


def _kind_of(error: OSError) -> str:
    """Return the kind of failure, without the address and port that would make each one different."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files here (ulimit -n)"
    if error.errno is None or error.errno not in errno.errorcode:
        return "unknown host" if type(error).__name__ == "gaierror" else "no connection"
    return os.strerror(error.errno).lower()
