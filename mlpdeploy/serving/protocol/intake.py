"""How gRPC's messages are let in, so that all calls together take a bounded amount of memory.

gRPC says nothing about a message before it is complete, and holds what has come of it. So only so many are read at
once, and what has been read counts as REST's bodies do, until its call is answered. A call is read as a stream of one
message, which is the same on the wire: a message that is not asked for yet costs no more than a window of HTTP/2. So
the key is checked first, and the calls that need none are answered without their message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from mlpdeploy.errors import MlpDeployError, UsageError
from mlpdeploy.serving.failures import QueueFullError, UnavailableError
from mlpdeploy.serving.protocol.limits import (
    MAX_BODY_BYTES,
    MAX_READS,
    MAX_STREAMS,
    READ_SECONDS,
    RefusedError,
    body_seconds,
)
from mlpdeploy.serving.protocol.state import ServerState
from mlpdeploy.serving.protocol.status import failure_of

Messages = AsyncIterator[bytes]
OPEN = ("ServerLive", "ServerReady")  # answered without a key; their messages are empty


class Intake:
    """Reads the messages of one server's calls."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._reads = asyncio.Semaphore(MAX_READS)
        self._waiting = 0  # for one of the reads
        self._streams = 0

    def unary(self, name: str, call: Callable[[bytes, Any], Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
        """Return the handler of a call with one message."""

        async def handler(messages: Messages, context: Any) -> bytes:
            if name in OPEN:
                return await call(b"", context)
            try:
                self._check_key(context)
                data = await self._read(aiter(messages))
            except (MlpDeployError, StopAsyncIteration) as error:
                await self._refuse(name, context, error)
                return b""
            try:
                return await call(data, context)
            finally:
                self._state.budget.give(len(data))

        return handler

    def stream(self, name: str, call: Callable[[Messages, Any], Messages]) -> Callable[..., Messages]:
        """Return the handler of a stream, whose next message is read when the last one is answered.

        Streams wait for their clients most of the time, which cannot be told from a message that comes slowly. So
        streams are counted, not reads.
        """

        async def counted(messages: Messages) -> Messages:
            async for data in messages:
                self._take(data)
                try:
                    yield data
                finally:
                    self._state.budget.give(len(data))

        async def handler(messages: Messages, context: Any) -> Messages:
            try:
                self._check_key(context)
                if self._streams >= MAX_STREAMS:
                    raise QueueFullError(f"{MAX_STREAMS} streams are open", fix="try again")
            except MlpDeployError as error:
                await self._refuse(name, context, error)
            self._streams += 1
            try:
                async for reply in call(counted(aiter(messages)), context):
                    yield reply
            except UnavailableError as error:
                await self._refuse(name, context, error)
            finally:
                self._streams -= 1

        return handler

    def _check_key(self, context: Any) -> None:
        """Raise RefusedError unless the call shows a key, where one is needed."""
        metadata = context.invocation_metadata() or ()
        self._state.keys.check_if_needed({key: value for key, value in metadata if isinstance(value, str)})

    def _take(self, data: bytes) -> None:
        if not self._state.budget.take(len(data)):
            raise UnavailableError("too much is being uploaded to this server", fix="try again in a moment")

    async def _read(self, messages: Messages) -> bytes:
        """Return the next message, which is taken from the budget.

        Raises:
            RefusedError: it takes long, and others wait.
            UnavailableError: too much is in memory.
            StopAsyncIteration: there is none.
        """
        self._waiting += 1
        try:
            await self._reads.acquire()
        finally:
            self._waiting -= 1
        timer: asyncio.TimerHandle
        loop, task, late = asyncio.get_running_loop(), asyncio.current_task(), False
        assert task is not None
        end = loop.time() + body_seconds(MAX_BODY_BYTES)

        def look() -> None:
            nonlocal late, timer
            if self._waiting or loop.time() > end:
                late = True
                task.cancel()
            else:
                timer = loop.call_later(READ_SECONDS, look)

        timer = loop.call_later(READ_SECONDS, look)
        try:
            data = await anext(messages)
        except asyncio.CancelledError:
            if late:
                raise RefusedError(408, "the message did not come in time") from None
            raise
        finally:
            timer.cancel()
            self._reads.release()
        self._take(data)
        return data

    async def _refuse(self, name: str, context: Any, error: Exception) -> None:
        """End a call that was not let in."""
        import grpc

        if isinstance(error, StopAsyncIteration):
            error = UsageError("the call has no message", "one")
        failure = failure_of(error, self._state.next_id())
        self._state.metrics.answered("grpc", name, failure.grpc, 0.0)
        if self._state.access_log is not None:
            self._state.access_log.write(
                protocol="grpc", client=context.peer(), method=name, status=failure.grpc, seconds=0.0
            )
        await context.abort(grpc.StatusCode[failure.grpc], failure.text)
