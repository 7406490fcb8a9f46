"""Every call of tritonclient, an independent client: HTTP, gRPC, both also with asyncio, and streams."""

from __future__ import annotations

import asyncio
import copy
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
from triton_clients import CLIENTS, call, url_of
from tritonclient.utils import InferenceServerException

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
# The calls that are not in these tables, and who makes them.
EACH = {
    "infer": "test_every_option_of_infer",
    "close": "call",
    **dict.fromkeys(("plugin", "register_plugin", "unregister_plugin"), "test_plugins"),
}
BODIES = dict.fromkeys(("generate_request_body", "parse_response_body"), "test_bodies_made_by_the_client")
STREAM = "test_a_stream_answers_in_order_and_survives_an_error"
MORE: dict[str, dict[str, str]] = {
    "http": {**EACH, **BODIES, "async_infer": "test_async_calls_of_the_blocking_clients"},
    "http.aio": {**EACH, **BODIES},
    "grpc": {
        **EACH,
        "async_infer": "test_async_calls_of_the_blocking_clients",
        **dict.fromkeys(("start_stream", "async_stream_infer", "stop_stream"), STREAM),
    },
    "grpc.aio": {**EACH, "stream_infer": "test_a_stream_with_asyncio"},
}
# Every option of `infer`; those of one protocol only are left out for the other one.
OPTIONS: dict[str, Any] = {
    "model_version": "1",
    "request_id": "42",
    "sequence_id": 7,
    "sequence_start": True,
    "sequence_end": True,
    "priority": 1,
    "timeout": 5_000_000,
    "client_timeout": 10.0,
    "headers": {"x-mine": "y"},
    "query_params": {"q": "1"},
    "request_compression_algorithm": "gzip",
    "response_compression_algorithm": "deflate",
    "compression_algorithm": "gzip",
    "parameters": {"mine": "x"},
}


def request(client: str, rows: np.ndarray, binary: bool = True) -> list[Any]:
    tensor = CLIENTS[client].InferInput("input", list(rows.shape), "FP32")
    if client.startswith("grpc"):
        tensor.set_data_from_numpy(rows)
    else:
        tensor.set_data_from_numpy(rows, binary_data=binary)
    return [tensor]


@pytest.mark.parametrize("client", CLIENTS)
def test_no_call_is_forgotten(client: str) -> None:
    """A new version of the client that has another call, or another option of `infer`, makes this fail."""
    kind = CLIENTS[client].InferenceServerClient
    public = {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}
    assert public == {*WORKS, *REFUSED, *MORE[client]}
    assert all(callable(globals()[test]) for test in MORE[client].values())
    options = set(inspect.signature(kind.infer).parameters) - {"self", "model_name", "inputs", "outputs"}
    assert options <= set(OPTIONS)


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
def test_every_option_of_infer(server: Running, client: str, rows: np.ndarray, logits: np.ndarray) -> None:
    kind = CLIENTS[client].InferRequestedOutput
    known = inspect.signature(CLIENTS[client].InferenceServerClient.infer).parameters
    for outputs in ([kind("logits")], [kind("logits", class_count=3)]):
        options = {name: copy.copy(value) for name, value in OPTIONS.items() if name in known}  # it writes into them
        result = asyncio.run(call(client, server, "infer", "tiny", request(client, rows), outputs=outputs, **options))
        got = result.as_numpy("logits")
        if got.dtype == object:
            best = [[int(text.split(b":")[1]) for text in row] for row in got]
            assert best == np.argsort(-logits, axis=1)[:, :3].tolist()
        else:
            np.testing.assert_allclose(got, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("client", CLIENTS)
def test_plugins(server: Running, client: str) -> None:
    class Key(tritonclient.grpc.InferenceServerClientPlugin):  # type: ignore[misc]
        calls = 0

        def __call__(self, request: Any) -> None:
            request.headers["x-api-key"] = "not asked for"
            self.calls += 1

    key = Key()

    async def run() -> None:
        made = CLIENTS[client].InferenceServerClient(url_of(client, server))
        made.register_plugin(key)
        assert made.plugin() is key
        for _ in range(2):
            live = made.is_server_live()
            assert (await live if inspect.isawaitable(live) else live) is True
            if made.plugin() is key:
                made.unregister_plugin()
        closed = made.close()
        if inspect.isawaitable(closed):
            await closed

    asyncio.run(run())
    assert key.calls == 1


@pytest.mark.parametrize("client", ["http", "http.aio"])
def test_bodies_made_by_the_client(server: Running, client: str, rows: np.ndarray, logits: np.ndarray) -> None:
    kind = CLIENTS[client].InferenceServerClient
    body, length = kind.generate_request_body(request(client, rows))
    sent = {"Inference_Header_Content_Length": str(length)}
    status, headers, answer = server.ask("POST", "/v2/models/tiny/infer", bytes(body), **sent)
    assert status == 200
    result = kind.parse_response_body(answer, header_length=int(headers["inference-header-content-length"]))
    np.testing.assert_allclose(result.as_numpy("logits"), logits, rtol=1e-5, atol=1e-5)


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
            options = {"request_id": str(index), "enable_empty_final_response": index == 8}
            client.async_stream_infer(model, request("grpc", rows[: 1 + index % 3]), **options)
        for index in range(9):
            result, error = answers.get(timeout=20)
            if index == 4:
                assert "did you mean tiny" in str(error)
                continue
            assert error is None and result.get_response().id == str(index)
            count = 1 + index % 3
            np.testing.assert_allclose(result.as_numpy("logits"), logits[:count], rtol=1e-4, atol=1e-5)
            final = result.get_response().parameters
            assert final["triton_final_response"].bool_param if index == 8 else not final
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
