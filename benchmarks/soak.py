"""Does the server last? Mixed clients for an hour, each answer compared with the Session's own, memory watched.

Writes results/serving_soak.json and .png, or results/serving_kills.json and .png with --kill-every. Run with:
    python benchmarks/soak.py NAME=ARTIFACT ... [--minutes 60] [--load 0.25]
    python benchmarks/soak.py NAME=ARTIFACT ... --minutes 10 --kill-every 5 --load 1

Clients ask by REST in binary, gRPC and pictures, for one to four rows; some hang up, send nonsense, or too much. Every
request has its own id and rows of known answers, so one that is lost, doubled, mixed up or wrong is found. Fails (exit
code 1) if there is such a one, if an answer comes after its deadline, or if the memory of a process grows: by the slope
of its last two thirds, in runs of five minutes and more. With --kill-every a worker is ended by SIGKILL every so many
seconds; then a request may also be answered with 503 or 504, in time. SIGTERM ends the run early; its results are
written all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import io
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image

from mlpdeploy import load
from mlpdeploy.artifact import write_file
from mlpdeploy.classification import top_classes
from mlpdeploy.env import git_commit, machine, tool_versions
from mlpdeploy.images import image_from_bytes, preprocess
from mlpdeploy.runtime.session import Session
from mlpdeploy.serving.protocol.messages import SERVICE, message_classes

ROWS = 64  # of known answers
MOST_ROWS = 4
TIMEOUT_SECONDS = 10.0
GRACE_SECONDS = 2.0  # beyond the deadline, for the way back on a busy machine
TOLERANCE = 1e-3
KINDS = {"rest": 10, "grpc": 10, "jpeg": 5, "hang_up": 1, "cancel": 1, "nonsense": 1, "oversize": 1}
IN_TROUBLE = {503, 504, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
SAMPLES = 240
JUDGED_MINUTES = 5.0  # a shorter run is over before everything has been allocated
GROWTH_BYTES, GROWTH_SHARE = 8 << 20, 0.05  # more than both in the watched time is growth


@dataclasses.dataclass(frozen=True)
class Model:
    """What is asked of one model, and what it must answer.

    Attributes:
        rows: (ROWS, ...) float32.
        expected: (ROWS, classes) float32.
        pictures: of each a JPEG's bytes, its best class and the probability of that.
        rate: requests per second.
    """

    name: str
    input: str
    rows: np.ndarray
    expected: np.ndarray
    pictures: list[tuple[bytes, int, float]]
    rate: float


def known_answers(name: str, session: Session, load_share: float) -> Model:
    """Return the rows of a model with the session's answers to them."""
    preprocessing = session.manifest.preprocessing
    height, width = preprocessing.height_width
    rows = next(iter(session.random_feeds(ROWS, height_width=(height, width)).values()))
    started = time.perf_counter()
    expected = np.concatenate([_logits(session, rows[index : index + 1]) for index in range(ROWS)])
    seconds = (time.perf_counter() - started) / ROWS
    apart = np.abs(expected[:, None] - expected[None]).max(-1) + np.eye(ROWS) * 1e9
    assert apart.min() > 4 * TOLERANCE, f"{name}: rows whose answers cannot be told apart"
    pictures = []
    generator = np.random.default_rng(1)
    for _ in range(8):
        file = io.BytesIO()
        coarse = Image.fromarray(generator.integers(0, 256, (7, 9, 3), np.uint8))
        coarse.resize((2 * width, 2 * height)).save(file, "JPEG")
        logits = _logits(session, preprocess(image_from_bytes(file.getvalue()), preprocessing)[None])
        best = top_classes(logits, session.manifest.labels, 1)[0][0]
        pictures.append((file.getvalue(), best.index, best.probability))
    cost = 0.004 + seconds * (os.cpu_count() or 1)  # processor seconds of a request, roughly
    return Model(name, session.inputs[0].name, rows, expected, pictures, load_share / cost)


def _logits(session: Session, x: np.ndarray) -> np.ndarray:
    return np.array(session.run({session.inputs[0].name: x})[session.outputs[0].name])


