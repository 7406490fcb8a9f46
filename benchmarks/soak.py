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
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from soak_clients import GRACE_SECONDS, TIMEOUT_SECONDS, Client, Model, Tally, known_answers

from mlpdeploy import load
from mlpdeploy.artifact import write_file
from mlpdeploy.env import git_commit, machine, tool_versions

SAMPLES = 240
JUDGED_MINUTES = 5.0  # a shorter run is over before everything has been allocated
GROWTH_BYTES, GROWTH_SHARE = 8 << 20, 0.05  # more than both in the watched time is growth


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
