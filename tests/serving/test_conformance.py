"""The points of the Open Inference Protocol v2 that a server has to keep, one row each."""

from __future__ import annotations

import gzip
import json
from typing import Any

import grpc
import numpy as np
import pytest
from running import Running, binary_request

from mlpdeploy.serving.protocol.messages import SERVICE, message_classes

TENSOR = {"name": "input", "shape": [1, 3, 32, 32], "datatype": "FP32"}
ZEROS = [0.0] * (3 * 32 * 32)
METADATA = {
    "name": "tiny",
    "versions": ["1"],
    "platform": "mlpdeploy",
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 32, 32]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 7]}],
}

# what: (method, path, status, expected part of the JSON)
GETS: dict[str, tuple[str, str, int, Any]] = {
    "live": ("GET", "/v2/health/live", 200, {"live": True}),
    "ready": ("GET", "/v2/health/ready", 200, {"ready": True}),
    "server metadata": ("GET", "/v2", 200, {"name": "mlpdeploy"}),
    "model metadata": ("GET", "/v2/models/tiny", 200, METADATA),
    "model metadata with version": ("GET", "/v2/models/tiny/versions/1", 200, METADATA),
    "model ready": ("GET", "/v2/models/tiny/ready", 200, {"name": "tiny", "ready": True}),
    "model ready with version": ("GET", "/v2/models/tiny/versions/1/ready", 200, {"ready": True}),
    "config": ("GET", "/v2/models/tiny/config", 200, {"name": "tiny", "max_batch_size": 8}),
    "unknown model": ("GET", "/v2/models/tinny", 404, {"error": "unknown model 'tinny'; did you mean tiny?"}),
    "unknown version": ("GET", "/v2/models/tiny/versions/2", 404, {}),
    "unknown version, ready": ("GET", "/v2/models/tiny/versions/2/ready", 404, {}),
    "unknown address": ("GET", "/v3", 404, {}),
    "trailing slash": ("GET", "/v2/", 404, {}),
    "method not allowed": ("GET", "/v2/models/tiny/infer", 405, {}),
    "method not allowed on metadata": ("DELETE", "/v2/models/tiny", 405, {}),
    "load refused": ("POST", "/v2/repository/models/tiny/load", 400, {}),
    "unload refused": ("POST", "/v2/repository/models/tiny/unload", 400, {}),
    "memory refused": ("POST", "/v2/systemsharedmemory/region/a/register", 400, {}),
    "no memory": ("GET", "/v2/systemsharedmemory/status", 200, []),
}


@pytest.mark.parametrize("what", GETS)
def test_addresses(server: Running, what: str) -> None:
    method, path, expected, part = GETS[what]
    status, headers, body = server.ask(method, path)
    assert (status, headers["content-type"]) == (expected, "application/json")
    if status >= 400:
        assert list(body) == ["error"] and isinstance(body["error"], str) and body["error"]
    assert body == part if isinstance(part, list) else part.items() <= body.items()


