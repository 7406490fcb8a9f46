"""Tensors and messages without a server."""

from __future__ import annotations

import json
import tracemalloc
import zlib

import numpy as np
import pytest

from mlpdeploy.errors import UsageError
from mlpdeploy.serving.protocol import http, limits, tensors
from mlpdeploy.serving.protocol.grpc_codec import parse_infer, parse_message
from mlpdeploy.serving.protocol.limits import Budget, RefusedError
from mlpdeploy.serving.protocol.messages import message_classes
from mlpdeploy.serving.protocol.rest import parse_json, parse_request

service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2", reason="tritonclient is not installed")


@pytest.mark.parametrize("datatype", sorted(tensors.DATATYPES))
def test_every_datatype_goes_and_comes_back(datatype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]], tensors.DATATYPES[datatype])
    raw = tensors.bytes_of(array)
    again = tensors.array_from_bytes("x", datatype, [2, 3], raw)
    assert np.array_equal(again, array) and again.dtype == array.dtype
    assert np.array_equal(tensors.array_from_values("x", datatype, [2, 3], array.tolist()), array)
    assert tensors.datatype_of(array.dtype.name) == datatype


def test_bytes_are_viewed_and_not_copied() -> None:
    data = bytearray(np.arange(6, dtype="<f4").tobytes())
    array = tensors.array_from_bytes("x", "FP32", [6], memoryview(data))
    data[:4] = np.float32(9).tobytes()
    assert array[0] == 9
    assert np.shares_memory(np.frombuffer(tensors.bytes_of(array), np.uint8), array)


@pytest.mark.parametrize(
    ("datatype", "shape", "values"),
    [
        ("FP32", [2], [1.0]),
        ("FP32", [2], [1.0, "a"]),
        ("FP32", [2], [[1.0], [2.0, 3.0]]),
        ("FP32", [1], [None]),
        ("FP32", [1], {"a": 1}),
        ("FP32", [1], "1"),
        ("FP32", [1], [True]),
        ("INT8", [1], [128]),
        ("UINT8", [1], [-1]),
        ("INT64", [1], [1.5]),
        ("INT64", [1], [10**30]),
        ("BOOL", [1], [1]),
        ("FP32", [-1], []),
        ("FP32", [1.0], [1.0]),
        ("FP32", [True], [1.0]),
        ("FP32", "1", [1.0]),
        ("FP32", [1] * 17, [1.0]),
        ("FP32", [2**62, 2**62], [1.0]),
        ("FP33", [1], [1.0]),
        (None, [1], [1.0]),
        (["FP32"], [1], [1.0]),
        ("BYTES", [1], ["a"]),
    ],
)
def test_what_is_no_tensor_is_refused(datatype: object, shape: object, values: object) -> None:
    with pytest.raises(UsageError):
        tensors.array_from_values("x", datatype, shape, values)


def test_more_or_fewer_bytes_than_the_shape_needs_are_refused() -> None:
    for shape, size in (([2], 4), ([2], 12), ([2**62, 4], 16), ([0], 4)):
        with pytest.raises(UsageError, match="bytes"):
            tensors.array_from_bytes("x", "FP32", shape, bytes(size))


def test_deep_and_long_json_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError):
        parse_json(b"[" * 200_000)
    with pytest.raises(UsageError):
        parse_json(b"1" * 10_000)
    monkeypatch.setattr("mlpdeploy.serving.protocol.rest.MAX_JSON_BYTES", 10)
    with pytest.raises(RefusedError) as error:
        parse_json(b"           ")
    assert error.value.status == 413


@pytest.mark.parametrize("length", ["-1", "x", "", "1e3", "99999999999999999999", "1000", "²"])
def test_a_wrong_length_of_the_json_is_refused(length: str) -> None:
    with pytest.raises(UsageError, match="Inference-Header-Content-Length"):
        parse_request(b'{"inputs": []}', length)


