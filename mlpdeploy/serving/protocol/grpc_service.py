"""The protocol over gRPC, on grpc.aio."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from mlpdeploy.errors import MlpDeployError, UsageError
from mlpdeploy.serving.protocol.grpc_codec import (
    config_message,
    message_from_answers,
    parse_infer,
    parse_message,
    request_from_message,
)
from mlpdeploy.serving.protocol.inference import (
    configuration,
    infer,
    metadata,
    repository_index,
    statistics,
)
from mlpdeploy.serving.protocol.intake import Intake
from mlpdeploy.serving.protocol.limits import MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_RPCS
from mlpdeploy.serving.protocol.messages import SERVICE, message_classes
from mlpdeploy.serving.protocol.state import ServerState
from mlpdeploy.serving.protocol.status import failure_of

Handler = Callable[["GrpcService", Any, Any], Awaitable[Any]]
FINAL_WANTED = "triton_enable_empty_final_response"
# Calls of Triton that change a server, or map a GPU's memory: a request never does either here.
REFUSED = {
    "RepositoryModelLoad": "models are loaded by who runs the server, with SIGHUP",
    "RepositoryModelUnload": "models are unloaded by who runs the server",
    "CudaSharedMemoryRegister": "this server maps no memory of a GPU; send the tensor, or use system shared memory",
}
# Calls that are answered with an empty message, because there is nothing to list or to take back.
NOTHING = ("CudaSharedMemoryStatus", "CudaSharedMemoryUnregister")


class GrpcService:
    """The calls of the service; each takes the request's bytes and returns a message."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.messages = message_classes()

    async def server_live(self, data: bytes, context: Any) -> Any:
        """Whether the process answers."""
        return self.messages["ServerLiveResponse"](live=True)

    async def server_ready(self, data: bytes, context: Any) -> Any:
        """Whether every model is warm, and the server is not about to stop."""
        return self.messages["ServerReadyResponse"](ready=self.state.ready)

    async def model_ready(self, data: bytes, context: Any) -> Any:
        """Whether one model is warm."""
        model = self._model(parse_message("Named", data))
        return self.messages["ModelReadyResponse"](ready=self.state.ready_to_answer and model.ready)

    async def server_metadata(self, data: bytes, context: Any) -> Any:
        """Name, version and extensions."""
        return self.messages["ServerMetadataResponse"](
            name=self.state.name, version=self.state.version, extensions=self.state.extensions
        )

    async def model_metadata(self, data: bytes, context: Any) -> Any:
        """Inputs and outputs."""
        model = self._model(parse_message("Named", data))
        return self.messages["ModelMetadataResponse"](**metadata(self.state.repository, model))

    async def model_config(self, data: bytes, context: Any) -> Any:
        """What Triton's clients read of a configuration."""
        return config_message(configuration(self._model(parse_message("Named", data))))

    async def model_statistics(self, data: bytes, context: Any) -> Any:
        """Counts of one model, or of all where no name is given."""
        named = parse_message("Named", data)
        models = [self._model(named)] if named.name else self.state.repository.models()
        return self.messages["ModelStatisticsResponse"](model_stats=[statistics(model) for model in models])

    async def repository_index(self, data: bytes, context: Any) -> Any:
        """The models with their state."""
        ready_only = parse_message("RepositoryIndexRequest", data).ready
        return self.messages["RepositoryIndexResponse"](models=repository_index(self.state.repository, ready_only))

    async def register_region(self, data: bytes, context: Any) -> Any:
        """Take a region of shared memory."""
        asked = parse_message("SystemSharedMemoryRegisterRequest", data)
        self.state.regions.register(asked.name, asked.key, asked.offset, asked.byte_size)
        return self.messages["Empty"]()

    async def region_status(self, data: bytes, context: Any) -> Any:
        """The regions, or one of them."""
        found = self.state.regions.status(parse_message("Named", data).name)
        status = self.messages["RegionStatus"]
        return self.messages["SystemSharedMemoryStatusResponse"](
            regions={str(region["name"]): status(**region) for region in found}
        )

    async def unregister_region(self, data: bytes, context: Any) -> Any:
        """Forget a region, or all."""
        self.state.regions.unregister(parse_message("Named", data).name)
        return self.messages["Empty"]()

    async def model_infer(self, data: bytes, context: Any) -> Any:
        """Inference."""
        message, raw = parse_infer(data)
        return await self._infer(message, raw, context.time_remaining())

    async def _infer(self, message: Any, raw: list[memoryview], timeout: float | None) -> Any:
        model = self.state.model(message.model_name, message.model_version)
        request = request_from_message(message, raw, timeout, self.state.regions)
        started = time.perf_counter()
        answers = await infer(model, request)
        self.state.metrics.inferred(model.name, time.perf_counter() - started)
        return message_from_answers(model, request.id, answers)

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        """Answers in the order of the requests; a request that fails is told as such, and the stream goes on."""
        async for data in requests:
            started = time.perf_counter()
            request_id, model, code = "", "", "OK"
            try:
                message, raw = parse_infer(data)
                request_id, model = message.id, message.model_name
                answer = await self._infer(message, raw, context.time_remaining())
                reply = self.messages["ModelStreamInferResponse"](infer_response=answer)
                if FINAL_WANTED in message.parameters:  # every answer is the only one
                    reply.infer_response.parameters["triton_final_response"].bool_param = True
            except Exception as error:  # noqa: BLE001 - told to the client, ours to the log too
                failure = failure_of(error, self.state.next_id())
                code = failure.grpc
                reply = self.messages["ModelStreamInferResponse"](error_message=failure.text)
                reply.infer_response.id = request_id
                reply.infer_response.model_name = model
            self._log(context, "ModelStreamInfer", code, time.perf_counter() - started, len(data))
            yield reply

    def _model(self, named: Any) -> Any:
        return self.state.model(named.name, named.version)

    async def unary(self, name: str, handler: Handler, data: bytes, context: Any) -> bytes:
        """Run one call: answer or status, log."""
        import grpc

        started = time.perf_counter()
        request_id = self.state.next_id()
        code, text, reply = "OK", "", b""
        try:
            reply = (await handler(self, data, context)).SerializeToString()
        except asyncio.CancelledError:
            self._log(context, name, "CANCELLED", time.perf_counter() - started, len(data))
            raise
        except Exception as error:  # noqa: BLE001 - told to the client, ours to the log too
            failure = failure_of(error, request_id)
            code, text = failure.grpc, failure.text
        seconds = time.perf_counter() - started
        # After grpc has sent the answer: the client need not wait for its line in the log.
        asyncio.get_running_loop().call_soon(self._log, context, name, code, seconds, len(data), len(reply))
        if code != "OK":
            await context.abort(grpc.StatusCode[code], text)
        return reply

    async def streaming(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Run one stream."""
        async for reply in self.stream(requests, context):
            yield reply.SerializeToString()

    def _log(self, context: Any, name: str, code: str, seconds: float, sent: int, answered: int = 0) -> None:
        self.state.metrics.answered("grpc", name, code, seconds)
        if self.state.access_log is not None:
            self.state.access_log.write(
                protocol="grpc", client=context.peer(), method=name, status=code, seconds=seconds,
                bytes_in=sent, bytes_out=answered,
            )  # fmt: skip


async def _refused(text: str, service: GrpcService, data: bytes, context: Any) -> Any:
    raise UsageError(text)


async def _nothing(service: GrpcService, data: bytes, context: Any) -> Any:
    return service.messages["Empty"]()


async def _settings(service: GrpcService, data: bytes, context: Any) -> Any:
    """There are no settings to read, and to change one is refused."""
    if parse_message("Settings", data).settings:
        raise UsageError("this server has no settings that a request could change")
    return service.messages["Empty"]()


_HANDLERS: dict[str, Handler] = {
    "ServerLive": GrpcService.server_live,
    "ServerReady": GrpcService.server_ready,
    "ModelReady": GrpcService.model_ready,
    "ServerMetadata": GrpcService.server_metadata,
    "ModelMetadata": GrpcService.model_metadata,
    "ModelConfig": GrpcService.model_config,
    "ModelStatistics": GrpcService.model_statistics,
    "RepositoryIndex": GrpcService.repository_index,
    "ModelInfer": GrpcService.model_infer,
    "SystemSharedMemoryRegister": GrpcService.register_region,
    "SystemSharedMemoryStatus": GrpcService.region_status,
    "SystemSharedMemoryUnregister": GrpcService.unregister_region,
    **{name: functools.partial(_refused, text) for name, text in REFUSED.items()},
    **dict.fromkeys(NOTHING, _nothing),
    "TraceSetting": _settings,
    "LogSettings": _settings,
}


def make_server(state: ServerState, host: str, port: int, certificate: tuple[Path, Path] | None) -> tuple[Any, int]:
    """Return (grpc.aio server, port that it got); not started yet.

    Raises:
        MlpDeployError: the port is taken.
    """
    import grpc

    service, intake = GrpcService(state), Intake(state)
    handlers = {
        name: grpc.stream_unary_rpc_method_handler(intake.unary(name, functools.partial(service.unary, name, handler)))
        for name, handler in _HANDLERS.items()
    }
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        intake.stream("ModelStreamInfer", service.streaming)
    )
    options = (
        ("grpc.max_receive_message_length", MAX_BODY_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", MAX_HEADER_BYTES),
        ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a second half of the requests
        ("grpc.max_concurrent_streams", MAX_RPCS),
        ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    )
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_RPCS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if certificate is None:
            bound = server.add_insecure_port(address)
        else:
            chain, key = (path.read_bytes() for path in certificate)
            bound = server.add_secure_port(address, grpc.ssl_server_credentials([(key, chain)]))
    except RuntimeError:
        bound = 0
    if not bound:
        raise MlpDeployError(f"port {port} on {host} is taken", fix="give another one: --grpc-port")
    return server, int(bound)
