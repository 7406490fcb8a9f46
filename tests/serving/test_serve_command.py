"""`mlpdeploy serve` as a program: addresses, keys, TLS, logs, reload, the end."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from running import Running, binary_request, running

from mlpdeploy.cli import main
from mlpdeploy.serving.protocol.keys import Keys, read_keys
from mlpdeploy.serving.protocol.limits import RefusedError
from mlpdeploy.serving.protocol.messages import SERVICE, message_classes


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def test_it_listens_on_this_machine_only(server: Running) -> None:
    tables = [Path(f"/proc/{server.process.pid}/net/{name}") for name in ("tcp", "tcp6")]
    listening = [line for table in tables for line in table.read_text().splitlines()[1:]]
    ports = {f"{port:04X}" for port in (server.http_port, int(server.grpc.rpartition(":")[2]))}
    found = {line.split()[1] for line in listening if line.split()[1][-4:] in ports and line.split()[3] == "0A"}
    assert len(found) == 2 and all(address[:-5].endswith("0100007F") for address in found)


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port"])
def test_a_port_that_is_taken_is_one_sentence(exported: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        other = "--grpc-port" if option == "--http-port" else "--http-port"
        command = [sys.executable, "-m", "mlpdeploy", "serve", str(exported), option, port, other, "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"mlpdeploy: port {port} on 127.0.0.1") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--timeout-ms", "0"], "timeout_ms is 0"),
        (["--tls-cert", "a.pem"], "only one of tls_cert and tls_key"),
        (["--tls-cert", "a.pem", "--tls-key", "b.pem"], "cannot be used"),
        (["--api-key-file", "missing"], "missing cannot be read"),
        (["--access-log", "log", "--no-access-log"], "one of them"),
        (["--access-log", "no/where/log"], "cannot be written"),
        (["--watch-seconds", "-1"], "watch-seconds is -1"),
    ],
)
def test_wrong_options_end_at_once(
    exported: Path, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["serve", str(exported), *arguments])
    assert result.exit_code == 2 and words in result.output and "Traceback" not in result.output


def test_keys_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# two keys\nfirst-key-1\n\nsecond-key\n")
    keys = read_keys(path)
    keys.check("Bearer first-key-1", None)
    keys.check("bearer second-key", "wrong")
    keys.check(None, "second-key")
    Keys().check_if_needed({})
    for authorization, api_key in ((None, None), ("Bearer ", ""), ("Basic first-key-1", None), ("Bearer first", None)):
        with pytest.raises(RefusedError) as error:
            keys.check(authorization, api_key)
        assert error.value.status == 401
    for text in ("", "# nothing\n", "short\n"):
        path.write_text(text)
        with pytest.raises(Exception, match="openssl rand"):
            read_keys(path)


def test_with_a_key_only_health_and_the_page_are_open(exported: Path, tmp_path: Path) -> None:
    key = "0123456789abcdef"
    (tmp_path / "keys").write_text(key + "\n")
    call = message_classes()["Named"](name="tiny").SerializeToString()
    with running(tmp_path, f"tiny={exported}", "--api-key-file", tmp_path / "keys") as server:
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/page.js", "/docs", "/openapi.json"):
            assert server.ask("GET", path)[0] == 200
        for path in ("/v2", "/v2/models/tiny", "/v2/models/none", "/metrics", "/v1/recent"):
            status, headers, body = server.ask("GET", path)
            assert (status, headers["www-authenticate"], list(body)) == (401, "Bearer", ["error"])
            assert server.ask("GET", path, X_API_Key="wrong")[0] == 401
            assert server.ask("GET", path, Authorization=f"Bearer {key}")[0] == (404 if "none" in path else 200)
        assert server.ask("POST", "/v1/classify", b"x")[0] == 401
        body, length = binary_request(np.zeros((20, 3, 32, 32), np.float32))
        sent = {"Inference_Header_Content_Length": length}
        assert server.ask("POST", "/v2/models/tiny/infer", body, **sent)[0] == 401
        assert server.ask("POST", "/v2/models/tiny/infer", body, **sent, X_API_Key=key)[0] == 200
        with grpc.insecure_channel(server.grpc) as channel:
            assert channel.unary_unary(f"/{SERVICE}/ServerLive")(b"")
            ask = channel.unary_unary(f"/{SERVICE}/ModelMetadata")
            for metadata in (None, [("x-api-key", "wrong")], [("authorization", "Bearer no")]):
                with pytest.raises(grpc.RpcError) as error:
                    ask(call, metadata=metadata)
                assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert ask(call, metadata=[("x-api-key", key)])
            assert ask(call, metadata=[("authorization", f"Bearer {key}")])
            stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
            with pytest.raises(grpc.RpcError) as error:
                list(stream(iter([b""])))
            assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert key not in server.stderr.read_text()


def test_tls(exported: Path, tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme", reason="trustme is not installed")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.private_key_pem.write_to_path(key)
    for part in certificate.cert_chain_pems:
        part.write_to_path(cert, append=True)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    rows = np.zeros((40, 3, 32, 32), np.float32)
    body, length = binary_request(rows)
    with running(tmp_path, f"tiny={exported}", "--tls-cert", cert, "--tls-key", key) as server:
        connection = http.client.HTTPSConnection("127.0.0.1", server.http_port, context=context, timeout=20)
        for _ in range(3):
            connection.request("POST", "/v2/models/tiny/infer", body, {"Inference-Header-Content-Length": length})
            response = connection.getresponse()
            assert response.status == 200 and len(response.read()) > 40 * 28
        connection.close()
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with grpc.secure_channel(server.grpc.replace("127.0.0.1", "localhost"), credentials) as channel:
            assert channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=20)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            server.ask("GET", "/v2/health/live")


def test_the_access_log_is_json_and_takes_no_line_from_a_client(exported: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with running(tmp_path, f"tiny={exported}", "--access-log", log) as server:
        server.ask("GET", '/v2/models/a%0a{"status":200}')
        server.ask("POST", "/v2/models/tiny/infer", b"{}")
        with grpc.insecure_channel(server.grpc) as channel:
            channel.unary_unary(f"/{SERVICE}/ServerLive")(b"")
        metrics = server.ask("GET", "/metrics")[2].decode()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["protocol"], line["status"]) for line in lines[:3]] == [("http", 404), ("http", 400), ("grpc", "OK")]
    assert lines[1]["bytes_in"] == 2 and lines[1]["bytes_out"] > 10 and lines[1]["ms"] >= 0 and lines[1]["id"]
    assert 'mlpdeploy_requests_total{method="POST /v2/models/*/infer",protocol="http",status="400"} 1.0' in metrics
    assert "status%22" not in metrics and "mlpdeploy_process_resident_memory_bytes" in metrics


def test_an_access_log_that_cannot_be_written_stops_nothing(exported: Path, tmp_path: Path) -> None:
    x = np.zeros((1, 3, 32, 32), np.float32)
    request = message_classes()["ModelInferRequest"](model_name="tiny", raw_input_contents=[x.tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=x.shape)
    with running(tmp_path, f"tiny={exported}", "--access-log", "/dev/full") as server:
        assert server.ask("GET", "/v2/models/tiny")[0] == 200
        with grpc.insecure_channel(server.grpc) as channel:
            stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
            replies = list(stream(iter([request.SerializeToString()] * 3), timeout=20))
        parsed = map(message_classes()["ModelStreamInferResponse"].FromString, replies)
        assert [reply.error_message for reply in parsed] == ["", "", ""]
    said = server.stderr.read_text()  # the exit code is looked at by `running`
    assert said == "mlpdeploy: the access log cannot be written (No space left on device); lines are lost\n"


def test_an_error_of_ours_shows_nothing_of_the_inside(exported: Path, tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        "import sys\nfrom mlpdeploy.serving import app\nfrom mlpdeploy.serving.protocol import grpc_service\n"
        "def metadata(*a): raise KeyError('the secret')\napp.metadata = grpc_service.metadata = metadata\n"
        "from mlpdeploy.cli import main\nmain(sys.argv[1:], prog_name='mlpdeploy')\n"
    )
    with running(tmp_path, f"tiny={exported}", program=[script]) as server:
        status, headers, body = server.ask("GET", "/v2/models/tiny")
        assert status == 500 and "secret" not in str(body) and headers["x-request-id"] in body["error"]
        with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(f"/{SERVICE}/ModelMetadata")(
                message_classes()["Named"](name="tiny").SerializeToString()
            )
        assert error.value.code() == grpc.StatusCode.INTERNAL and "secret" not in error.value.details()
    assert server.stderr.read_text().count("KeyError: 'the secret'") == 2


def test_reload_and_drain_under_load(exported: Path, tmp_path: Path) -> None:
    versions = tmp_path / "versions"
    shutil.copytree(exported, versions / "1")
    results: list[int] = []
    stop = threading.Event()
    body, length = binary_request(np.zeros((2, 3, 32, 32), np.float32))
    with running(tmp_path, f"tiny={versions}") as server:

        def load() -> None:
            while not stop.is_set():
                sent = {"Inference_Header_Content_Length": length}
                results.append(server.ask("POST", "/v2/models/tiny/infer", body, **sent)[0])

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        shutil.copytree(exported, versions / "2")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(server.lines()) == 2)
        assert server.lines()[1] == {"reload": "changed", "model": "tiny", "version": "2"}
        assert server.ask("GET", "/v2/models/tiny")[2]["versions"] == ["2"]
        shutil.copytree(exported, versions / "3")
        (versions / "3" / "model.onnx").write_bytes(b"broken")
        (versions / "3" / "manifest.json").write_text("{}")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(server.lines()) == 3)
        assert server.lines()[2]["reload"] == "refused" and server.lines()[2]["error"]
        assert server.ask("GET", "/v2/models/tiny")[2]["versions"] == ["2"]
        stop.set()
        for thread in threads:
            thread.join()
    assert len(results) > 10 and set(results) == {200}


def test_new_versions_are_found_without_a_signal(exported: Path, tmp_path: Path) -> None:
    """A good version, a broken one, a good one: each is told once, the broken one refused, no request is lost."""
    versions = tmp_path / "versions"
    shutil.copytree(exported, versions / "1")
    results: list[int] = []
    served: set[str] = set()
    stop = threading.Event()
    body, length = binary_request(np.zeros((2, 3, 32, 32), np.float32))

    def put(number: int, broken: bool = False) -> None:
        new = Path(shutil.copytree(exported, tmp_path / "new"))
        if broken:
            (new / "model.cpu.onnx").write_bytes(b"broken")
        new.rename(versions / str(number))

    with running(tmp_path, f"tiny={versions}", "--watch-seconds", "0.2") as server:

        def load() -> None:
            while not stop.is_set():
                sent = {"Inference_Header_Content_Length": length}
                status, headers, answer = server.ask("POST", "/v2/models/tiny/infer", body, **sent)
                results.append(status)
                cut = int(headers.get("inference-header-content-length", "0"))
                served.add(json.loads(answer[:cut])["model_version"] if cut else "none")

        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        put(2)
        wait_for(lambda: len(server.lines()) == 2)
        put(3, broken=True)
        wait_for(lambda: len(server.lines()) == 3)
        time.sleep(0.8)  # looked at again and again, and told once
        assert server.ask("GET", "/v2/models/tiny")[2]["versions"] == ["2"]
        put(4)
        wait_for(lambda: len(server.lines()) == 4)
        wait_for(lambda: "4" in served)
        stop.set()
        for thread in threads:
            thread.join()
        lines = server.lines()[1:]
    assert [(line["reload"], line["version"]) for line in lines] == [
        ("changed", "2"),
        ("refused", "2"),
        ("changed", "4"),
    ]
    assert "model.cpu.onnx" in lines[1]["error"]
    assert set(results) == {200} and {"1", "2", "4"} >= served >= {"2", "4"}


def test_requests_that_are_here_are_answered_before_the_end(exported: Path, tmp_path: Path) -> None:
    body, length = binary_request(np.zeros((200, 3, 32, 32), np.float32))
    with running(tmp_path, f"tiny={exported}", "--queue-limit", "1000") as server:
        answers: list[int] = []

        def ask() -> None:
            answers.append(server.ask("POST", "/v2/models/tiny/infer", body, Inference_Header_Content_Length=length)[0])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: b"mlpdeploy_rows_in_flight{" in server.ask("GET", "/metrics")[2])
        time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.process.wait(20) == 0
    assert answers == [200, 200, 200]


def test_a_terminals_ctrl_c_reaches_the_server_alone(server: Running) -> None:
    """Which ends its workers, that may not have begun to pass signals over."""
    pid = server.process.pid
    tasks = Path(f"/proc/{pid}/task").iterdir()
    workers = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    assert workers
    assert os.getpgid(pid) not in map(os.getpgid, workers)


def test_ctrl_c_before_there_is_a_worker_is_quiet(exported: Path) -> None:
    code = (
        "import os, signal, mlpdeploy.serving.protocol.grpc_service as service\n"
        "make = service.make_server\n"
        "def interrupted(*arguments):\n"
        "    made = make(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return made\n"
        "service.make_server = interrupted\n"
        "from mlpdeploy.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "serve", str(exported), "--http-port", "0", "--grpc-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr and "never awaited" not in done.stderr
