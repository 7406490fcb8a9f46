"""What the network costs: `mlpdeploy serve` beside the Session in this process, at batch 1 and with 32 clients.

Writes results/serving.json and results/serving.png. Run with: python benchmarks/serving.py NAME=ARTIFACT ...
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image

from mlpdeploy import load
from mlpdeploy.artifact import write_file
from mlpdeploy.env import git_commit, machine, tool_versions
from mlpdeploy.images import sample_photographs
from mlpdeploy.runtime.session import Session
from mlpdeploy.serving.protocol.messages import SERVICE, message_classes

CLIENTS = 32
BATCHES = (1, 2, 4, 8, 16, 32)
MAX_DELAY_MS = 2.0
PAUSE_SECONDS = 0.01  # between calls: the threads of a session spin for a while when it is done
PERCENTILES = (50, 90, 99)


@dataclasses.dataclass(frozen=True)
class Address:
    """Where the server is, and what is asked for."""

    model: str
    http_port: int
    grpc: str


@contextlib.contextmanager
def server(name: str, directory: Path) -> Iterator[Address]:
    """Run `mlpdeploy serve` on free ports."""
    command = [sys.executable, "-m", "mlpdeploy", "serve", f"{name}={directory}", "--json", "--no-access-log"]
    command += ["--http-port", "0", "--grpc-port", "0", "--max-delay-ms", str(MAX_DELAY_MS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield Address(name, int(ready["http"].rpartition(":")[2]), ready["grpc"])
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def binary_body(session: Session, x: np.ndarray) -> tuple[bytes, int]:
    """Return (body, length of its JSON) of a binary REST request."""
    tensor = {"name": session.inputs[0].name, "shape": list(x.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": x.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + x.tobytes(), len(head)


def grpc_body(session: Session, model: str, x: np.ndarray) -> bytes:
    """Return a ModelInferRequest."""
    message = message_classes()["ModelInferRequest"](model_name=model, raw_input_contents=[x.tobytes()])
    message.inputs.add(name=session.inputs[0].name, datatype="FP32", shape=x.shape)
    return bytes(message.SerializeToString())


def jpeg(session: Session) -> bytes:
    """Return a photograph where the model takes such, else a JPEG of the input's size."""
    height, width = session.manifest.preprocessing.height_width
    if min(height, width) >= 64:
        return sample_photographs()[0].read_bytes()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()


