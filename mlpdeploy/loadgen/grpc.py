"""gRPC as the load needs it: grpc.aio with messages that are bytes already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from mlpdeploy.env import require
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
from mlpdeploy.loadgen.wire import (
    grpc_index,
    grpc_metadata,
    grpc_metadata_request,
    grpc_register_request,
    grpc_request,
    grpc_shapes,
    grpc_unregister_request,
)

SERVICE = "/inference.GRPCInferenceService"
MAX_CHANNELS = 8  # connections that the slots share; one alone is a bottleneck, one each is more than grpc does well
# Each channel has a connection of its own, and messages may be as long as images and feature maps are.
_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)

Call = Callable[..., Coroutine[Any, Any, bytes]]


class GrpcTarget(Target):
    """A model behind the protocol's gRPC interface."""

    requests: list[bytes]

    def __init__(self, address: Address, options: LoadOptions) -> None:
        self._grpc = require("grpc")
        require("grpc.aio")
        self._address, self._timeout_s = address, options.timeout_s
        self._headers = (("authorization", f"Bearer {options.api_key}"),) if options.api_key else ()
        self._channels: list[Any] = []
        self._calls: list[Call] = []
        self._credentials = self._tls(options) if address.tls else None

    def _tls(self, options: LoadOptions) -> Any:
        tls_context(options.ca_file)  # gRPC takes any file, and then reaches nobody
        return self._grpc.ssl_channel_credentials(None if options.ca_file is None else options.ca_file.read_bytes())

    async def connect(self, slots: int) -> None:
        aio = self._grpc.aio
        while len(self._channels) < min(slots, MAX_CHANNELS):
            if self._credentials is None:
                channel = aio.insecure_channel(self._address.authority, _CHANNEL_OPTIONS)
            else:
                channel = aio.secure_channel(self._address.authority, self._credentials, _CHANNEL_OPTIONS)
            self._channels.append(channel)
            self._calls.append(channel.unary_unary(f"{SERVICE}/ModelInfer"))

    async def send(self, slot: int, request: bytes, timeout_s: float) -> None:
        await self._ask(self._calls[slot % len(self._calls)], request, timeout_s)

    async def _ask(self, call: Call, request: bytes, timeout_s: float) -> bytes:
        try:
            return await call(request, timeout=timeout_s, metadata=self._headers)
        except self._grpc.aio.AioRpcError as error:
            raise RequestError(error.code().name) from error

    async def _close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def prepare(self, options: LoadOptions) -> dict[str, Any]:
        if options.image is not None:
            raise UsageError("--image over gRPC", "HTTP, which has /v1/classify", "leave --image out")
        await self.connect(1)
        model = options.model or only_model(await self._read("RepositoryIndex", b"", grpc_index))
        asked = grpc_metadata_request(model, options.version)
        metadata = await self._read("ModelMetadata", asked, grpc_metadata)
        names = tuple(spec.name for spec in metadata.outputs)
        feeds = random_inputs(metadata, options)
        places = await self.share(feeds, options)
        self.requests = [
            grpc_request(model, options.version, feed, names, place) for feed, place in zip(feeds, places, strict=True)
        ]
        check_answer(await self._read("ModelInfer", self.requests[0], grpc_shapes), metadata, options.rows)
        return described(metadata)

    async def _register(self, shared: SharedInputs) -> None:
        request = grpc_register_request(shared.key, shared.key, shared.byte_size)
        await self._read("SystemSharedMemoryRegister", request, bytes)

    async def _unregister(self, shared: SharedInputs) -> None:
        await self._read("SystemSharedMemoryUnregister", grpc_unregister_request(shared.key), bytes)

    async def _read(self, method: str, request: bytes, read: Callable[[bytes], Any]) -> Any:
        """Return what `read` finds in the answer to a call that has to succeed."""
        try:
            answer = await self._ask(self._channels[0].unary_unary(f"{SERVICE}/{method}"), request, self._timeout_s)
            return read(answer)
        except RequestError as error:
            detail = getattr(error.__cause__, "details", lambda: "")() or ""
            fix = "is a gRPC server running there?" if str(error) in ("UNAVAILABLE", "DEADLINE_EXCEEDED") else ""
            raise LoadError(f"{method} at {self._address.authority}: {error} {detail[:300]}".strip(), fix=fix) from None
        except ValueError as error:
            raise LoadError(f"the answer to {method} cannot be read ({error})", "the v2 protocol") from error
