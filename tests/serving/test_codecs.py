"""Tensors and messages without a server."""

from __future__ import annotations

import asyncio
import json
import threading
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import read_manifest
from mlpdeploy.serving.failures import DeadlineError
from mlpdeploy.serving.options import ServeOptions
from mlpdeploy.serving.protocol import classify as classifying
from mlpdeploy.serving.protocol import http, limits, tensors
from mlpdeploy.serving.protocol.grpc_codec import parse_infer, parse_message
from mlpdeploy.serving.protocol.inference import Answer
from mlpdeploy.serving.protocol.keys import read_keys
from mlpdeploy.serving.protocol.limits import Budget, RefusedError
from mlpdeploy.serving.protocol.messages import message_classes
from mlpdeploy.serving.protocol.regions import Regions
from mlpdeploy.serving.protocol.rest import parse_json, parse_request, write_answer

NO_REGIONS = Regions(Budget())
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
        ("FP32", [2**62, 2**62, 0], []),
        ("FP33", [1], [1.0]),
        (None, [1], [1.0]),
        (["FP32"], [1], [1.0]),
        ("BYTES", [1], ["a"]),
    ],
)
def test_what_is_no_tensor_is_refused(datatype: object, shape: object, values: object) -> None:
    with pytest.raises(UsageError):
        tensors.array_from_values("x", datatype, shape, values)


@pytest.mark.parametrize("values", [["x" * 1000, *[0] * 100_000], [[0] * 100_000, ["x" * 1000] * 100_000]])
def test_strings_among_the_numbers_cost_no_memory(values: list[object]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UsageError):
            tensors.array_from_values("x", "FP32", [len(values)], values)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000  # numpy would take 4000 bytes for each
    finally:
        tracemalloc.stop()


def test_too_little_memory_for_the_numbers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def asarray(values: object) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(np, "asarray", asarray)
    with pytest.raises(UsageError, match="cannot be read"):
        tensors.array_from_values("x", "FP32", [1], [1.0])


def test_more_or_fewer_bytes_than_the_shape_needs_are_refused() -> None:
    for shape, size in (([2], 4), ([2], 12), ([2**62, 4], 16), ([2**62, 2**62, 0], 0), ([0], 4)):
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
        parse_request(b'{"inputs": []}', length, NO_REGIONS)


def test_binary_data_must_fill_the_body() -> None:
    def request(size: object) -> bytes:
        tensor = {"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": size}}
        return json.dumps({"inputs": [tensor]}).encode()

    for size, tail in ((4, bytes(3)), (4, bytes(5)), (3, bytes(3)), (-4, bytes(4)), (2**70, bytes(4)), ("4", bytes(4))):
        with pytest.raises(UsageError):
            parse_request(request(size) + tail, str(len(request(size))), NO_REGIONS)
    assert parse_request(request(4) + bytes(4), str(len(request(4))), NO_REGIONS).feeds["x"].tolist() == [0]


def test_each_input_has_its_own_binary_data() -> None:
    arrays = {"a": np.arange(2, dtype="<f4"), "b": np.full(1, 7, "<f4"), "c": np.full(3, 9, "<f4")}

    def tensor(name: str, **more: object) -> dict[str, object]:
        size = {"binary_data_size": arrays[name].nbytes}
        return {"name": name, "shape": list(arrays[name].shape), "datatype": "FP32", "parameters": size, **more}

    def feeds(*inputs: dict[str, object]) -> dict[str, np.ndarray]:
        head = json.dumps({"inputs": inputs}).encode()
        tail = b"".join(arrays[str(one["name"])].tobytes() for one in inputs)
        return parse_request(head + tail, str(len(head)), NO_REGIONS).feeds

    for name, array in feeds(*map(tensor, "abc")).items():
        np.testing.assert_array_equal(array, arrays[name])
    with pytest.raises(UsageError, match="input 'a' comes twice"):
        feeds(*map(tensor, "aba"))
    with pytest.raises(UsageError, match="input 'b' has data and binary_data_size; wanted one of them"):
        feeds(tensor("a"), tensor("b", data=[7.0]))