def calls(session: Session, address: Address) -> Iterator[dict[str, Callable[[], None]]]:
    """Yield {name: one request at batch 1}."""
    feeds = session.random_feeds(1, height_width=session.manifest.preprocessing.height_width)
    x = next(iter(feeds.values()))
    expected = next(iter(session.run(feeds).values()))
    body, length = binary_body(session, x)
    message, picture = grpc_body(session, address.model, x), jpeg(session)
    connection = http.client.HTTPConnection("127.0.0.1", address.http_port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    channel = grpc.insecure_channel(address.grpc)
    infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")

    def post(path: str, data: bytes, headers: dict[str, str]) -> bytes:
        connection.request("POST", path, data, headers)
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        return answer

    def rest() -> np.ndarray:
        answer = post(f"/v2/models/{address.model}/infer", body, {"Inference-Header-Content-Length": str(length)})
        return np.frombuffer(answer[-expected.nbytes :], np.float32).reshape(expected.shape)

    def by_grpc() -> np.ndarray:
        answer = message_classes()["ModelInferResponse"].FromString(infer(message))
        return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(expected.shape)

    for ask in (rest, by_grpc):
        np.testing.assert_allclose(ask(), expected, rtol=1e-3, atol=1e-3)
    yield {
        "session": lambda: session.run(feeds),
        "grpc": by_grpc,
        "rest_binary": rest,
        "jpeg": lambda: post("/v1/classify", picture, {"Content-Type": "image/jpeg"}),
    }
    channel.close()
    connection.close()


def overhead(session: Session, address: Address, rounds: int) -> dict[str, Any]:
    """Return percentiles of each way to ask, and how much more than the session's it is, interleaved."""
    for ways in calls(session, address):
        samples: dict[str, list[float]] = {name: [] for name in ways}
        for index in range(rounds + 10):
            for name, call in ways.items():
                time.sleep(PAUSE_SECONDS)
                started = time.perf_counter()
                call()
                if index >= 10:
                    samples[name].append(1000 * (time.perf_counter() - started))
    result = {name: dict(zip(("p50_ms", "p90_ms", "p99_ms"), np.percentile(values, PERCENTILES).tolist(), strict=True))
              for name, values in samples.items()}  # fmt: skip
    for name, figures in result.items():
        figures["overhead_p50_ms"] = figures["p50_ms"] - result["session"]["p50_ms"]
        figures["overhead_p99_ms"] = figures["p99_ms"] - result["session"]["p99_ms"]
        print(f"  {name:12} p50 {figures['p50_ms']:8.2f} ms, over the session {figures['overhead_p50_ms']:6.2f} ms")
    return {"rounds": rounds, "milliseconds": result}


def best_batch(session: Session, seconds: float) -> dict[str, float]:
    """Return {batch: rows per second} of the session itself."""
    found = {}
    for batch in BATCHES:
        feeds = session.random_feeds(batch, height_width=session.manifest.preprocessing.height_width)
        session.run(feeds)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            session.run(feeds)
            count += batch
        found[str(batch)] = count / (time.perf_counter() - started)
    return found


async def grpc_client(address: Address, message: bytes, until: float, times: list[tuple[float, float]]) -> None:
    """Ask again and again."""
    async with grpc.aio.insecure_channel(address.grpc, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        while (started := time.perf_counter()) < until:
            await infer(message)
            times.append((time.perf_counter(), time.perf_counter() - started))


async def rest_client(address: Address, request: bytes, until: float, times: list[tuple[float, float]]) -> None:
    """Ask again and again on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", address.http_port)
    while (started := time.perf_counter()) < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        times.append((time.perf_counter(), time.perf_counter() - started))
    writer.close()


def closed_loop(session: Session, address: Address, seconds: float) -> dict[str, Any]:
    """Return throughput and latency of 32 clients, by protocol; the first second is left out."""
    feeds = session.random_feeds(1, height_width=session.manifest.preprocessing.height_width)
    x = next(iter(feeds.values()))
    body, length = binary_body(session, x)
    head = f"POST /v2/models/{address.model}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}Inference-Header-Content-Length: {length}\r\n\r\n".encode() + body
    message = grpc_body(session, address.model, x)

    async def run(client: Any, payload: bytes) -> dict[str, float]:
        times: list[tuple[float, float]] = []
        begin = time.perf_counter() + 1.0
        await asyncio.gather(*(client(address, payload, begin + seconds, times) for _ in range(CLIENTS)))
        counted = [latency for ended, latency in times if begin <= ended <= begin + seconds]
        p50, p90, p99 = (1000 * np.percentile(counted, PERCENTILES)).tolist()
        return {"rows_per_second": len(counted) / seconds, "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}

    return {"grpc": asyncio.run(run(grpc_client, message)), "rest_binary": asyncio.run(run(rest_client, request))}


def measure(name: str, directory: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Return all figures of one model.

    The session's threads do not spin after a run: spinning, they take a processor from the request that comes next.
    """
    print(name)
    with server(name, directory) as address, load(directory, share_processors=True) as session:
        single = overhead(session, address, rounds)
        before = best_batch(session, seconds / 4)
        loop = closed_loop(session, address, seconds)
        after = best_batch(session, seconds / 4)
    alone = {batch: (before[batch] + after[batch]) / 2 for batch in before}
    best = max(alone.values())
    batch_ms = 1000 * 32 / alone["32"]
    for protocol, figures in loop.items():
        figures["share_of_best"] = figures["rows_per_second"] / best
        figures["p99_in_batches_of_32"] = figures["p99_ms"] / batch_ms
        print(f"  {CLIENTS} clients, {protocol}: {figures['rows_per_second']:.1f} rows/s, "
              f"{100 * figures['share_of_best']:.0f} % of the session's best; p99 {figures['p99_ms']:.1f} ms, "
              f"{figures['p99_in_batches_of_32']:.1f} batches of 32")  # fmt: skip
    return {"model": name, "batch_1": single, "session_rows_per_second": alone, "closed_loop": loop}


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the overhead at batch 1 of each model and protocol."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ways = ("grpc", "rest_binary", "jpeg")
    figure, axes = pyplot.subplots(figsize=(7, 3.2))
    for index, result in enumerate(results):
        values = [result["batch_1"]["milliseconds"][way]["overhead_p50_ms"] for way in ways]
        bars = axes.bar(np.arange(len(ways)) + 0.4 * index, values, 0.36, label=result["model"])
        axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.set_xticks(np.arange(len(ways)) + 0.2 * (len(results) - 1), ["gRPC", "REST, binary", "JPEG"])
    axes.set_ylabel("ms more than the Session, median")
    axes.margins(y=0.15)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serving.json")
    arguments = parser.parse_args()
    named = (text.partition("=") for text in arguments.artifacts)
    results = [measure(name, Path(directory), arguments.rounds, arguments.seconds) for name, _, directory in named]
    body = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "machine": machine(),
        "tools": tool_versions(("numpy", "onnxruntime", "uvicorn", "grpc", "PIL")),
        "load_average_before": os.getloadavg(),
        "max_delay_ms": MAX_DELAY_MS,
        "clients": CLIENTS,
        "results": results,
    }
    write_file(arguments.output, (json.dumps(body, indent=1) + "\n").encode())
    plot(results, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
