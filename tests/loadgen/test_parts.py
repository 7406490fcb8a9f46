"""The parts of the load generator that need no server: addresses, arrivals, bytes, percentiles, verdicts."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format
from tritonclient.grpc import service_pb2

from mlpdeploy.errors import UsageError
from mlpdeploy.loadgen.arrivals import arrival_times, run_precisely
from mlpdeploy.loadgen.http import Connection
from mlpdeploy.loadgen.loops import NEVER_SENT, closed_loop, open_loop
from mlpdeploy.loadgen.options import Address, LoadOptions, parse_address
from mlpdeploy.loadgen.ramp import too_much
from mlpdeploy.loadgen.shared import Place, SharedInputs
from mlpdeploy.loadgen.step import Recorder, Step, step_from
from mlpdeploy.loadgen.target import RequestError, random_inputs, request_shape
from mlpdeploy.loadgen.wire import (
    ModelMetadata,
    TensorMetadata,
    grpc_index,
    grpc_metadata,
    grpc_register_request,
    grpc_request,
    grpc_shapes,
    grpc_unregister_request,
    rest_metadata,
    rest_request,
)


def test_a_connection_that_is_lost_before_it_is_used() -> None:
    connection = Connection()
    connection.connection_made(asyncio.Transport())
    connection.connection_lost(None)
    with pytest.raises(RequestError, match="connection closed"):
        asyncio.run(connection.ask(b"", 1.0))


class Wire(asyncio.Transport):
    """A transport that only knows whether it was closed."""

    closed = False

    def write(self, data: object) -> None:
        pass

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


async def answered(pieces: list[bytes], end: Exception | str | None = "open") -> tuple[int, bytes, bool]:
    """Return (status, body, whether the connection is open) of an answer that comes in pieces, and then the end."""
    connection, wire = Connection(), Wire()
    connection.connection_made(wire)
    asked = asyncio.ensure_future(connection.ask(b"", 0.2))
    await asyncio.sleep(0)
    for piece in pieces:
        connection.data_received(piece)
    if not isinstance(end, str):
        connection.connection_lost(end)
    answer = await asked
    return answer.status, answer.body, connection.is_open


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, b"ok", True)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, b"ok", False)),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", (200, b"ok", True)),
        (b"HTTP/1.1 200 OK\r\nConnection: Te, Close\r\nContent-Length: 2\r\n\r\nok", (200, b"ok", False)),
        (b"HTTP/1.1 103 Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, b"ok", True)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", (200, b"ok", True)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n", (200, b"ok", True)),
    ],
)
def test_answers(text: bytes, wanted: tuple[int, bytes, bool]) -> None:
    for cut in range(len(text)):
        assert asyncio.run(answered([text[:cut], text[cut:]])) == wanted
    for end in range(len(text)):
        with pytest.raises(RequestError, match="connection closed"):
            asyncio.run(answered([text[:end]], None))


def test_an_answer_that_ends_with_its_connection() -> None:
    pieces = [b"HTTP/1.1 200 OK\r\n\r\n", b"o", b"k"]
    assert asyncio.run(answered(pieces, None)) == (200, b"ok", False)
    with pytest.raises(RequestError, match="connection closed"):
        asyncio.run(answered(pieces, ConnectionResetError()))


def test_an_error_of_ours_ends_an_open_loop() -> None:
    class Broken:
        requests = (b"",)
        sent = 0

        async def connect(self, slots: int) -> None:
            pass

        async def send(self, slot: int, request: bytes, timeout_s: float) -> None:
            self.sent += 1
            if self.sent == 1:
                raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        asyncio.run(open_loop(Broken(), LoadOptions(duration_s=0.1, warmup_s=0.0), 100.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [None, 50.0])
def test_a_load_that_is_cancelled_leaves_nothing_behind(rate: float | None) -> None:
    """As Ctrl-C does it: the clients end, and no error of theirs is told later."""
    told: list[dict[str, object]] = []

    async def cancelled() -> int:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        target = Slow(0.05, 100.0)
        options = LoadOptions(clients=3, duration_s=60.0, warmup_s=0.0)
        load = closed_loop(target, options) if rate is None else open_loop(target, options, rate)  # type: ignore[arg-type]
        task = asyncio.ensure_future(load)
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(cancelled()) == 0
    gc.collect()
    assert told == []


class Slow:
    """A target that answers after `first_s` in the first `first_for_s` seconds, and after 2 ms then."""

    requests = (b"",)

    def __init__(self, first_s: float, first_for_s: float, fails: bool = False) -> None:
        self.first_s, self.first_for_s, self.fails = first_s, first_for_s, fails

    async def connect(self, slots: int) -> None:
        self.end = time.monotonic() + self.first_for_s

    async def send(self, slot: int, request: bytes, timeout_s: float) -> None:
        first = time.monotonic() < self.end
        await asyncio.sleep(self.first_s if first else 0.002)
        if first and self.fails:
            raise RequestError("HTTP 503")


def load_on(target: Slow, rate: float | None = None, **options: float) -> Step:
    """Return what a loop sees: an open one at a rate, otherwise a closed one."""
    chosen = LoadOptions(**{"clients": 2, "arrivals": "constant", **options})  # type: ignore[arg-type]
    run = closed_loop(target, chosen) if rate is None else open_loop(target, chosen, rate)  # type: ignore[arg-type]
    return asyncio.run(run)


@pytest.mark.parametrize("rate", [None, 100.0])
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_sent_in_the_warm_up_is_not_counted(rate: float | None, fails: bool) -> None:
    step = load_on(Slow(0.4, 0.45, fails), rate, warmup_s=1.0, duration_s=0.3)
    assert step.answered > 5 and not step.errors
    assert step.latency_ms["max"] < 350


@pytest.mark.parametrize("rate", [None, 50.0])
def test_answers_behind_the_measured_time_are_no_throughput(rate: float | None) -> None:
    step = load_on(Slow(0.4, 9.0), rate, warmup_s=0.0, duration_s=0.2)
    assert step.answered >= 2 and step.latency_ms["p50"] >= 400
    assert (step.throughput, step.rows_per_s) == (0.0, 0.0)


def test_a_request_that_waits_for_a_connection_for_too_long_is_not_sent() -> None:
    step = load_on(Slow(0.5, 0.1), 50.0, warmup_s=0.0, duration_s=0.4, connections=1, timeout_s=0.2)
    assert step.errors[NEVER_SENT] >= 10
    assert step.sent == step.answered + step.errors[NEVER_SENT] == 19


@pytest.mark.parametrize(
    ("url", "protocol", "wanted"),
    [
        ("localhost", None, Address("http", "localhost", 8000, False)),
        ("localhost:9", "grpc", Address("grpc", "localhost", 9, False)),
        ("https://host:1/", None, Address("http", "host", 1, True)),
        ("grpcs://host", "grpc", Address("grpc", "host", 8001, True)),
        ("grpc://[::1]:5", None, Address("grpc", "::1", 5, False)),
    ],
)
def test_addresses(url: str, protocol: str | None, wanted: Address) -> None:
    assert parse_address(url, protocol) == wanted
    assert Address("grpc", "::1", 5, False).authority == "[::1]:5"


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("http://host/v2/models/x", None),
        ("ftp://host", None),
        ("http://host", "grpc"),
        ("host:port", None),
        ("host", "htpp"),
        ("", None),
        ("http://user@host", None),
        ("httpss://host", None),
    ],
)
def test_addresses_that_are_none(url: str, protocol: str | None) -> None:
    with pytest.raises(UsageError):
        parse_address(url, protocol)


def test_arrivals() -> None:
    constant = list(arrival_times(100.0, "constant", 0.1, 0))
    assert constant == pytest.approx([0.01 * number for number in range(1, 10)])
    poisson = np.array(list(arrival_times(1000.0, "poisson", 20.0, 3)))
    assert len(poisson) == pytest.approx(20_000, rel=0.03)
    gaps = np.diff(poisson)
    assert gaps.min() > 0
    # Of the exponential distribution mean and standard deviation are the same.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert list(arrival_times(50.0, "poisson", 1.0, 3)) == list(arrival_times(50.0, "poisson", 1.0, 3))


def test_timers_are_finer_than_a_millisecond() -> None:
    async def sleep() -> list[float]:
        late = []
        for _ in range(60):
            due = time.monotonic() + 0.0013
            await asyncio.sleep(0.0013)
            late.append(time.monotonic() - due)
        return late

    # epoll alone would wake up 0.7 ms late at best.
    assert np.percentile(run_precisely(sleep()), 25) < 0.5e-3


def test_grpc_messages_are_those_of_an_independent_implementation() -> None:
    feeds = {"a": np.arange(600, dtype=np.float32).reshape(200, 3), "b": np.ones((200, 1), np.uint8)}
    message = service_pb2.ModelInferRequest.FromString(grpc_request("m" * 200, "3", feeds, ("x", "y")))
    assert (message.model_name, message.model_version) == ("m" * 200, "3")
    assert [(t.name, t.datatype, list(t.shape)) for t in message.inputs] == [
        ("a", "FP32", [200, 3]),
        ("b", "UINT8", [200, 1]),
    ]
    assert list(message.raw_input_contents) == [feeds["a"].tobytes(), feeds["b"].tobytes()]
    assert [output.name for output in message.outputs] == ["x", "y"]
    image = {"name": "input", "datatype": "FP16", "shape": [-1, 3, 1 << 40]}
    data = {"name": "n", "versions": ["1", "22"], "platform": "p", "inputs": [image, image], "outputs": [image]}
    encoded = json_format.ParseDict(data, service_pb2.ModelMetadataResponse()).SerializeToString()
    tensor = TensorMetadata("input", "FP16", (-1, 3, 1 << 40))
    assert grpc_metadata(encoded) == ModelMetadata("n", ("1", "22"), "p", (tensor, tensor), (tensor,))
    answer = json_format.ParseDict({"outputs": [image]}, service_pb2.ModelInferResponse())
    answer.parameters["p"].double_param = 0.5  # an eight-byte field on the way
    assert grpc_shapes(answer.SerializeToString()) == {"input": (-1, 3, 1 << 40)}
    index = json_format.ParseDict({"models": [{"name": "a"}, {"name": "b"}]}, service_pb2.RepositoryIndexResponse())
    assert grpc_index(index.SerializeToString()) == ["a", "b"]


def test_requests_say_where_in_shared_memory_their_inputs_are() -> None:
    feeds = {"a": np.arange(600, dtype=np.float32).reshape(200, 3), "b": np.ones((200, 1), np.uint8)}
    places = {"a": Place("r", 0, 2400), "b": Place("r", 2432, 200)}
    message = service_pb2.ModelInferRequest.FromString(grpc_request("m", "", feeds, ("x",), places))
    assert not message.raw_input_contents
    body, length = rest_request(feeds, ("x",), places)
    assert length == len(body)
    for tensor, rest in zip(message.inputs, json.loads(body)["inputs"], strict=True):
        place = places[tensor.name]
        assert tensor.parameters["shared_memory_region"].string_param == place.region
        assert tensor.parameters["shared_memory_offset"].int64_param == place.offset
        assert tensor.parameters["shared_memory_byte_size"].int64_param == place.byte_size
        assert list(rest["parameters"].values()) == ["r", place.offset, place.byte_size]
        assert (rest["name"], rest["datatype"], rest["shape"]) == (tensor.name, tensor.datatype, list(tensor.shape))
    asked = service_pb2.SystemSharedMemoryRegisterRequest.FromString(grpc_register_request("r", "k", 2632))
    assert (asked.name, asked.key, asked.offset, asked.byte_size) == ("r", "k", 0, 2632)
    forget = service_pb2.SystemSharedMemoryUnregisterRequest.FromString(grpc_unregister_request("r"))
    assert forget.name == "r"


def test_shared_memory_holds_every_input_and_is_given_back() -> None:
    before = set(os.listdir("/dev/shm"))
    feeds = [{"a": np.arange(5, dtype=np.float32) + at, "b": np.full(70, at, np.uint8)} for at in range(3)]
    shared = SharedInputs(feeds)
    data = (Path("/dev/shm") / shared.key).read_bytes()
    assert len(data) >= shared.byte_size
    for feed, places in zip(feeds, shared, strict=True):
        for name, array in feed.items():
            place = places[name]
            assert data[place.offset : place.offset + place.byte_size] == array.tobytes()
            assert place.region == shared.key
    shared.close()
    shared.close()
    assert set(os.listdir("/dev/shm")) == before


def test_a_picture_is_not_left_in_shared_memory() -> None:
    with pytest.raises(UsageError, match="a picture in shared memory"):
        LoadOptions(image=Path("a.jpg"), shared_memory=True).check()


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\x05ab", b"\x0b", b"\xff" * 11, b"\x08\x01", b"\x22\x02\x0a\x09"])
def test_messages_that_are_none(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"message|number"):
        grpc_metadata(message)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"name": 1, "inputs": 3, "outputs": []}', b"[" * 100_000])
def test_metadata_that_is_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"Error|Expecting"):
        rest_metadata(body)


def test_inputs() -> None:
    specs = (TensorMetadata("x", "FP16", (-1, 3, -1, -1)), TensorMetadata("y", "INT8", (2, 4)))
    options = LoadOptions(rows=2, height_width=(5, 6))
    feeds = random_inputs(ModelMetadata("m", (), "", specs, ()), options)
    assert {(f["x"].shape, f["x"].dtype.name, f["y"].shape, f["y"].dtype.name) for f in feeds} == {
        ((2, 3, 5, 6), "float16", (2, 4), "int8")
    }
    assert len({f["x"].tobytes() for f in feeds}) == len(feeds)
    with pytest.raises(UsageError, match="BYTES"):
        random_inputs(ModelMetadata("m", (), "", (TensorMetadata("t", "BYTES", (-1,)),), ()), options)
    with pytest.raises(UsageError, match="open axes"):
        request_shape(TensorMetadata("x", "FP32", (-1, -1)), options)


def test_percentiles_are_samples() -> None:
    recorder = Recorder(completed=50)
    recorder.latencies.extend(number / 1000 for number in range(1, 1001))
    recorder.errors["HTTP 503"] = 3
    step = step_from(recorder, mode="open", seconds=10.0, rows=4, busy=0.1, rate=100.0)
    assert step.latency_ms == {"p50": 500, "p90": 900, "p95": 950, "p99": 990, "p99.9": 999, "mean": 500.5, "max": 1000}
    assert (step.sent, step.answered, step.failed) == (1003, 1000, 3)
    assert (step.throughput, step.rows_per_s) == (5.0, 20.0)
    assert step.curve_ms[-1][0] <= 99.9
    nothing = step_from(Recorder(), mode="open", seconds=1.0, rows=1, busy=0.0)
    assert (nothing.latency_ms, nothing.curve_ms) == ({}, ())
    assert [note.partition(":")[0] for note in nothing.notes] == ["no request fell into the measured time"]


def a_step(**changes: object) -> Step:
    recorder = Recorder(completed=1000)
    recorder.latencies.extend([0.01] * 1000)
    step = step_from(recorder, mode="open", seconds=10.0, rows=1, busy=0.1, rate=100.0)
    return dataclasses.replace(step, **changes)  # type: ignore[arg-type]


def test_verdicts() -> None:
    assert too_much(a_step(), 20.0, 0.01) == ""
    assert "p99 10.0 ms is above 5.0 ms" in too_much(a_step(), 5.0, 0.01)
    assert "2.0 % failed (HTTP 429)" in too_much(a_step(errors={"HTTP 429": 20}), 20.0, 0.01)
    assert too_much(step_from(Recorder(), mode="open", seconds=1.0, rows=1, busy=0.0), 20.0, 0.01)
    assert "answered in time" in too_much(a_step(throughput=90.0), 20.0, 0.01)


def test_notes_about_the_generator() -> None:
    assert a_step().notes == []
    assert "busy 97 %" in a_step(generator_busy=0.97).notes[0]
    assert "1.6 ms late" in a_step(late_p99_ms=1.6).notes[0]
    assert a_step(late_p99_ms=0.9).notes == []
    assert a_step(late_p99_ms=9.0, latency_ms={"p50": 100.0}).notes == []
    assert "11.0 ms late" in a_step(late_p99_ms=11.0, latency_ms={"p50": 100.0}).notes[0]
    assert "5 requests found all connections" in a_step(without_connection=5).notes[0]