class Tally:
    """What all clients have seen, counted under a lock."""

    def __init__(self, trouble_allowed: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.slowest = 0.0
        self._trouble_allowed = trouble_allowed
        self._lock = threading.Lock()

    def note(self, kind: str, status: Any, seconds: float, fault: str = "") -> None:
        """Count one request that has ended; `fault` says what was wrong with its answer."""
        if not fault and kind in ("rest", "grpc", "jpeg") and status not in (200, grpc.StatusCode.OK):
            fault = "" if self._trouble_allowed and status in IN_TROUBLE else f"{kind}: answered with {status}"
        if not fault and seconds > TIMEOUT_SECONDS + GRACE_SECONDS:
            fault = f"{kind}: {seconds:.1f} s, after its deadline"
        with self._lock:
            self.counts[f"{kind} {getattr(status, 'name', status)}"] += 1
            self.slowest = max(self.slowest, seconds)
            if fault:
                self.faults.append(fault)


class Client(threading.Thread):
    """Asks for one model, one request at a time."""

    def __init__(self, number: int, model: Model, http_port: int, channel: grpc.Channel, pause: float, tally: Tally,
                 stop: threading.Event) -> None:  # fmt: skip
        super().__init__(name=f"client-{number}", daemon=True)
        self._random = random.Random(number)
        self._model, self._port, self._pause, self._tally, self._stop_it = model, http_port, pause, tally, stop
        self._infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        self._connection: http.client.HTTPConnection | None = None
        self._asked = 0

    def run(self) -> None:
        """Ask until told to stop."""
        calls: dict[str, Callable[[], tuple[Any, str]]] = {
            "rest": self._rest, "grpc": self._grpc, "jpeg": self._jpeg, "hang_up": self._hang_up,
            "cancel": self._cancel, "nonsense": self._nonsense, "oversize": self._oversize,
        }  # fmt: skip
        while not self._stop_it.wait(self._random.expovariate(1 / self._pause)):
            kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
            self._asked += 1
            started = time.perf_counter()
            try:
                status, fault = calls[kind]()
            except Exception as error:  # noqa: BLE001 - whatever it is, the request has no answer
                status, fault = "lost", f"{kind}: {type(error).__name__}: {error}"
                self._connection = None
            self._tally.note(kind, status, time.perf_counter() - started, fault)

    def _pick(self) -> tuple[list[int], np.ndarray, str]:
        """Return (rows, their tensor, an id that no other request has)."""
        picked = self._random.choices(range(ROWS), k=self._random.randint(1, MOST_ROWS))
        return picked, self._model.rows[picked], f"{self.name}-{self._asked}-{'-'.join(map(str, picked))}"

    def _check(self, picked: list[int], wanted: str, found: str, data: bytes) -> str:
        expected = self._model.expected[picked]
        if found != wanted:
            return f"request {wanted} got the answer to {found}"
        if len(data) != expected.nbytes:
            return f"request {wanted} got {len(data)} bytes"
        error = float(np.abs(np.frombuffer(data, np.float32).reshape(expected.shape) - expected).max())
        return "" if error < TOLERANCE else f"request {wanted} is off by {error:.3g}"

    def _post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, http.client.HTTPResponse]:
        """Return (status, body, response) on the one connection, on which nothing may be left over."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2 * TIMEOUT_SECONDS)
        elif self._connection.sock and select.select([self._connection.sock], [], [], 0)[0]:
            if self._connection.sock.recv(1):
                raise AssertionError("an answer that was not asked for")
            self._connection.close()  # the server has let an idle connection go
        self._connection.request("POST", path, body, headers)
        response = self._connection.getresponse()
        return response.status, response.read(), response

    def _binary(self, x: np.ndarray, request_id: str) -> tuple[bytes, dict[str, str]]:
        tensor = {"name": self._model.input, "shape": list(x.shape), "datatype": "FP32"}
        tensor["parameters"] = {"binary_data_size": x.nbytes}
        timeout = {"timeout": round(1e6 * TIMEOUT_SECONDS), "binary_data_output": True}
        head = json.dumps({"id": request_id, "inputs": [tensor], "parameters": timeout}).encode()
        return head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))}

    def _rest(self) -> tuple[Any, str]:
        picked, x, request_id = self._pick()
        status, body, response = self._post(f"/v2/models/{self._model.name}/infer", *self._binary(x, request_id))
        if status != 200:
            return status, ""
        length = int(response.headers["Inference-Header-Content-Length"])
        return status, self._check(picked, request_id, json.loads(body[:length]).get("id", ""), body[length:])

    def _message(self, x: np.ndarray, request_id: str) -> bytes:
        message = message_classes()["ModelInferRequest"](
            model_name=self._model.name, id=request_id, raw_input_contents=[x.tobytes()]
        )
        message.inputs.add(name=self._model.input, datatype="FP32", shape=x.shape)
        return bytes(message.SerializeToString())

    def _grpc(self) -> tuple[Any, str]:
        picked, x, request_id = self._pick()
        try:
            data = self._infer(self._message(x, request_id), timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            return error.code(), ""
        answer = message_classes()["ModelInferResponse"].FromString(data)
        return grpc.StatusCode.OK, self._check(picked, request_id, answer.id, answer.raw_output_contents[0])

    def _jpeg(self) -> tuple[Any, str]:
        picture, index, probability = self._random.choice(self._model.pictures)
        status, body, _ = self._post(
            f"/v1/classify?model={self._model.name}&top=1", picture, {"Content-Type": "image/jpeg"}
        )
        if status != 200:
            return status, ""
        best = json.loads(body)["classes"][0]
        right = best["index"] == index and abs(best["probability"] - probability) < TOLERANCE
        return status, "" if right else f"a picture of class {index} ({probability:.4f}) is said to be {best}"

    def _hang_up(self) -> tuple[Any, str]:
        """Send a request, and go before the answer comes."""
        body, headers = self._binary(*self._pick()[1:])
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        connection.request("POST", f"/v2/models/{self._model.name}/infer", body, headers)
        connection.close()
        return "gone", ""

    def _cancel(self) -> tuple[Any, str]:
        call = self._infer.future(self._message(*self._pick()[1:]), timeout=TIMEOUT_SECONDS)
        time.sleep(self._random.uniform(0, 0.01))
        call.cancel()
        return "gone", ""

    def _nonsense(self) -> tuple[Any, str]:
        body = self._random.randbytes(self._random.randint(1, 2000))
        headers = self._random.choice([{}, {"Inference-Header-Content-Length": "7"}])
        status, _, _ = self._post(f"/v2/models/{self._model.name}/infer", body, headers)
        return status, "" if status == 400 else f"nonsense was answered with {status}"

    def _oversize(self) -> tuple[Any, str]:
        """Announce more than is taken; the server answers at once and closes."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        connection.putrequest("POST", f"/v2/models/{self._model.name}/infer")
        connection.putheader("Content-Length", str(1 << 30))
        connection.endheaders(b"{")
        status = connection.getresponse().status
        connection.close()
        return status, "" if status == 413 else f"1 GiB was answered with {status}"