# what: (change of the request, status, words of the error)
REQUESTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "flat data": ({}, 200, ""),
    "nested data": ({"data": np.zeros((1, 3, 32, 32)).tolist()}, 200, ""),
    "whole numbers for FP32": ({"data": [0] * 3072}, 200, ""),
    "unknown parameters are ignored": ({"parameters": {"mine": 1}}, 200, ""),
    "another input": ({"name": "inptu"}, 400, "did you mean input"),
    "wrong datatype": ({"datatype": "FP64"}, 400, "float32"),
    "unknown datatype": ({"datatype": "FP31"}, 400, "datatype"),
    "wrong shape": ({"shape": [1, 3, 32, 31]}, 400, "3072 of numbers"),
    "wrong rank": ({"shape": [3, 32, 32]}, 400, "batch axis"),
    "no rows": ({"shape": [0, 3, 32, 32], "data": []}, 400, "at least"),
    "missing data": ({"data": None}, 400, "no list"),
    "missing shape": ({"shape": None}, 400, "shape"),
    "not finite": ({"data": [float("nan")] * 3072}, 400, "not finite"),
    "shared memory": ({"parameters": {"shared_memory_region": "a"}}, 400, "shared memory"),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_requests(server: Running, what: str) -> None:
    change, expected, words = REQUESTS[what]
    body = json.dumps({"id": "a b", "inputs": [{**TENSOR, "data": ZEROS, **change}]}).encode()
    status, _, answer = server.ask("POST", "/v2/models/tiny/infer", body)
    assert status == expected, answer
    if status != 200:
        assert words in answer["error"]
        return
    assert {"model_name": "tiny", "model_version": "1", "id": "a b"}.items() <= answer.items()
    (output,) = answer["outputs"]
    assert {**output, "data": len(output["data"])} == {"name": "logits", "datatype": "FP32", "shape": [1, 7], "data": 7}


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{", b"\xff", b'{"inputs": 1}', b'{"inputs": [1]}', b'{"inputs": []}', b'{"inputs": [{}]}',
     b'{"inputs": [{"name": 1}]}', b'{"id": 3, "inputs": []}', b'{"inputs": [], "outputs": 1}',
     b'{"inputs": [], "parameters": []}', b'{"inputs": [], "parameters": {"timeout": -1}}',
     b'{"inputs": [], "parameters": {"binary_data_output": "yes"}}', b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_request(server: Running, body: bytes) -> None:
    status, _, answer = server.ask("POST", "/v2/models/tiny/infer", body)
    assert (status, list(answer)) == (400, ["error"])


def test_binary_tensors_both_ways(server: Running, rows: np.ndarray, logits: np.ndarray) -> None:
    body, length = binary_request(rows)
    status, headers, answer = server.ask(
        "POST", "/v2/models/tiny/versions/1/infer", body, Inference_Header_Content_Length=length
    )
    assert status == 200 and headers["content-type"] == "application/octet-stream"
    cut = int(headers["inference-header-content-length"])
    (output,) = json.loads(answer[:cut])["outputs"]
    assert output == {"name": "logits", "datatype": "FP32", "shape": [3, 7], "parameters": {"binary_data_size": 84}}
    np.testing.assert_allclose(np.frombuffer(answer[cut:], "<f4").reshape(3, 7), logits, rtol=1e-5, atol=1e-5)


def test_json_gives_what_binary_gives(server: Running, rows: np.ndarray, logits: np.ndarray) -> None:
    tensor = {**TENSOR, "shape": [3, 3, 32, 32], "data": rows.reshape(-1).tolist()}
    for wanted in ({}, {"outputs": [{"name": "logits"}]}):
        answer = server.ask("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [tensor], **wanted}).encode())[2]
        got = np.array(answer["outputs"][0]["data"], np.float32).reshape(3, 7)
        np.testing.assert_allclose(got, logits, rtol=1e-5, atol=1e-5)


def test_a_request_larger_than_the_largest_batch_is_split(
    server: Running, rows: np.ndarray, logits: np.ndarray
) -> None:
    body, length = binary_request(np.tile(rows, (9, 1, 1, 1)))
    answer = server.ask("POST", "/v2/models/tiny/infer", body, Inference_Header_Content_Length=length)[2]
    got = np.frombuffer(answer[-27 * 28 :], "<f4").reshape(27, 7)
    np.testing.assert_allclose(got, np.tile(logits, (9, 1)), rtol=1e-4, atol=1e-5)


def test_requested_outputs(server: Running, rows: np.ndarray) -> None:
    def ask(*outputs: dict[str, Any]) -> tuple[int, Any]:
        body = json.dumps({"inputs": [{**TENSOR, "data": ZEROS}], "outputs": outputs}).encode()
        status, headers, answer = server.ask("POST", "/v2/models/tiny/infer", body)
        cut = headers.get("inference-header-content-length")
        return status, json.loads(answer[: int(cut)]) if cut else answer

    assert ask({"name": "logits", "parameters": {"binary_data": True}})[1]["outputs"][0]["parameters"]
    status, answer = ask({"name": "logits", "parameters": {"classification": 2}})
    assert status == 200 and answer["outputs"][0]["datatype"] == "BYTES" and answer["outputs"][0]["shape"] == [1, 2]
    assert all(len(text.split(":")) == 3 for text in answer["outputs"][0]["data"])
    assert ask({"name": "logitz"}) == (400, {"error": "unknown output 'logitz'; did you mean logits?"})
    assert ask({"name": "logits"}, {"name": "logits"})[0] == 400
    assert ask({"name": "logits", "parameters": {"classification": -1}})[0] == 400
    assert ask({"name": "logits", "parameters": {"shared_memory_region": "a"}})[0] == 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compression_both_ways(server: Running, rows: np.ndarray, encoding: str) -> None:
    import zlib

    body, length = binary_request(rows)
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    sent = {"Inference_Header_Content_Length": length, "Content_Encoding": encoding}
    plain = server.ask("POST", "/v2/models/tiny/infer", packed, **sent)
    assert plain[0] == 200 and "content-encoding" not in plain[1]
    assert server.ask("POST", "/v2/models/tiny/infer", packed[:-5], **sent)[0] == 400
    both = server.ask("POST", "/v2/models/tiny/infer", packed, **sent, Accept_Encoding=encoding)
    assert both[1]["content-encoding"] == encoding
    assert (gzip.decompress if encoding == "gzip" else zlib.decompress)(both[2])[:400] == plain[2][:400]


def test_a_deadline_that_has_passed_is_504(server: Running, rows: np.ndarray) -> None:
    body, length = binary_request(np.tile(rows, (60, 1, 1, 1)), timeout=1)
    status, _, answer = server.ask("POST", "/v2/models/tiny/infer", body, Inference_Header_Content_Length=length)
    assert (status, list(answer)) == (504, ["error"])


def test_statistics_count(server: Running, rows: np.ndarray) -> None:
    def count() -> int:
        return server.ask("GET", "/v2/models/stats")[2]["model_stats"][0]["inference_count"]

    before = count()
    body, length = binary_request(rows)
    server.ask("POST", "/v2/models/tiny/infer", body, Inference_Header_Content_Length=length)
    assert count() == before + 3


# what: (change of the message, gRPC status, words)
CALLS: dict[str, tuple[dict[str, Any], str, str]] = {
    "raw": ({}, "OK", ""),
    "with version": ({"model_version": "1"}, "OK", ""),
    "unknown model": ({"model_name": "no"}, "NOT_FOUND", "tiny"),
    "unknown version": ({"model_version": "9"}, "NOT_FOUND", "version"),
    "too few bytes": ({"raw_input_contents": [bytes(8)]}, "INVALID_ARGUMENT", "8 bytes"),
    "two raw contents": ({"raw_input_contents": [bytes(8)] * 2}, "INVALID_ARGUMENT", "2 raw_input_contents"),
    "nothing": ({"raw_input_contents": [], "inputs": []}, "INVALID_ARGUMENT", "missing"),
    "typed contents": ({"raw_input_contents": [], "typed": ZEROS}, "OK", ""),
    "too few typed contents": ({"raw_input_contents": [], "typed": [0.0]}, "INVALID_ARGUMENT", "bytes"),
    "both": ({"typed": ZEROS}, "INVALID_ARGUMENT", "one of them"),
    "unknown output": ({"outputs": [{"name": "x"}]}, "INVALID_ARGUMENT", "logits"),
    "an output": ({"outputs": [{"name": "logits"}]}, "OK", ""),
}


@pytest.mark.parametrize("what", CALLS)
def test_grpc(server: Running, what: str) -> None:
    change, expected, words = CALLS[what]
    values: dict[str, Any] = {
        "model_name": "tiny",
        "id": "7",
        "inputs": [TENSOR],
        "raw_input_contents": [bytes(12288)],
        **change,
    }
    typed = values.pop("typed", None)
    message = message_classes()["ModelInferRequest"](**values)
    if typed is not None:
        message.inputs[0].contents.fp32_contents.extend(typed)
    with grpc.insecure_channel(server.grpc) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        if expected == "OK":
            answer = message_classes()["ModelInferResponse"].FromString(ask(message.SerializeToString()))
            assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "1", "7")
            assert len(answer.raw_output_contents[0]) == 28
            return
        with pytest.raises(grpc.RpcError) as error:
            ask(message.SerializeToString())
    assert error.value.code().name == expected and words in error.value.details()
