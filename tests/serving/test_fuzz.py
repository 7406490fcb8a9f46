"""Requests that nobody would write by hand. `MLPDEPLOY_FUZZ_EXAMPLES=10000` makes a long run of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import Running

from mlpdeploy.serving.protocol.messages import SERVICE, message_classes

EXAMPLES = int(os.environ.get("MLPDEPLOY_FUZZ_EXAMPLES", "0"))
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
REFUSALS = {400, 401, 404, 405, 413, 415}

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.integers(0, 20000), st.floats(), st.booleans(), st.none(), st.text(max_size=5)
)
JSON = st.recursive(
    NUMBERS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
SHAPES = st.one_of(st.just([1, 3, 32, 32]), st.lists(st.integers(-1, 2**62), max_size=6), JSON)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "binary_data_size": st.one_of(st.just(12288), NUMBERS),
        "classification": NUMBERS,
        "binary_data": JSON,
        "timeout": NUMBERS,
        "binary_data_output": st.one_of(st.booleans(), JSON),
        "shared_memory_region": st.just("region") | st.text(max_size=3),
        "shared_memory_offset": st.one_of(st.integers(-1, 9000), NUMBERS),
        "shared_memory_byte_size": st.one_of(st.just(12288), NUMBERS),
    },
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["input", "logits", "", "../x"]) | JSON,
        "shape": SHAPES,
        "datatype": st.sampled_from(["FP32", "FP16", "BYTES", "INT64", "BOOL"]) | JSON,
        "parameters": PARAMETERS | JSON,
        "data": JSON,
    },
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON,
        "inputs": st.lists(TENSORS, max_size=3) | JSON,
        "outputs": st.lists(TENSORS, max_size=3) | JSON,
        "parameters": PARAMETERS | JSON,
    },
)


def limited(default: int) -> Any:
    return settings(max_examples=EXAMPLES or default, deadline=None, suppress_health_check=SUPPRESSED)


def check(server: Running, body: bytes, **headers: str) -> None:
    status, _, answer = server.ask("POST", "/v2/models/tiny/infer", body, **headers)
    assert status in REFUSALS | {200, 504}, (status, answer)
    assert status == 200 or list(answer) == ["error"]


@given(
    request=REQUESTS,
    tail=st.binary(max_size=40) | st.just(bytes(12288)),
    shift=st.sampled_from([0, 0, 0, -1, 1, 10**6]),
)
@limited(60)
def test_the_binary_extension(server: Running, request: Any, tail: bytes, shift: int) -> None:
    head = json.dumps(request).encode()
    check(server, head + tail, Inference_Header_Content_Length=str(len(head) + shift))


@given(body=st.binary(max_size=200), length=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8))
@limited(40)
def test_any_bytes(server: Running, body: bytes, length: str) -> None:
    check(server, body, Inference_Header_Content_Length=length)


@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 60),
    seed=st.integers(0, 3),
)
@limited(60)
def test_damaged_grpc_messages(server: Running, changes: list[tuple[int, int]], cut: int, seed: int) -> None:
    message = message_classes()["ModelInferRequest"](model_name="tiny", id="1", raw_input_contents=[bytes(12288)])
    message.inputs.add(name="input", datatype="FP32", shape=(1, 3, 32, 32))
    message.parameters["timeout"].int64_param = seed
    data = bytearray(message.SerializeToString())
    for place, value in changes:  # most of the message is the tensor: aim at what is not
        data[place % 80 if place % 2 else -(place % 80) - 1] = value
    with grpc.insecure_channel(server.grpc) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        code = "OK"
        try:
            ask(bytes(data[: len(data) - cut]), timeout=20)
        except grpc.RpcError as error:
            code = error.code().name
    assert code in {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"}


@given(tensor=TENSORS, offset=NUMBERS, size=NUMBERS)
@limited(60)
def test_any_region_and_place_in_it(sharing: Running, tensor: Any, offset: Any, size: Any) -> None:
    name, path = f"fuzz-{os.getpid()}", Path("/dev/shm") / f"mlpdeploy-fuzz-{os.getpid()}"
    path.write_bytes(bytes(12288))
    try:
        body = json.dumps({"key": path.name, "offset": offset, "byte_size": size}).encode()
        status, _, answer = sharing.ask("POST", f"/v2/systemsharedmemory/region/{name}/register", body)
        assert status in (200, 400) and (status == 200 or list(answer) == ["error"])
        if status == 400:
            body = json.dumps({"key": path.name, "byte_size": 12288}).encode()
            assert sharing.ask("POST", f"/v2/systemsharedmemory/region/{name}/register", body)[0] == 200
        text = json.dumps({"inputs": [tensor], "outputs": [tensor]}).replace('"region"', f'"{name}"')
        check(sharing, text.encode())
    finally:
        sharing.ask("POST", f"/v2/systemsharedmemory/region/{name}/unregister")
        path.unlink()


@given(data=st.data())
@limited(40)
def test_damaged_pictures(server: Running, data: Any) -> None:
    import io

    from PIL import Image

    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    file = io.BytesIO()
    Image.fromarray(np.arange(27 * 31 * 3, dtype=np.uint8).reshape(27, 31, 3)).save(file, kind)
    body = bytearray(file.getvalue())
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6)):
        body[place % len(body)] = value
    status, _, answer = server.ask("POST", "/v1/classify", bytes(body[: data.draw(st.integers(1, len(body)))]))
    assert status in (200, 400) and (status == 200 or list(answer) == ["error"])


def test_everything_that_the_openapi_page_allows(server: Running) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    schema = schemathesis.openapi.from_dict(server.ask("GET", "/openapi.json")[2])
    schema.config.update(base_url=server.url)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v2/models/{model}/infer", "/v1/classify", "/metrics"}
    right, wrong = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    for operation in operations:
        for mode in (right, wrong) if operation.body else (right,):
            ask_generated(operation, mode)


def ask_generated(operation: Any, mode: Any) -> None:
    """Send requests made from an operation's description: answers must be what it says, and never 500."""

    @given(case=operation.as_strategy(generation_mode=mode))
    @limited(5)
    def run(case: Any) -> None:
        response = case.call()
        assert response.status_code in REFUSALS | {200, 503, 504}, response.text
        if response.status_code == 200:
            operation.validate_response(response)
        elif case.method != "HEAD":
            assert list(response.json()) == ["error"]

    run()


@pytest.fixture(autouse=True, scope="module")
def _still_alive(server: Running) -> Any:
    yield
    assert server.alive()
    assert "Traceback" not in server.stderr.read_text()
