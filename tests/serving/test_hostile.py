"""Clients that mean harm, or are broken: they get 4xx, and everybody else goes on being served."""

from __future__ import annotations

import contextlib
import gzip
import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from running import Running, binary_request, running

from mlpdeploy.serving.protocol.limits import MAX_BODY_BYTES, MAX_HEADER_BYTES
from mlpdeploy.serving.protocol.messages import SERVICE, message_classes

MEGABYTE = 1 << 20
# A server with other limits.
LIMITED = """
import sys, mlpdeploy.serving.protocol.limits as limits
{changes}
from mlpdeploy.cli import main
main(sys.argv[1:], prog_name="mlpdeploy")
"""


@contextlib.contextmanager
def connected(server: Running, data: bytes) -> Iterator[socket.socket]:
    """A connection over which bytes were sent."""
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as connection:
        connection.sendall(data)
        yield connection


def raw(server: Running, data: bytes) -> bytes:
    """Return what comes back for bytes, until the server closes or has answered once."""
    with connected(server, data) as connection:
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while b"}" not in answer and (piece := connection.recv(65536)):
                answer += piece
        return answer


def resident_bytes(server: Running) -> int:
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(text.partition("VmRSS:")[2].split()[0])


@pytest.fixture(autouse=True)
def _still_alive(server: Running) -> Iterator[None]:
    yield
    assert server.alive()
    assert "Traceback" not in server.stderr.read_text()


POST = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, b"400"),  # TLS to a port without
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"4"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"GET \xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET  HTTP/1.1\r\n\r\n", b"400"),
        (b"GARBAGE\r\n\r\n", b"400"),
        (POST + b"Content-Length: -5\r\n\r\n", b"400"),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345", b"400"),
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (POST + b"Content-Length: 99999999999999999999999999\r\n\r\n", b"400"),
        (POST + b"Content-Length: 9000000000000\r\n\r\n", b"413"),
        (POST + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), b"413"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (POST + b"Content-Encoding: br\r\nContent-Length: 1\r\n\r\n1", b"415"),
        (POST + b"X: " + b"a" * (2 * MAX_HEADER_BYTES) + b"\r\n\r\n", b"400"),
        (POST + b"X: a\r\n" * MAX_HEADER_BYTES + b"\r\n", b"400"),
        (b"GET /" + b"a" * (2 * MAX_HEADER_BYTES) + b" HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /%00%0a%ff HTTP/1.1\r\nHost: a\r\n\r\n", b"404"),
    ],
)
def test_bytes_that_are_no_proper_request(server: Running, data: bytes, status: bytes) -> None:
    answer = raw(server, data)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    assert b'{"error": ' in answer


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e", ".", "..", "tiny%2f..", "tiny%00", "%ff", "a" * 5000,
     "tiny%0d%0aX-Evil:%201", "~root", "C:%5cwindows", "$(id)", "%7b%7b7*7%7d%7d"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["/v2/models/{}", "/v2/models/{}/infer", "/v2/models/tiny/versions/{}", "/{}"])
def test_tricks_in_names_and_paths(server: Running, name: str, form: str) -> None:
    method = "POST" if form.endswith("infer") else "GET"
    status, headers, answer = server.ask(method, form.format(name))
    assert status == 404 and list(answer) == ["error"] and "x-evil" not in headers
    assert len(answer["error"]) < 1000


