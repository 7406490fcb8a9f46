"""Requests that are still here when a server that was told to stop waits no longer."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path

import pytest
from running import running


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_they_are_told_so(exported: Path, tmp_path: Path, size: int) -> None:
    log = tmp_path / "access.log"
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n{" % size
    with running(tmp_path, f"tiny={exported}", "--drain-seconds", "1", "--access-log", log) as server:
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as connection:
            connection.sendall(head)
            with socket.create_connection(("127.0.0.1", server.http_port), timeout=20) as gone:
                gone.sendall(head)
                time.sleep(0.3)
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            answer = b""
            while piece := connection.recv(4096):
                answer += piece
        assert server.process.wait(20) == 0
    headers, _, body = answer.partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in headers and b"connection: close" in headers
    assert "stopped" in json.loads(body)["error"]
    assert [json.loads(line)["status"] for line in log.read_text().splitlines()] == [499, 503]
    assert "Traceback" not in server.stderr.read_text()