def test_binary_data_must_fill_the_body() -> None:
    def request(size: object) -> bytes:
        tensor = {"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": size}}
        return json.dumps({"inputs": [tensor]}).encode()

    for size, tail in ((4, bytes(3)), (4, bytes(5)), (3, bytes(3)), (-4, bytes(4)), (2**70, bytes(4)), ("4", bytes(4))):
        with pytest.raises(UsageError):
            parse_request(request(size) + tail, str(len(request(size))))
    assert parse_request(request(4) + bytes(4), str(len(request(4)))).feeds["x"].tolist() == [0]


def test_a_compressed_body_is_never_unpacked_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_BODY_BYTES", 1000)
    for size, fine in ((1000, True), (1001, False), (10_000_000, False)):
        packed = zlib.compress(bytes(size))
        if fine:
            assert http.decompress(packed, "deflate") == bytes(size)
        else:
            tracemalloc.start()
            with pytest.raises(RefusedError):
                http.decompress(packed, "deflate")
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 200_000
    for damaged in (packed[:-4], b"no", zlib.compress(b"a") + b"more"):
        with pytest.raises((UsageError, RefusedError)):
            http.decompress(damaged, "deflate")


def test_the_budget_is_kept() -> None:
    budget = Budget(10)
    assert budget.take(6) and not budget.take(5) and budget.take(4)
    budget.give(6)
    assert budget.take(6)


def test_every_time_limit_grows_with_the_body() -> None:
    assert limits.body_seconds(0) == limits.BODY_SECONDS < limits.body_seconds(1 << 20)


@pytest.mark.parametrize(
    "name", ["ModelInferRequest", "ModelInferResponse", "ModelStreamInferResponse", "ModelStatistics", "ModelConfig"]
)
def test_the_messages_have_the_field_numbers_of_tritons(name: str) -> None:
    from tritonclient.grpc import model_config_pb2

    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    compare(message_classes()[name].DESCRIPTOR, theirs[name])


def compare(ours: object, theirs: object) -> None:
    """Every field of ours must be one of theirs, with its number and type; enumerations are integers on the wire."""
    for field in ours.fields:  # type: ignore[attr-defined]
        other = theirs.fields_by_name[field.name]  # type: ignore[attr-defined]
        kind = field.TYPE_INT32 if other.type == other.TYPE_ENUM else other.type
        assert (field.number, field.type, field.is_repeated) == (other.number, kind, other.is_repeated), field.full_name
        if field.message_type is not None:
            compare(field.message_type, other.message_type)


def messages_of_every_sort() -> list[bytes]:
    """ModelInferRequests with large raw contents: whole, in another order, with unknown fields, cut off, nonsense."""
    kind = message_classes()["ModelInferRequest"]
    message = kind(model_name="m", id="i", raw_input_contents=[bytes(range(256)) * 300, b"", b"x" * 70_000])
    message.inputs.add(name="a", datatype="FP32", shape=[3, 4])
    whole = bytes(message.SerializeToString())
    turned = bytes(kind(raw_input_contents=[b"y" * 70_000]).SerializeToString()) + whole
    unknown = whole + b"\x82\x01\x03abc"  # field 16
    number = whole + b"\x78\x04" + b"\x3a\x02hi"  # field 15 is 4, which is no length; then raw contents
    many = whole + 100 * b"\x3a\x01z"  # more fields than are looked at
    tags = [b"\x3a", b"\x3a\x80", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\xff" * 12, b"\x00", b"\x3b"]
    damaged = [whole[:-1], whole[:40], *(whole + tag for tag in tags)]
    return [whole, turned, unknown, number, many, *damaged]


@pytest.mark.parametrize("data", messages_of_every_sort())
def test_raw_contents_are_split_off_as_protobuf_reads_them(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpdeploy.serving.protocol.grpc_codec._SPLIT_BYTES", 0)
    try:
        expected = parse_message("ModelInferRequest", data)
    except UsageError:
        with pytest.raises(UsageError):
            parse_infer(data)
        return
    message, raw = parse_infer(data)
    assert [bytes(content) for content in raw] == list(expected.raw_input_contents)
    for one in (message, expected):
        one.ClearField("raw_input_contents")
    assert message == expected


def test_large_raw_contents_are_viewed_and_not_copied() -> None:
    data = messages_of_every_sort()[0]
    assert all(content.obj is data for content in parse_infer(data)[1])
