"""A request and an answer of HTTP, on any ASGI server; bodies within the limits, compressed or not."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

from mlpdeploy.errors import UsageError
from mlpdeploy.serving.failures import UnavailableError
from mlpdeploy.serving.protocol.limits import MAX_BODY_BYTES, SEND_BYTES, Budget, RefusedError, body_seconds, too_large

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Buffer = bytes | bytearray | memoryview
JOIN_BYTES = 64 << 10  # parts of an answer are joined up to here; larger ones are written one by one, uncopied
INLINE_BYTES = 4 << 10  # decompressed in the event loop up to here, larger ones in a thread
READER = "mlpdeploy.reader"  # key in the scope's state
MAX_RATIO = 1032  # to which deflate can blow up a byte
ENCODINGS = {"gzip": 31, "deflate": 15}  # -> zlib's wbits


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Request:
    """One request.

    Attributes:
        method: as it came.
        path: decoded segment by segment, so that an escaped slash stays inside of its segment.
        headers: by lower-case name; of a header that came twice the last.
        bytes_in: of the body as it came.
    """

    def __init__(self, scope: Scope, receive: Receive, budget: Budget) -> None:
        self.scope, self._receive, self._budget, self._taken = scope, receive, budget, 0
        self.method: str = scope["method"]
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        self.path = tuple(unquote(part) for part in raw.split(b"?")[0].decode("latin-1").split("/")[1:])
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.bytes_in = 0

    @property
    def client(self) -> str:
        """Address of the other side."""
        client = self.scope.get("client")
        return f"{client[0]}:{client[1]}" if client else ""

    def query(self, names: Sequence[str]) -> dict[str, str]:
        """Return the query's values; UsageError for a name that is not among `names`, or comes twice."""
        try:
            values = parse_qs(
                self.scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True, max_num_fields=20
            )
        except ValueError as error:
            raise UsageError(f"the query cannot be read ({error})") from error
        for name, found in values.items():
            if name not in names or len(found) > 1:
                raise UsageError(f"query {name[:100]!r}", f"once each: {', '.join(names) or 'nothing'}")
        return {name: found[0] for name, found in values.items()}

    async def body(self) -> Buffer:
        """Return the body, decompressed.

        Raises:
            RefusedError: too large, too slow, or in an unknown encoding.
            UsageError: the compressed bytes are damaged.
            UnavailableError: too many bodies are in memory already.
            ClientGoneError: the client went away.
        """
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in (*ENCODINGS, "identity"):
            raise RefusedError(415, f"Content-Encoding {encoding[:40]!r}", f"one of {', '.join(ENCODINGS)}")
        length = self.headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:19]) > MAX_BODY_BYTES:
            raise too_large("the body", MAX_BODY_BYTES)
        body = await self._read()
        self.bytes_in = len(body)
        if encoding == "identity":
            return body
        self._take(min(MAX_BODY_BYTES, len(body) * MAX_RATIO))
        if len(body) < INLINE_BYTES:
            return decompress(body, encoding)
        return await asyncio.to_thread(decompress, body, encoding)

    @property
    def _reader(self) -> Any:
        """The connection's own reader of a large body (`connection.LargeBody`)."""
        return self.scope.get("state", {}).get(READER)

    def release(self) -> None:
        """Give back what the body took of the budget."""
        self._budget.give(self._taken)
        self._taken = 0
        # Leaves the scope, which the connection keeps until its next request.
        reader = self.scope.get("state", {}).pop(READER, None)
        if reader is not None:
            reader.release()

    def _take(self, size: int) -> None:
        if not self._budget.take(size):
            raise UnavailableError("too much is being uploaded to this server", fix="try again in a moment")
        self._taken += size

    async def _read(self) -> Buffer:
        if self._reader is not None:
            try:
                return await self._reader.done
            except TimeoutError:
                raise _slow() from None
            except ConnectionError:
                raise ClientGoneError from None
        task = asyncio.current_task()
        assert task is not None
        late = False

        def stop() -> None:
            nonlocal late
            late = True
            task.cancel()

        timer = asyncio.get_running_loop().call_later(body_seconds(int(self.headers.get("content-length", 0))), stop)
        try:
            return await self._read_pieces()
        except asyncio.CancelledError:
            if late:
                raise _slow() from None
            raise
        finally:
            timer.cancel()

    async def _read_pieces(self) -> bytearray:
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            piece = message.get("body", b"")
            if piece:
                self._take(len(piece))
                body += piece
            if len(body) > MAX_BODY_BYTES:
                raise too_large("the body", MAX_BODY_BYTES)
            if not message.get("more_body", False):
                return body


def _slow() -> RefusedError:
    return RefusedError(408, "the body did not come in time")


def decompress(data: Buffer, encoding: str) -> bytes:
    """Return what `data` holds, of which no more than the limit is ever unpacked."""
    unpacker = zlib.decompressobj(ENCODINGS[encoding])
    try:
        plain = unpacker.decompress(bytes(data), MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise UsageError(f"the body is no {encoding} data ({error})") from error
    if len(plain) > MAX_BODY_BYTES:
        raise too_large("the decompressed body", MAX_BODY_BYTES)
    if not unpacker.eof or unpacker.unused_data:
        raise UsageError(f"the {encoding} data of the body are cut off, or something follows them")
    return plain


@dataclass
class Answer:
    """One answer.

    Attributes:
        parts: of the body, written one after the other.
        content_type: of the body.
        headers: further ones.
    """

    status: int = 200
    parts: Sequence[Buffer] = ()
    content_type: str = "application/json"
    headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def bytes_out(self) -> int:
        """Length of the body."""
        return sum(map(len, self.parts))

    def compress(self, accepted: str) -> None:
        """Compress the body where the client asks for one encoding.

        tritonclient names exactly one. A list is what every HTTP library sends unasked; tensors do not shrink enough to
        spend time on those.
        """
        encoding = accepted.strip().lower()
        if encoding not in ENCODINGS or not self.parts:
            return
        packer = zlib.compressobj(1, wbits=ENCODINGS[encoding])
        self.parts = [b"".join([*map(packer.compress, self.parts), packer.flush()])]
        self.headers.append(("content-encoding", encoding))

    async def send(self, send: Send, head_only: bool = False) -> None:
        """Write it."""
        headers = [("content-type", self.content_type), ("content-length", str(self.bytes_out)), *self.headers]
        parts: Sequence[Buffer]
        if self.bytes_out <= JOIN_BYTES or head_only:
            parts = [b"".join(self.parts)]
        else:  # piece by piece, as the client reads: who reads slowly is told from who does not read at all
            views = [memoryview(part) for part in self.parts]
            parts = [view[at : at + SEND_BYTES] for view in views for at in range(0, len(view), SEND_BYTES)]
        await send(
            {
                "type": "http.response.start",
                "status": self.status,
                "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            }
        )
        for number, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})


def json_answer(value: Any, status: int = 200, headers: list[tuple[str, str]] | None = None) -> Answer:
    """Return a value as JSON."""
    return Answer(status, [json.dumps(value, ensure_ascii=False).encode()], headers=headers or [])