@dataclasses.dataclass
class Watched:
    """One server, and what its processes took.

    Attributes:
        samples: (minutes, bytes of the front process, bytes of its workers, its open files).
        kills: workers that were killed.
    """

    pid: int
    started: float
    samples: list[tuple[float, int, int, int]] = dataclasses.field(default_factory=list)
    kills: int = 0

    def workers(self) -> list[int]:
        """Return the pids of the server's children."""
        found = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in (task / "children").read_text().split()]
        return found

    def sample(self) -> None:
        """Note what is taken now."""
        workers = sum(resident_bytes(pid) for pid in self.workers())
        files = len(os.listdir(f"/proc/{self.pid}/fd"))
        self.samples.append(((time.monotonic() - self.started) / 60, resident_bytes(self.pid), workers, files))

    def kill_one(self, generator: random.Random) -> None:
        """End a worker as the system ends one that takes too much memory."""
        if workers := self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(generator.choice(workers), signal.SIGKILL)
                self.kills += 1


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, 0 for one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def growth(minutes: list[float], values: list[int]) -> dict[str, float]:
    """Return the slope of the last two thirds of the samples, and whether that is growth."""
    first = len(values) // 3
    x, y = np.array(minutes[first:]), np.array(values[first:], float)
    slope = float(np.polyfit(x, y, 1)[0])
    gained = slope * float(x[-1] - x[0])
    limit = max(GROWTH_BYTES, GROWTH_SHARE * float(y.mean()))
    grows = gained > limit and minutes[-1] >= JUDGED_MINUTES
    return {"bytes_per_hour": 60 * slope, "bytes_gained": gained, "limit": limit, "grows": grows}


