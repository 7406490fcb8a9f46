"""`mlpdeploy serve` in a process of its own, and a client that shows an answer as it came."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

READY_SECONDS = 60


@dataclass
class Running:
    """A running server; `stderr` and `stdout` are files that it writes to."""

    process: subprocess.Popen[str]
    http_port: int
    grpc: str
    stderr: Path
    stdout: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], Any]:
        """Return (status, headers by lower-case name, body: parsed where it is JSON)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=20)
        try:
            connection.request(method, path, body or None, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json") and "content-encoding" not in found
        return response.status, found, json.loads(data) if is_json and data else data

    def lines(self) -> list[dict[str, Any]]:
        """Return the JSON lines of stdout."""
        return [json.loads(line) for line in self.stdout.read_text().splitlines()]

    def alive(self) -> bool:
        """Return whether it still answers as it should."""
        return self.process.poll() is None and self.ask("GET", "/v2/health/ready")[0] == 200


@contextlib.contextmanager
def running(
    folder: Path, *arguments: str | Path, program: Sequence[str | Path] = ("-m", "mlpdeploy"), **env: str
) -> Iterator[Running]:
    """Serve on free ports, with stdout and stderr in `folder`; end with SIGTERM, which has to give exit code 0."""
    stdout, stderr = folder / "stdout", folder / "stderr"
    command = [sys.executable, *program, "serve", "--json", "--http-port", "0", "--grpc-port", "0", "--threads", "1"]
    with stdout.open("w") as out, stderr.open("w") as err:
        process = subprocess.Popen(
            [*command, *map(str, arguments)], stdout=out, stderr=err, text=True, env={**os.environ, **env}
        )
    try:
        ready = first_line(process, stdout, stderr)
        yield Running(process, int(ready["http"].rpartition(":")[2]), ready["grpc"], stderr, stdout)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, stderr.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def first_line(process: subprocess.Popen[str], stdout: Path, stderr: Path) -> dict[str, Any]:
    """Return the line that says where the server is."""
    import time

    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if (text := stdout.read_text()).endswith("\n"):
            return json.loads(text.splitlines()[0])
        time.sleep(0.02)
    raise AssertionError(f"the server is not ready: {stderr.read_text()}")


def binary_request(x: np.ndarray, name: str = "input", **parameters: Any) -> tuple[bytes, str]:
    """Return (body, length of its JSON) of a request with one binary tensor."""
    tensor = {"name": name, "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True, **parameters}}).encode()
    return head + x.tobytes(), str(len(head))
