"""A server that was started with --shared-memory, and tritonclient's clients with tensors in theirs."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from running import Running

from mlpdeploy.loadgen.options import LoadOptions
from mlpdeploy.loadgen.report import run_load
from mlpdeploy.loadgen.target import LoadError
from mlpdeploy.serving.protocol.messages import SERVICE, message_classes

pytest.importorskip("tritonclient", reason="tritonclient is not installed")
import tritonclient.utils.shared_memory as shared
from triton_clients import CLIENTS, call, url_of
from tritonclient.utils import InferenceServerException

ROW_BYTES, LOGITS_BYTES = 3 * 32 * 32 * 4, 7 * 4
OUTPUTS_AT = 4 * ROW_BYTES


@pytest.fixture
def memory(sharing: Running, rows: np.ndarray) -> Iterator[Any]:
    """Shared memory with `rows` behind 1024 bytes of something else, registered as `region` from there on."""
    key = f"/mlpdeploy-test-{os.getpid()}"
    made = shared.create_shared_memory_region("region", key, 1024 + OUTPUTS_AT + 100, create_only=True)
    try:
        shared.set_shared_memory_region(made, [rows], 1024)
        register(sharing, "region", key, 1024, OUTPUTS_AT + 100)
        yield made
    finally:
        sharing.ask("POST", "/v2/systemsharedmemory/unregister")
        with contextlib.suppress(FileNotFoundError):
            shared.destroy_shared_memory_region(made)


def register(server: Running, name: str, key: str, offset: int, byte_size: int) -> None:
    body = json.dumps({"key": key, "offset": offset, "byte_size": byte_size}).encode()
    status, _, answer = server.ask("POST", f"/v2/systemsharedmemory/region/{name}/register", body)
    assert (status, answer) == (200, {})


def tensors(client: str, count: int, output: bool) -> dict[str, Any]:
    """Return inputs and outputs of `infer` for rows in the region, behind the first of them."""
    kind = CLIENTS[client]
    tensor, logits = kind.InferInput("input", [count, 3, 32, 32], "FP32"), kind.InferRequestedOutput("logits")
    tensor.set_shared_memory("region", count * ROW_BYTES, ROW_BYTES)
    if output:
        logits.set_shared_memory("region", 100, OUTPUTS_AT)
    return {"inputs": [tensor], "outputs": [logits]}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("output", [False, True], ids=["input", "input and output"])
def test_tensors_in_shared_memory(sharing: Running, memory: Any, logits: np.ndarray, client: str, output: bool) -> None:
    result = asyncio.run(call(client, sharing, "infer", "tiny", **tensors(client, 2, output)))
    if output:
        found = result.get_output("logits")
        parameters = found["parameters"] if isinstance(found, dict) else found.parameters
        assert set(parameters) == {"shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"}
        size = parameters["shared_memory_byte_size"]
        assert (size if isinstance(size, int) else size.int64_param) == 2 * LOGITS_BYTES
        got = shared.get_contents_as_numpy(memory, np.float32, (2, 7), 1024 + OUTPUTS_AT)
    else:
        got = result.as_numpy("logits")
    np.testing.assert_allclose(got, logits[1:], rtol=1e-5, atol=1e-5)
    del got


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_register_and_take_back(sharing: Running, memory: Any, client: str) -> None:
    key = memory._shm_key

    async def run() -> tuple[Any, ...]:
        made = CLIENTS[client].InferenceServerClient(url_of(client, sharing))

        async def ask(name: str, *arguments: Any, **more: Any) -> Any:
            result = getattr(made, name)(*arguments, **more)
            return await result if inspect.isawaitable(result) else result

        await ask("register_system_shared_memory", "another", key, 64, offset=8)
        as_json = {"as_json": True} if client.startswith("grpc") else {}
        one = await ask("get_system_shared_memory_status", "another", **as_json)
        both = await ask("get_system_shared_memory_status", **as_json)
        with pytest.raises(InferenceServerException, match="registered already"):
            await ask("register_system_shared_memory", "another", key, 64)
        with pytest.raises(InferenceServerException, match="No such file"):
            await ask("register_system_shared_memory", "third", "/mlpdeploy-none", 64)
        await ask("unregister_system_shared_memory", "another")
        with pytest.raises(InferenceServerException, match="unknown region 'another'"):
            await ask("get_system_shared_memory_status", "another")
        await ask("unregister_system_shared_memory")
        none = await ask("get_system_shared_memory_status", **as_json)
        metadata = await ask("get_server_metadata", **as_json)
        await ask("close")
        return one, both, none, metadata

    one, both, none, metadata = asyncio.run(run())
    if client.startswith("grpc"):
        one, both, none = (list(found.get("regions", {}).values()) for found in (one, both, none))
    assert [{**region, "offset": int(region["offset"]), "byte_size": int(region["byte_size"])} for region in one] == [
        {"name": "another", "key": key, "offset": 8, "byte_size": 64}
    ]
    assert sorted(region["name"] for region in both) == ["another", "region"]
    assert none == []
    assert "system_shared_memory" in metadata["extensions"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shared_memory_region": "regions"}, "unknown region 'regions'; did you mean region?"),
        ({"shared_memory_byte_size": ROW_BYTES - 4}, "input 'input' has 12284 bytes; wanted 12288"),
        ({"shared_memory_offset": 2**40}, "wanted at most"),
        ({"binary_data_size": 0}, "in shared memory and in the request"),
    ],
)
def test_tensors_that_do_not_lie_there(sharing: Running, memory: Any, change: dict[str, Any], text: str) -> None:
    place = {"shared_memory_region": "region", "shared_memory_byte_size": ROW_BYTES, **change}
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 32, 32], "parameters": place}
    status, _, answer = sharing.ask("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}).encode())
    assert status == 400 and text in answer["error"]


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"shared_memory_byte_size": 27}, "an output has 28 bytes; wanted at most the 27"),
        ({"shared_memory_byte_size": 28, "classification": 2}, "as classes and in shared memory"),
    ],
)
def test_outputs_that_do_not_fit_there(sharing: Running, memory: Any, parameters: Any, text: str) -> None:
    place = {"shared_memory_region": "region", "shared_memory_byte_size": ROW_BYTES}
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 32, 32], "parameters": place}
    output = {"name": "logits", "parameters": {"shared_memory_region": "region", **parameters}}
    body = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    status, _, answer = sharing.ask("POST", "/v2/models/tiny/infer", body)
    assert status == 400 and text in answer["error"]


def test_contents_of_a_tensor_in_shared_memory_are_refused(sharing: Running, memory: Any) -> None:
    message = message_classes()["ModelInferRequest"](model_name="tiny")
    tensor = message.inputs.add(name="input", datatype="FP32", shape=(1, 3, 32, 32))
    tensor.parameters["shared_memory_region"].string_param = "region"
    tensor.parameters["shared_memory_byte_size"].int64_param = ROW_BYTES
    tensor.contents.fp32_contents.append(0.0)
    with grpc.insecure_channel(sharing.grpc) as channel, pytest.raises(grpc.RpcError, match="is in shared memory"):
        channel.unary_unary(f"/{SERVICE}/ModelInfer")(message.SerializeToString(), timeout=20)
    tensor.ClearField("contents")
    message.raw_input_contents.append(bytes(ROW_BYTES))
    with (
        grpc.insecure_channel(sharing.grpc) as channel,
        pytest.raises(grpc.RpcError, match="1 raw_input_contents for 0"),
    ):
        channel.unary_unary(f"/{SERVICE}/ModelInfer")(message.SerializeToString(), timeout=20)


def test_memory_that_shrinks_under_load_ends_no_process(sharing: Running, memory: Any, logits: np.ndarray) -> None:
    """Mapped memory would end the server here; see `regions`."""
    path = Path("/dev/shm") / memory._shm_key.strip("/")
    size, ended = path.stat().st_size, threading.Event()

    def shrink() -> None:
        while not ended.is_set():
            os.truncate(path, 5000)
            os.truncate(path, size)

    thread = threading.Thread(target=shrink)
    thread.start()
    try:
        statuses = set()
        for _ in range(40):
            with contextlib.suppress(InferenceServerException):
                asyncio.run(call("http", sharing, "infer", "tiny", **tensors("http", 1, True)))
            statuses.add(sharing.alive())
    finally:
        ended.set()
        thread.join()
    assert statuses == {True}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_load_leaves_its_tensors_there(sharing: Running, protocol: str) -> None:
    before = set(os.listdir("/dev/shm"))
    address = sharing.grpc if protocol == "grpc" else f"127.0.0.1:{sharing.http_port}"
    options = LoadOptions(clients=2, duration_s=0.3, warmup_s=0.1, rows=2, shared_memory=True)
    step = run_load(address, options, protocol=protocol).step
    assert step is not None and step.answered > 2 and not step.errors
    assert sharing.ask("GET", "/v2/systemsharedmemory/status")[2] == []
    assert set(os.listdir("/dev/shm")) <= before


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_load_tells_that_a_server_takes_none(server: Running, protocol: str) -> None:
    before = set(os.listdir("/dev/shm"))
    address = server.grpc if protocol == "grpc" else f"127.0.0.1:{server.http_port}"
    with pytest.raises(LoadError, match="this server reads no shared memory; start it with --shared-memory"):
        run_load(address, LoadOptions(shared_memory=True), protocol=protocol)
    assert set(os.listdir("/dev/shm")) <= before
