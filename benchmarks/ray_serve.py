"""What Ray Serve adds: `mlpdeploy serve` here and with `--engine ray`, the same artifact and threads, interleaved.

Writes results/ray_serve.json. Run with: python benchmarks/ray_serve.py NAME=ARTIFACT
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy import load
from mlpdeploy.artifact import write_file
from mlpdeploy.env import git_commit, machine, tool_versions

ENGINES: dict[str, list[str]] = {"local": [], "ray": ["--engine", "ray"]}
PERCENTILES = (50, 90, 99)
CLIENTS = 8
THREADS = 1


@contextlib.contextmanager
def server(name: str, directory: Path, engine: str) -> Iterator[int]:
    """Run `mlpdeploy serve`; yield its HTTP port."""
    command = [sys.executable, "-m", "mlpdeploy", "serve", f"{name}={directory}", "--json", "--no-access-log"]
    command += ["--http-port", "0", "--grpc-port", "0", "--threads", str(THREADS), *ENGINES[engine]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(json.loads(process.stdout.readline())["http"].rpartition(":")[2])
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


class Client:
    """One connection that asks for one row again and again."""

    def __init__(self, port: int, model: str, tensor: str, x: np.ndarray) -> None:
        value = {"name": tensor, "shape": list(x.shape), "datatype": "FP32"}
        value["parameters"] = {"binary_data_size": x.nbytes}
        head = json.dumps({"inputs": [value], "parameters": {"binary_data_output": True}}).encode()
        self._body, self._headers = head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))}
        self._path = f"/v2/models/{model}/infer"
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(self) -> bytes:
        """Return one answer."""
        self._connection.request("POST", self._path, self._body, self._headers)
        response = self._connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        return answer


def rate(clients: list[Client], seconds: float) -> float:
    """Return answers per second of clients in a closed loop."""
    end = time.perf_counter() + seconds
    counts = [0] * len(clients)

    def loop(index: int) -> None:
        while time.perf_counter() < end:
            clients[index].ask()
            counts[index] += 1

    threads = [threading.Thread(target=loop, args=(index,)) for index in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def measure(name: str, directory: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the figures of both engines."""
    with load(directory, threads=THREADS) as session:
        feeds = session.random_feeds(1, height_width=session.manifest.preprocessing.height_width)
        expected = next(iter(session.run(feeds).values()))
    ((tensor, x),) = feeds.items()
    samples: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    rates: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    with contextlib.ExitStack() as stack:
        ports = {engine: stack.enter_context(server(name, directory, engine)) for engine in ENGINES}
        clients = {engine: [Client(port, name, tensor, x) for _ in range(CLIENTS)] for engine, port in ports.items()}
        for engine in ENGINES:
            got = np.frombuffer(clients[engine][0].ask()[-expected.nbytes :], np.float32).reshape(expected.shape)
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
        for index in range(rounds + 20):
            for engine in ENGINES:
                begin = time.perf_counter()
                clients[engine][0].ask()
                if index >= 20:
                    samples[engine].append(1000 * (time.perf_counter() - begin))
        for _ in range(3):
            for engine in ENGINES:
                rates[engine].append(rate(clients[engine], seconds))
    found: dict[str, Any] = {}
    for engine in ENGINES:
        percentiles = dict(zip(PERCENTILES, np.percentile(samples[engine], PERCENTILES).round(3).tolist(), strict=True))
        found[engine] = {"one_client_ms": percentiles, "answers_per_second": [round(one, 1) for one in rates[engine]]}
    return {"row_bytes": x.nbytes, "clients": CLIENTS, "threads": THREADS, "rounds": rounds, **found}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs="+", metavar="NAME=ARTIFACT")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ray_serve.json")
    arguments = parser.parse_args()
    models = {}
    for text in arguments.artifacts:
        name, _, directory = text.partition("=")
        models[name] = measure(name, Path(directory), arguments.rounds, arguments.seconds)
        print(name, json.dumps(models[name]))
    report = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "machine": machine(),
        "versions": tool_versions(("onnxruntime", "ray", "uvicorn")),
        "models": models,
    }
    write_file(arguments.out, (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