@pytest.mark.parametrize("whole", [True, False, None])
def test_the_request_says_what_is_binary_unless_an_output_does(whole: bool | None) -> None:
    outputs = [{"name": str(own), "parameters": {} if own is None else {"binary_data": own}} for own in (True, False)]
    parameters = {} if whole is None else {"binary_data_output": whole}
    body = {"inputs": [], "outputs": [*outputs, {"name": "none"}], "parameters": parameters}
    wanted = parse_request(json.dumps(body).encode(), None, NO_REGIONS).outputs
    assert wanted is not None
    assert {output.name: output.binary for output in wanted} == {"True": True, "False": False, "none": bool(whole)}


def test_json_without_finite_numbers_names_the_output() -> None:
    words = Answer("words", "BYTES", (1, 1), False, ["0.5:3"])
    logits = Answer("logits", "FP32", (1, 1), False, np.array([[np.nan]], np.float32))
    with pytest.raises(UsageError, match="'logits' has numbers that are not finite"):
        write_answer(SimpleNamespace(name="m", version="1"), "", [words, logits])  # type: ignore[arg-type]


@pytest.mark.parametrize("disposition", ['form-data; name="f"; filename="a.png"', "form-data; name=f; FileName=a.png"])
def test_the_file_of_a_form_has_a_file_name(disposition: str) -> None:
    parts = ['Content-Disposition: form-data; name="filename"\r\n\r\ntext',
             'X-filename: a\r\nContent-Disposition: form-data; name="b"\r\n\r\ntext',
             f"Content-Type: image/png\r\ncontent-disposition: {disposition}\r\n\r\npicture"]  # fmt: skip
    form = "".join(f"--x\r\n{part}\r\n" for part in parts) + "--x--\r\n"
    assert classifying.picture_in(form.encode(), "multipart/form-data; boundary=x") == b"picture"


@pytest.mark.parametrize("seconds", [0.2, 30.0])
def test_one_deadline_holds_for_decoding_and_inference(
    seconds: float, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that takes too long to decode is given up, and inference gets what is left."""
    left, ended = [], threading.Event()
    model = SimpleNamespace(
        name="m", version="1", manifest=read_manifest(exported), options=ServeOptions(timeout_ms=1000 * seconds)
    )

    async def infer(feeds: object, timeout: float | None = None) -> dict[str, np.ndarray]:
        left.append(timeout)
        return {"logits": np.zeros((1, 7), np.float32)}

    def decode(*arguments: object) -> np.ndarray:
        ended.wait(10 if seconds < 1 else 0.5)
        return np.zeros((3, 32, 32), np.float32)

    async def main() -> None:
        decoder = classifying.Decoder(4)
        try:
            await classifying.classify(model, decoder, b"", 1)  # type: ignore[arg-type]
        finally:
            ended.set()
            decoder.close()

    monkeypatch.setattr(model, "infer", infer, raising=False)
    monkeypatch.setattr(classifying, "_tensor", decode)
    if seconds < 1:
        with pytest.raises(DeadlineError, match=r"within 0\.2 s"):
            asyncio.run(main())
        assert not left
    else:
        asyncio.run(main())
        assert 25 < left[0] < 29.6


def test_keys_that_no_header_can_hold_are_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-good-key\nschlüssel-1\n", encoding="utf-8")
    with pytest.raises(UsageError, match="ASCII"):
        read_keys(tmp_path / "keys")


def test_spaces_around_a_key_are_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("  # two\n a-good-key \t\nanother-key\n")
    keys = read_keys(tmp_path / "keys")
    for key in ("a-good-key", "another-key"):
        keys.check(None, key)
    with pytest.raises(RefusedError):
        keys.check(None, "# two")


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
    "name",
    ["ModelInferRequest", "ModelInferResponse", "ModelStreamInferResponse", "ModelStatistics", "ModelConfig",
     "SystemSharedMemoryRegisterRequest", "SystemSharedMemoryStatusResponse"],
)  # fmt: skip
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
