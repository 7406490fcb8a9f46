"""Every call of tritonclient, an independent client: HTTP, gRPC, both also with asyncio, and streams."""

from __future__ import annotations

import asyncio
import inspect
import queue
from typing import Any

import numpy as np
import pytest
from running import Running

pytest.importorskip("tritonclient", reason="tritonclient is not installed")
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

CLIENTS = {
    "http": tritonclient.http,
    "grpc": tritonclient.grpc,
    "http.aio": tritonclient.http.aio,
    "grpc.aio": tritonclient.grpc.aio,
}
# call -> arguments. Calls that would change the server are refused; the rest must succeed.
WORKS: dict[str, tuple[Any, ...]] = {
    "is_server_live": (),
    "is_server_ready": (),
    "is_model_ready": ("tiny", "1"),
    "get_server_metadata": (),
    "get_model_metadata": ("tiny",),
    "get_model_config": ("tiny", "1"),
    "get_model_repository_index": (),
    "get_inference_statistics": ("tiny",),
    "get_trace_settings": (),
    "get_log_settings": (),
    "get_system_shared_memory_status": (),
    "get_cuda_shared_memory_status": (),
    "unregister_system_shared_memory": (),
    "unregister_cuda_shared_memory": (),
}
REFUSED: dict[str, tuple[Any, ...]] = {
    "load_model": ("tiny",),
    "unload_model": ("tiny",),
    "update_trace_settings": ("tiny", {"trace_level": ["TIMESTAMPS"]}),
    "update_log_settings": ({"log_info": True},),
    "register_system_shared_memory": ("a", "/a", 64),
    "register_cuda_shared_memory": ("a", b"YQ==", 0, 64),
}
INFERENCE = {"infer", "async_infer", "start_stream", "stop_stream", "async_stream_infer", "stream_infer"}
OTHER = {"close", "plugin", "register_plugin", "unregister_plugin", "generate_request_body", "parse_response_body"}


async def call(client: str, server: Running, name: str, *arguments: Any, **options: Any) -> Any:
    """Return what one call of a new client gives."""
    url = server.grpc if client.startswith("grpc") else f"127.0.0.1:{server.http_port}"
    made = CLIENTS[client].InferenceServerClient(url)
    try:
        result = getattr(made, name)(*arguments, **options)
        return await result if inspect.isawaitable(result) else result
    finally:
        closed = made.close()
        if inspect.isawaitable(closed):
            await closed


def request(client: str, rows: np.ndarray, binary: bool = True) -> list[Any]:
    tensor = CLIENTS[client].InferInput("input", list(rows.shape), "FP32")
    if client.startswith("grpc"):
        tensor.set_data_from_numpy(rows)
    else:
        tensor.set_data_from_numpy(rows, binary_data=binary)
    return [tensor]


@pytest.mark.parametrize("client", CLIENTS)
def test_no_call_is_forgotten(client: str) -> None:
    methods = inspect.getmembers(CLIENTS[client].InferenceServerClient, callable)
    public = {name for name, _ in methods if not name.startswith("_")}
    assert public <= {*WORKS, *REFUSED, *INFERENCE, *OTHER}, public


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", WORKS)
def test_calls_that_read(server: Running, client: str, name: str) -> None:
    result = asyncio.run(call(client, server, name, *WORKS[name]))
    assert result is True if name.startswith("is_") else True


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", REFUSED)
def test_calls_that_would_change_the_server(server: Running, client: str, name: str) -> None:
    with pytest.raises(InferenceServerException, match=r"this server|who runs"):
        asyncio.run(call(client, server, name, *REFUSED[name]))


@pytest.mark.parametrize("client", CLIENTS)
def test_inference(server: Running, client: str, rows: np.ndarray, logits: np.ndarray) -> None:
    result = asyncio.run(call(client, server, "infer", "tiny", request(client, rows), request_id="42"))
    np.testing.assert_allclose(result.as_numpy("logits"), logits, rtol=1e-5, atol=1e-5)
    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "42"