def test_an_endless_chunked_body_is_cut_off(server: Running) -> None:
    before = resident_bytes(server)
    with connected(server, POST + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        chunk = b"%x\r\n" % MEGABYTE + bytes(MEGABYTE) + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(MAX_BODY_BYTES // MEGABYTE + 20):
                connection.sendall(chunk)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
    assert resident_bytes(server) < before + 3 * MAX_BODY_BYTES


def test_bodies_that_are_announced_and_never_come_cost_nothing(server: Running) -> None:
    before = resident_bytes(server)
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(connected(server, POST + b"Content-Length: %d\r\n\r\n" % MAX_BODY_BYTES))
        body, length = binary_request(np.zeros((12, 3, 32, 32), np.float32))
        status, _, answer = server.ask("POST", "/v2/models/tiny/infer", body, Inference_Header_Content_Length=length)
        assert status == 200, answer
        assert resident_bytes(server) < before + 100 * MEGABYTE


def test_uploads_beyond_the_budget_are_refused_and_the_budget_comes_back(exported: Path, tmp_path: Path) -> None:
    script = tmp_path / "small.py"
    script.write_text(LIMITED.format(changes="limits.Budget.__init__.__defaults__ = (300_000, 0)"))
    body, length = binary_request(np.zeros((12, 3, 32, 32), np.float32))  # 147 kB
    head = POST + f"Inference-Header-Content-Length: {length}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with running(tmp_path, f"tiny={exported}", program=[script]) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(connected(server, head + body[:-1]))
            time.sleep(0.3)
            status, headers, answer = server.ask(
                "POST", "/v2/models/tiny/infer", body, Inference_Header_Content_Length=length
            )
            assert status == 503 and "uploaded" in answer["error"] and headers["retry-after"]
        time.sleep(0.3)
        for _ in range(5):
            assert raw(server, head + body).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_zip_bomb(server: Running, encoding: str) -> None:
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(MEGABYTE)) for _ in range(2 * MAX_BODY_BYTES // MEGABYTE)) + packer.flush()
    assert len(bomb) < MEGABYTE
    before = resident_bytes(server)
    status, _, answer = server.ask("POST", "/v2/models/tiny/infer", bomb, Content_Encoding=encoding)
    assert status == 413 and "decompressed" in answer["error"]
    assert resident_bytes(server) < before + 3 * MAX_BODY_BYTES


def png(width: int, height: int, data: bytes) -> bytes:
    """Return a PNG that says it has so many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_image_bombs(server: Running) -> None:
    before = resident_bytes(server)
    for width, height in (
        (50_000, 50_000),
        (2**31 - 1, 2**31 - 1),
        (0, 0),
        (30_000_000, 1),
        (1, 30_000_000),
        (6000, 5000),
    ):
        status, _, answer = server.ask("POST", "/v1/classify", png(width, height, zlib.compress(bytes(1000))))
        assert status == 400 and answer["error"]
    assert resident_bytes(server) < before + 300 * MEGABYTE


def picture(kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(data, kind)
    return data.getvalue()


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "image/png", 400),
        (b"no picture", "image/png", 400),
        (picture()[:-30], "image/png", 400),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "application/postscript", 415),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "image/x-eps", 400),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 400),
        (picture(), "application/json", 415),
        (picture(), "text/html", 415),
        (picture(), "multipart/form-data", 400),
        (picture(), "multipart/form-data; boundary=" + "a" * 100, 400),
        (picture(), "multipart/form-data; boundary=x", 400),
        (b"--x\r\n" * 1000 + b"--x--\r\n", "multipart/form-data; boundary=x", 400),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n" * 9 + b"--x--", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n" + b"A: " + b"b" * 100_000, "multipart/form-data; boundary=x", 400),
    ],
)  # fmt: skip
def test_pictures_and_forms_that_are_none(server: Running, body: bytes, content_type: str, status: int) -> None:
    got, _, answer = server.ask("POST", "/v1/classify", body, Content_Type=content_type)
    assert got == status and list(answer) == ["error"]


@pytest.mark.parametrize(
    "query", ["top=0", "top=-1", "top=x", "top=1e3", "top=99999999999", "tops=1", "top=1&top=2", "=", "top=%ff"]
)
def test_queries(server: Running, query: str) -> None:
    status, _, answer = server.ask("POST", f"/v1/classify?{query}", picture())
    assert status == 400 and list(answer) == ["error"]


def test_pictures_that_are_fine(server: Running) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + picture() + b"\r\n--x--\r\n"
    plain = server.ask("POST", "/v1/classify?top=2", picture())[2]
    assert [len(plain["classes"]), plain["model"], plain["random_weights"]] == [2, "tiny", True]
    for body, kind in (
        (picture(), "image/png"),
        (picture(), "application/octet-stream"),
        (form, "multipart/form-data; boundary=x"),
        (gzip.compress(picture()), "image/png"),
    ):
        encoding = {"Content_Encoding": "gzip"} if body[:2] == b"\x1f\x8b" else {}
        answer = server.ask("POST", "/v1/classify?top=2&model=tiny", body, Content_Type=kind, **encoding)[2]
        assert [c["index"] for c in answer["classes"]] == [c["index"] for c in plain["classes"]]
    assert server.ask("POST", "/v1/classify?model=other", picture())[0] == 404


def test_a_client_that_goes_away_leaves_nothing_behind(server: Running) -> None:
    body, length = binary_request(np.zeros((64, 3, 32, 32), np.float32))
    head = POST + f"Inference-Header-Content-Length: {length}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for part in (head[:30], head, head + body[: len(body) // 2], head + body):
        for _ in range(5):
            with connected(server, part):
                pass
    time.sleep(0.5)
    stats = server.ask("GET", "/metrics")[2].decode()
    assert "mlpdeploy_queued_rows{" in stats
    assert all(line.endswith(" 0.0") for line in stats.splitlines() if line.startswith("mlpdeploy_queued_rows{"))


def test_requests_one_behind_the_other_on_a_connection(server: Running) -> None:
    body, length = binary_request(np.zeros((12, 3, 32, 32), np.float32))
    one = POST + f"Inference-Header-Content-Length: {length}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with connected(
        server, one * 5 + b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    ) as connection:
        answer = b""
        while piece := connection.recv(1 << 20):
            answer += piece
    assert answer.count(b"HTTP/1.1 200 OK") == 6


def test_slow_clients_are_let_go(exported: Path, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    changes = "limits.HEADER_SECONDS = limits.BODY_SECONDS = 0.5; limits.BODY_BYTES_PER_SECOND = 1 << 30"
    script.write_text(LIMITED.format(changes=changes))
    with running(tmp_path, f"tiny={exported}", program=[script]) as server:
        cases = {
            b"": b"",
            b"GET / HT": b"",
            POST + b"Content-Length: 10\r\n\r\n{": b"HTTP/1.1 408",
            POST + b"Content-Length: 1000000\r\n\r\n{": b"HTTP/1.1 408",
            POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n": b"HTTP/1.1 408",
        }
        with contextlib.ExitStack() as stack:
            waiting = [(stack.enter_context(connected(server, sent)), wanted) for sent, wanted in cases.items()]
            started = time.monotonic()
            for connection, wanted in waiting:
                assert connection.recv(100).startswith(wanted)
                with contextlib.suppress(ConnectionError):
                    while connection.recv(1000):
                        pass
            assert time.monotonic() - started < 10
        assert server.alive()


def infer_by_grpc(server: Running, x: np.ndarray) -> grpc.StatusCode:
    """Return how one call ends."""
    message = message_classes()["ModelInferRequest"](model_name="tiny", raw_input_contents=[x.tobytes()])
    message.inputs.add(name="input", datatype="FP32", shape=x.shape)
    with grpc.insecure_channel(server.grpc) as channel:
        try:
            channel.unary_unary(f"/{SERVICE}/ModelInfer")(message.SerializeToString(), timeout=20)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_rest_and_grpc_share_one_budget(exported: Path, tmp_path: Path) -> None:
    script = tmp_path / "small.py"
    script.write_text(LIMITED.format(changes="limits.Budget.__init__.__defaults__ = (300_000, 0)"))
    x = np.zeros((12, 3, 32, 32), np.float32)
    body, length = binary_request(x)  # 147 kB
    head = POST + f"Inference-Header-Content-Length: {length}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with running(tmp_path, f"tiny={exported}", program=[script]) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(connected(server, head + body[:-1]))
            time.sleep(0.3)
            assert infer_by_grpc(server, x) is grpc.StatusCode.UNAVAILABLE
        time.sleep(0.3)
        for _ in range(5):  # what a call took comes back
            assert infer_by_grpc(server, x) is grpc.StatusCode.OK
        assert infer_by_grpc(server, np.zeros((30, 3, 32, 32), np.float32)) is grpc.StatusCode.UNAVAILABLE
        assert server.ask("POST", "/v2/models/tiny/infer", body, Inference_Header_Content_Length=length)[0] == 200
        metrics = server.ask("GET", "/metrics")[2].decode()
    assert 'mlpdeploy_requests_total{method="ModelInfer",protocol="grpc",status="UNAVAILABLE"} 2.0' in metrics


def test_grpc_messages_that_never_come_hold_nobody_up(exported: Path, tmp_path: Path) -> None:
    """More calls than are read at once announce a message and wait: others are read all the same, and these ended."""
    script = tmp_path / "few.py"
    changes = "limits.MAX_READS = limits.MAX_STREAMS = 2; limits.READ_SECONDS = 0.5"
    script.write_text(LIMITED.format(changes=changes))
    x = np.zeros((1, 3, 32, 32), np.float32)
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait()
        yield from ()

    with running(tmp_path, f"tiny={exported}", program=[script]) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            ask = channel.stream_unary(f"/{SERVICE}/ModelInfer")
            calls = [ask.future(nothing(), timeout=30) for _ in range(4)]
            time.sleep(0.3)
            started = time.monotonic()
            assert infer_by_grpc(server, x) is grpc.StatusCode.OK
            assert 0.1 < time.monotonic() - started < 10
            codes = [call.code() for call in calls if call.done()]
            assert len(codes) >= 2 and set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}
            assert all("in time" in call.details() for call in calls if call.done())
            # Streams may wait for as long as they like; there are only so many.
            stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
            streams = [stream(nothing(), timeout=30) for _ in range(3)]
            time.sleep(1.5)
            assert infer_by_grpc(server, x) is grpc.StatusCode.OK
            assert [stream.code() for stream in streams if stream.done()] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
            ended.set()
        with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError, match="no message"):
            channel.stream_unary(f"/{SERVICE}/ModelInfer")(iter(()), timeout=20)
        assert "Traceback" not in server.stderr.read_text()


def test_callers_without_a_key_hold_nobody_up(exported: Path, tmp_path: Path) -> None:
    """They are refused before anything is read; and health, which they may ask for, never waits to be read."""
    script, keys = tmp_path / "few.py", tmp_path / "keys"
    script.write_text(LIMITED.format(changes="limits.MAX_READS = 2; limits.READ_SECONDS = 60"))
    keys.write_text("a-good-key\n")
    ended = threading.Event()
    metadata = (("x-api-key", "a-good-key"),)

    def nothing() -> Iterator[bytes]:
        ended.wait()
        yield from ()

    with (
        running(tmp_path, f"tiny={exported}", "--api-key-file", keys, program=[script]) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        calls = {name: channel.stream_unary(f"/{SERVICE}/{name}") for name in ("ModelMetadata", "ServerLive")}
        try:
            refused = [calls["ModelMetadata"].future(nothing(), timeout=20) for _ in range(8)]
            assert {call.code() for call in refused} == {grpc.StatusCode.UNAUTHENTICATED}
            reading = [calls["ModelMetadata"].future(nothing(), timeout=20, metadata=metadata) for _ in range(2)]
            time.sleep(0.3)
            live = message_classes()["ServerLiveResponse"](live=True)
            assert calls["ServerLive"](iter((b"",)), timeout=5) == live.SerializeToString()
            assert not any(call.done() for call in reading)
        finally:
            ended.set()
        assert {call.code() for call in reading} == {grpc.StatusCode.INVALID_ARGUMENT}  # no message
        count = 'mlpdeploy_requests_total{method="ModelMetadata",protocol="grpc",status="UNAUTHENTICATED"} 8.0'
        assert count in server.ask("GET", "/metrics", X_API_Key="a-good-key")[2].decode()


def test_what_a_stream_took_comes_back(exported: Path, tmp_path: Path) -> None:
    """Its messages out of the budget of all bodies, and its place among the streams."""
    script = tmp_path / "small.py"
    changes = "limits.Budget.__init__.__defaults__ = (300_000, 0); limits.MAX_STREAMS = 2"
    script.write_text(LIMITED.format(changes=changes))
    x = np.zeros((12, 3, 32, 32), np.float32)  # 147 kB
    message = message_classes()["ModelInferRequest"](model_name="tiny", raw_input_contents=[x.tobytes()])
    message.inputs.add(name="input", datatype="FP32", shape=x.shape)
    reply = message_classes()["ModelStreamInferResponse"]
    with (
        running(tmp_path, f"tiny={exported}", program=[script]) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        for _ in range(4):
            answers = list(map(reply.FromString, stream(iter([message.SerializeToString()] * 2), timeout=20)))
            assert [answer.error_message for answer in answers] == ["", ""]


def test_a_slow_grpc_message_is_waited_for_while_nobody_else_waits(exported: Path, tmp_path: Path) -> None:
    script = tmp_path / "impatient.py"
    script.write_text(LIMITED.format(changes="limits.READ_SECONDS = 0.2"))
    message = message_classes()["Named"](name="tiny").SerializeToString()

    def slowly() -> Iterator[bytes]:
        time.sleep(1.0)
        yield message

    with (
        running(tmp_path, f"tiny={exported}", program=[script]) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        assert b"logits" in channel.stream_unary(f"/{SERVICE}/ModelMetadata")(slowly(), timeout=20)
