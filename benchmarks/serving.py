"""What the network costs: `mlpdeploy serve` beside the Session in this process, at batch 1 and with 32 clients.

Writes results/serving.json and results/serving.png. Run with: python benchmarks/serving.py NAME=ARTIFACT ...

Batch 1, one client, twice. `back_to_back`: it asks again as soon as it has its answer, as load generators do; in each
round every way to ask has a few calls in a row, in random order, and the first are not counted. `after_pauses`: every
call comes some time after the one before, whichever way that went, so all of them find processors that sleep and caches
that others have used, the Session too. The clock runs from the first byte of a request, built before, to the last byte
of its answer, which is not decoded. The floors are servers that answer the same bytes without looking: what the machine
and gRPC itself take. `..._shared_memory`: the request says where in shared memory its tensor lies; the answer is sent.

32 clients: in a process of their own, in a closed loop; a client's rate is taken between its own answers, so that it
does not matter whether the window ends before or behind a batch. The processors that each process took are beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from serving_load import closed_loop, floors, grpc_call, rest_call

from mlpdeploy import load
from mlpdeploy.artifact import write_file
from mlpdeploy.env import git_commit, machine, tool_versions
from mlpdeploy.images import sample_photographs
from mlpdeploy.loadgen import wire
from mlpdeploy.loadgen.shared import SharedInputs
from mlpdeploy.runtime.session import Session
from mlpdeploy.serving.protocol.messages import message_classes

CLIENTS = 32
BATCHES = (1, 2, 4, 8, 16, 32)
MAX_DELAY_MS = 2.0
QUALITY = 85
PAUSE_SECONDS = 0.01
IN_A_ROW, UNCOUNTED = 6, 2  # calls back to back
PERCENTILES = (50, 90, 99)
RESAMPLES = 2000
LOOPS = ("grpc", "rest_binary", "grpc_shared_memory", "rest_shared_memory")
MANY_ROWS = 8  # in a request, beside one
FAST_ROWS_PER_SECOND = 200  # from here on the clients ask for many rows too


@dataclasses.dataclass(frozen=True)
class Address:
    """Where the server is, its processes, and what is asked for."""

    model: str
    http_port: int
    grpc: str
    pids: dict[str, list[int]]


@contextlib.contextmanager
def server(name: str, directory: Path) -> Iterator[Address]:
    """Run `mlpdeploy serve` on free ports."""
    command = [sys.executable, "-m", "mlpdeploy", "serve", f"{name}={directory}", "--json", "--no-access-log"]
    command += ["--http-port", "0", "--grpc-port", "0", "--max-delay-ms", str(MAX_DELAY_MS), "--timeout-ms", "120000"]
    command += ["--shared-memory"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        pids = {"front": [process.pid], "workers": [int(pid) for pid in workers]}
        yield Address(name, int(ready["http"].rpartition(":")[2]), ready["grpc"], pids)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def rest_request(path: str, body: bytes, *headers: str) -> bytes:
    """Return the bytes of a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def binary_request(session: Session, model: str, x: np.ndarray) -> bytes:
    """Return a REST request with a binary tensor, which asks for a binary answer."""
    tensor = {"name": session.inputs[0].name, "shape": list(x.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": x.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    return rest_request(f"/v2/models/{model}/infer", head + x.tobytes(), length)


def grpc_message(session: Session, model: str, x: np.ndarray) -> bytes:
    """Return a ModelInferRequest."""
    message = message_classes()["ModelInferRequest"](model_name=model, raw_input_contents=[x.tobytes()])
    message.inputs.add(name=session.inputs[0].name, datatype="FP32", shape=x.shape)
    return bytes(message.SerializeToString())


@contextlib.contextmanager
def in_shared_memory(session: Session, address: Address, x: np.ndarray) -> Iterator[tuple[bytes, bytes]]:
    """Yield (REST request, ModelInferRequest) that say where a tensor lies, which the server knows as long."""
    feeds = {session.inputs[0].name: x}
    shared = SharedInputs([feeds])
    try:
        (places,) = shared
        region = f"/v2/systemsharedmemory/region/{shared.key}"
        asked = json.dumps({"key": shared.key, "byte_size": shared.byte_size}).encode()
        rest_call(address.http_port, rest_request(f"{region}/register", asked))()
        body, length = wire.rest_request(feeds, (session.outputs[0].name,), places)
        yield (
            rest_request(f"/v2/models/{address.model}/infer", body, f"Inference-Header-Content-Length: {length}"),
            wire.grpc_request(address.model, "", feeds, (session.outputs[0].name,), places),
        )
        rest_call(address.http_port, rest_request(f"{region}/unregister", b""))()
    finally:
        shared.close()


def jpegs(session: Session) -> dict[str, bytes]:
    """Return a photograph as it is, hardly compressed, and as cameras and the web compress; else one JPEG of noise."""
    height, width = session.manifest.preprocessing.height_width
    if min(height, width) < 64:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
        return {"jpeg": jpeg(Image.fromarray(pixels))}
    photograph = sample_photographs()[0]
    return {"jpeg": photograph.read_bytes(), f"jpeg_quality_{QUALITY}": jpeg(Image.open(photograph))}


def jpeg(image: Image.Image) -> bytes:
    """Return the bytes of a JPEG."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=QUALITY)
    return data.getvalue()


@contextlib.contextmanager
def calls(session: Session, address: Address, rows: int) -> Iterator[dict[str, Callable[[], Any]]]:
    """Yield {name: one request of so many rows, or one picture}."""
    feeds = session.random_feeds(rows, height_width=session.manifest.preprocessing.height_width)
    x = next(iter(feeds.values()))
    expected = next(iter(session.run(feeds).values()))
    request, message = binary_request(session, address.model, x), grpc_message(session, address.model, x)
    rest, rpc = rest_call(address.http_port, request), grpc_call(address.grpc, message)
    pictures = {
        name: rest_call(address.http_port, rest_request("/v1/classify", data, "Content-Type: image/jpeg"))
        for name, data in (jpegs(session) if rows == 1 else {}).items()
    }
    with floors(request, message) as echoes, in_shared_memory(session, address, x) as (short_request, short_message):
        short_rest, short_rpc = rest_call(address.http_port, short_request), grpc_call(address.grpc, short_message)
        answers = [ask()[-expected.nbytes :] for ask in (rest, short_rest)]
        kind = message_classes()["ModelInferResponse"]
        answers += [kind.FromString(ask()).raw_output_contents[0] for ask in (rpc, short_rpc)]
        for answer in answers:
            np.testing.assert_allclose(np.frombuffer(answer, np.float32).reshape(expected.shape), expected, 1e-3, 1e-3)
        yield {
            "session": lambda: session.run(feeds),
            "grpc": rpc,
            "rest_binary": rest,
            "grpc_shared_memory": short_rpc,
            "rest_shared_memory": short_rest,
            **pictures,
            **echoes,
        }


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def overhead(session: Session, address: Address, count: int, rounds: int) -> dict[str, Any]:
    """Return {how it was asked: {way: figures}}, see `figures`; a request has `count` rows."""
    generator = random.Random(0)
    with calls(session, address, count) as ways:
        names = list(ways)
        rows: dict[str, list[float]] = {name: [] for name in names}
        cold: dict[str, list[float]] = {name: [] for name in names}
        for index in range(-10, rounds):
            for name in generator.sample(names, len(names)):
                time.sleep(PAUSE_SECONDS)
                took = seconds_of(ways[name])
                if index >= 0:
                    cold[name].append(1000 * took)
        for _ in range(rounds):
            for name in generator.sample(names, len(names)):
                took_each = [seconds_of(ways[name]) for _ in range(IN_A_ROW)]
                rows[name].append(1000 * float(np.median(took_each[UNCOUNTED:])))
    found = {"back_to_back": figures(rows), "after_pauses": figures(cold)}
    for how, each in found.items():
        print(f"  {how.replace('_', ' ')}")
        for name, figure in each.items():
            extra = f", over the session {figure['overhead_p50_ms']:6.2f} ms" if "overhead_p50_ms" in figure else ""
            print(f"    {name:18} p50 {figure['p50_ms']:8.2f} ms{extra}")
    return {"rounds": rounds, **found}


def figures(samples: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Return percentiles of each way to ask, in ms, and how much more than the session's its median is, with 95 %.

    Args:
        samples: {way: a number for each round}; back to back that is the median of a round's calls.
    """
    rounds = len(samples["session"])
    rng = np.random.default_rng(0)
    picks = rng.integers(0, rounds, (RESAMPLES, rounds))  # of rounds, in which all ways stand together
    values = {name: np.array(of) for name, of in samples.items()}
    medians = {name: np.median(of[picks], axis=1) for name, of in values.items()}
    result: dict[str, Any] = {}
    for name, of in values.items():
        result[name] = dict(zip(("p50_ms", "p90_ms", "p99_ms"), np.percentile(of, PERCENTILES).tolist(), strict=True))
        result[name]["min_ms"] = float(of.min())
        if name.startswith("floor"):
            continue
        result[name]["overhead_p50_ms"] = float(np.median(of) - np.median(values["session"]))
        more = medians[name] - medians["session"]
        result[name]["overhead_p50_95_percent"] = np.percentile(more, (2.5, 97.5)).tolist()
    return result


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


def loop(session: Session, address: Address, kind: str, rows: int, seconds: float) -> dict[str, Any]:
    """Return throughput and latency of the clients, and what the processes took; their first answers are left out."""
    x = next(iter(session.random_feeds(rows, height_width=session.manifest.preprocessing.height_width).values()))
    protocol = kind.partition("_")[0]
    place = address.grpc if protocol == "grpc" else str(address.http_port)
    with in_shared_memory(session, address, x) as (short_request, short_message):
        payload = {
            "grpc": lambda: grpc_message(session, address.model, x),
            "rest_binary": lambda: binary_request(session, address.model, x),
            "grpc_shared_memory": lambda: short_message,
            "rest_shared_memory": lambda: short_request,
        }[kind]()
        ends, processors = closed_loop(protocol, place, payload, CLIENTS, seconds, address.pids)
    counted = [times[1:] for times in ends if len(times) > 2]
    rate = sum(rows * (len(times) - 1) / (times[-1] - times[0]) for times in counted)
    latencies = np.concatenate([np.diff(times) for times in counted])
    p50, p90, p99 = (1000 * np.percentile(latencies, PERCENTILES)).tolist()
    return {
        "rows_per_request": rows,
        "rows_per_second": rate,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "processors": processors,
    }


def measure(name: str, directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all figures of one model.

    The session has the options of the server's worker: its threads do not spin after a run, for spinning they would
    take a processor from the request that comes next.
    """
    print(name)
    rows_asked, seconds, repeats = arguments.rows, arguments.seconds, arguments.repeats
    with server(name, directory) as address, load(directory, share_processors=True) as session:
        alone = overhead(session, address, rows_asked, arguments.rounds)
        best_rates = [best_batch(session, seconds / 4)]
        fast = best_rates[0]["1"] > FAST_ROWS_PER_SECOND
        loops: dict[str, list[dict[str, Any]]] = {}
        for _ in range(repeats):
            for kind in LOOPS:
                for rows in (1, MANY_ROWS) if fast else (1,):
                    label = kind if rows == 1 else f"{kind}_{rows}_rows"
                    loops.setdefault(label, []).append(loop(session, address, kind, rows, seconds))
            best_rates.append(best_batch(session, seconds / 4))
    middles = {batch: float(np.median([rates[batch] for rates in best_rates])) for batch in best_rates[0]}
    for label, runs in loops.items():
        for index, run in enumerate(runs):  # compared with the session just before and just behind
            near = {batch: (best_rates[index][batch] + best_rates[index + 1][batch]) / 2 for batch in middles}
            run["share_of_best"] = run["rows_per_second"] / max(near.values())
            run["p99_in_batches_of_32"] = run["p99_ms"] * near["32"] / 32_000
        shares = [run["share_of_best"] for run in runs]
        print(f"  {CLIENTS} clients, {label}: {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the best; "
              f"p99 {max(run['p99_in_batches_of_32'] for run in runs):.2f} batches of 32")  # fmt: skip
    return {"model": name, f"batch_{rows_asked}": alone, "session_rows_per_second": middles, "closed_loop": loops}


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the overhead at batch 1 of each model and protocol, back to back."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ways = ("grpc", "rest_binary", "grpc_shared_memory", "rest_shared_memory", "jpeg")
    labels = ("gRPC", "REST, binary", "gRPC, shared\nmemory", "REST, shared\nmemory", "JPEG")
    figure, axes = pyplot.subplots(figsize=(9, 3.2))
    for index, result in enumerate(results):
        values = [result["batch_1"]["back_to_back"][way]["overhead_p50_ms"] for way in ways]
        errors = [result["batch_1"]["back_to_back"][way]["overhead_p50_95_percent"] for way in ways]
        sides = np.abs(np.array(errors) - np.array(values)[:, None]).T
        bars = axes.bar(np.arange(len(ways)) + 0.4 * index, values, 0.36, label=result["model"], yerr=sides)
        axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.set_xticks(
        np.arange(len(ways)) + 0.2 * (len(results) - 1),
        labels,
    )
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
    parser.add_argument("--rows", type=int, default=1, help="of one client's requests; with more there is no plot")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3, help="of the closed loops; 0 leaves them out")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serving.json")
    arguments = parser.parse_args()
    named = (text.partition("=") for text in arguments.artifacts)
    results = [measure(name, Path(directory), arguments) for name, _, directory in named]
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
    if arguments.rows == 1:
        plot(results, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