@pytest.mark.parametrize("client", CLIENTS)
def test_requested_outputs_and_options(server: Running, client: str, rows: np.ndarray, logits: np.ndarray) -> None:
    kind = CLIENTS[client].InferRequestedOutput
    options = {"model_version": "1", "priority": 1, "timeout": 5_000_000, "parameters": {"mine": "x"}}
    if client.startswith("http"):
        options |= {"request_compression_algorithm": "gzip", "response_compression_algorithm": "deflate"}
    else:
        options |= {"compression_algorithm": "gzip", "client_timeout": 10.0}
    for outputs in ([kind("logits")], [kind("logits", class_count=3)]):
        result = asyncio.run(call(client, server, "infer", "tiny", request(client, rows), outputs=outputs, **options))
        got = result.as_numpy("logits")
        if got.dtype == object:
            best = [[int(text.split(b":")[1]) for text in row] for row in got]
            assert best == np.argsort(-logits, axis=1)[:, :3].tolist()
        else:
            np.testing.assert_allclose(got, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("client", ["http", "http.aio"])
def test_json_tensors(server: Running, client: str, rows: np.ndarray, logits: np.ndarray) -> None:
    outputs = [CLIENTS[client].InferRequestedOutput("logits", binary_data=False)]
    result = asyncio.run(call(client, server, "infer", "tiny", request(client, rows, binary=False), outputs=outputs))
    np.testing.assert_allclose(result.as_numpy("logits"), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("client", CLIENTS)
def test_errors_arrive_as_such(server: Running, client: str, rows: np.ndarray) -> None:
    with pytest.raises(InferenceServerException, match="did you mean tiny"):
        asyncio.run(call(client, server, "infer", "tinny", request(client, rows)))
    with pytest.raises(InferenceServerException, match="float32"):
        asyncio.run(call(client, server, "infer", "tiny", request(client, rows[:, :, :-1])))


def test_async_calls_of_the_blocking_clients(server: Running, rows: np.ndarray, logits: np.ndarray) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}", concurrency=4) as client:
        waiting = [client.async_infer("tiny", request("http", rows)) for _ in range(8)]
        for one in waiting:
            np.testing.assert_allclose(one.get_result().as_numpy("logits"), logits, rtol=1e-4, atol=1e-5)
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        for _ in range(8):
            client.async_infer("tiny", request("grpc", rows), lambda result, error: answers.put((result, error)))
        for _ in range(8):
            result, error = answers.get(timeout=20)
            assert error is None
            np.testing.assert_allclose(result.as_numpy("logits"), logits, rtol=1e-4, atol=1e-5)


def test_a_stream_answers_in_order_and_survives_an_error(server: Running, rows: np.ndarray, logits: np.ndarray) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for index in range(9):
            model = "tinny" if index == 4 else "tiny"
            client.async_stream_infer(model, request("grpc", rows[: 1 + index % 3]), request_id=str(index))
        for index in range(9):
            result, error = answers.get(timeout=20)
            if index == 4:
                assert "did you mean tiny" in str(error)
                continue
            assert error is None and result.get_response().id == str(index)
            count = 1 + index % 3
            np.testing.assert_allclose(result.as_numpy("logits"), logits[:count], rtol=1e-4, atol=1e-5)
        client.stop_stream()


def test_a_stream_with_asyncio(server: Running, rows: np.ndarray, logits: np.ndarray) -> None:
    async def run() -> list[np.ndarray]:
        async def requests() -> Any:
            for index in range(5):
                yield {"model_name": "tiny", "inputs": request("grpc.aio", rows), "request_id": str(index)}

        async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:
            found = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                found.append(result.as_numpy("logits"))
            return found

    found = asyncio.run(run())
    assert len(found) == 5
    np.testing.assert_allclose(found[-1], logits, rtol=1e-4, atol=1e-5)