@contextlib.contextmanager
def server(named: dict[str, Path], instances: int) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """Run `mlpdeploy serve` on free ports; yields (process, HTTP port, gRPC address)."""
    command = [sys.executable, "-m", "mlpdeploy", "serve", *(f"{name}={path}" for name, path in named.items())]
    command += ["--json", "--no-access-log", "--http-port", "0", "--grpc-port", "0", "--instances", str(instances)]
    command += ["--timeout-ms", str(1000 * TIMEOUT_SECONDS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield process, int(ready["http"].rpartition(":")[2]), ready["grpc"]
    finally:
        process.terminate()
        process.wait(60)


def soak(models: list[Model], process: subprocess.Popen[str], http_port: int, address: str,
         chosen: argparse.Namespace, stop: threading.Event) -> dict[str, Any]:  # fmt: skip
    """Run the clients for the chosen time and return what was seen."""
    watched, tally = Watched(process.pid, time.monotonic()), Tally(bool(chosen.kill_every))
    channel = grpc.insecure_channel(address)
    clients = [
        Client(1000 * place + number, model, http_port, channel, chosen.clients / model.rate, tally, stop)
        for place, model in enumerate(models)
        for number in range(chosen.clients)
    ]
    for client in clients:
        client.start()
    generator = random.Random(0)
    end = watched.started + 60 * chosen.minutes
    sample_at = kill_at = watched.started
    kill_at += chosen.kill_every or 1e9
    while not stop.is_set() and (now := time.monotonic()) < end and process.poll() is None:
        if now >= sample_at:
            watched.sample()
            sample_at = now + 60 * chosen.minutes / SAMPLES
        if now >= kill_at:
            watched.kill_one(generator)
            kill_at = now + chosen.kill_every * generator.uniform(0.5, 1.5)
        stop.wait(max(0.0, min(sample_at, kill_at, end) - time.monotonic()))
    stop.set()
    for client in clients:
        client.join(2 * TIMEOUT_SECONDS + GRACE_SECONDS)
        if client.is_alive():
            tally.note("client", "hangs", 0.0, f"{client.name} has no answer yet")
    if process.poll() is not None:
        tally.note("server", "ended", 0.0, f"the server ended with status {process.returncode}")
    channel.close()
    return result(watched, tally, bool(chosen.kill_every))


def result(watched: Watched, tally: Tally, kills: bool) -> dict[str, Any]:
    """Return what a run has shown; workers that are killed anew all the time have no slope of memory."""
    minutes, front, workers, files = (list(column) for column in zip(*watched.samples, strict=True))
    memory = {"front": growth(minutes, front)} | ({} if kills else {"workers": growth(minutes, workers)})
    grown = [name for name, figures in memory.items() if figures["grows"]]
    return {
        "minutes": minutes[-1],
        "requests": sum(tally.counts.values()),
        "by_kind_and_status": dict(sorted(tally.counts.items())),
        "slowest_s": tally.slowest,
        "kills": watched.kills,
        "faults": len(tally.faults),
        "first_faults": tally.faults[:20],
        "memory": memory,
        "passed": not tally.faults and not grown,
        "samples": {"minutes": minutes, "front_bytes": front, "workers_bytes": workers, "front_files": files},
    }


def plot(samples: dict[str, list[float]], path: Path) -> None:
    """Draw the memory of the front process and of the workers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    for name in ("front", "workers"):
        axes.plot(samples["minutes"], np.array(samples[f"{name}_bytes"]) / 2**20, label=name)
    axes.set_xlabel("minutes")
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--kill-every", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--load", type=float, default=0.25, help="processors to keep busy, roughly")
    parser.add_argument("--clients", type=int, default=4, help="for each model")
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    output = (
        chosen.output or Path(__file__).parent / "results" / f"serving_{'kills' if chosen.kill_every else 'soak'}.json"
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    named = {name: Path(path) for name, _, path in (text.partition("=") for text in chosen.artifacts)}
    models = []
    for name, path in named.items():
        with load(path, share_processors=True) as session:
            models.append(known_answers(name, session, chosen.load / len(named)))
    with server(named, chosen.instances) as (process, http_port, address):
        seen = soak(models, process, http_port, address, chosen, stop)
    body = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "machine": machine(),
        "tools": tool_versions(("numpy", "onnxruntime", "uvicorn", "grpc", "PIL")),
        "options": {key: value for key, value in vars(chosen).items() if key not in ("artifacts", "output")},
        "requests_per_second": {model.name: model.rate for model in models},
        **seen,
    }
    write_file(output, (json.dumps(body, indent=1) + "\n").encode())
    plot(seen["samples"], output.with_suffix(".png"))
    print(json.dumps({key: value for key, value in body.items() if key != "samples"}, indent=1))
    sys.exit(0 if seen["passed"] else 1)


if __name__ == "__main__":
    main()
