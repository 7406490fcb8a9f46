"""Peak memory and load time of one candidate, measured in a process of its own.

    python -m mlpdeploy.bench.memory --loader artifact --shape 1,3,224,224 --threads 2 asmlp_s

loads the model, runs one batch and prints one line of JSON. Every candidate imports the same: ONNX Runtime, no PyTorch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.bench.candidates import Source
from mlpdeploy.bench.peers import LOADERS, import_runtime

REPEATS = 3
RUNS = 3
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class MemoryUse:
    """What a process needs, from several that did the same one after another.

    Attributes:
        name: the candidate's.
        batch: rows of the run.
        load_ms: from a path to a session, median; for an artifact this includes the comparison of its checksum.
        first_run_ms: the first run, which allocates, median.
        base_rss_bytes: resident before the model was loaded: the interpreter, numpy, ONNX Runtime; the largest.
        peak_rss_bytes: the largest resident size from start to end (VmHWM) of any: a busy machine takes pages back.
        reason: why there are no figures; empty where there are.
    """

    name: str
    batch: int
    load_ms: float | None = None
    first_run_ms: float | None = None
    base_rss_bytes: int | None = None
    peak_rss_bytes: int | None = None
    reason: str = ""


def measure_memory(
    name: str,
    source: Source,
    shape: Sequence[int],
    threads: int,
    *,
    repeats: int = REPEATS,
    timeout_s: float = TIMEOUT_S,
) -> MemoryUse:
    """Return the figures of one candidate at one batch; where a process fails, the reason.

    Args:
        name: the candidate's.
        source: what the process loads.
        shape: of the input, (N, C, H, W).
        threads: of one run.
        repeats: processes.
        timeout_s: after which a process is ended.
    """
    command = [sys.executable, "-m", "mlpdeploy.bench.memory", "--loader", source.loader]
    command += ["--shape", ",".join(map(str, shape)), "--threads", str(threads)]
    command += ["--dtype", source.dtype, str(source.path.resolve())]
    # The package may be imported from a checkout that is not installed.
    root = Path(__file__).resolve().parents[2]
    figures = []
    for _ in range(repeats):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=root, check=False)
        except subprocess.TimeoutExpired:
            return MemoryUse(name, shape[0], reason=f"not ready after {timeout_s:g} s")
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return MemoryUse(name, shape[0], reason=f"the process ended with {done.returncode} ({last})")
        figures.append(json.loads(done.stdout.splitlines()[-1]))
    return summarize(name, shape[0], figures)


def summarize(name: str, batch: int, figures: Sequence[dict[str, Any]]) -> MemoryUse:
    """Return one record of what several processes printed."""
    times = {key: statistics.median(one[key] for one in figures) for key in ("load_ms", "first_run_ms")}
    if any(one["peak_rss_bytes"] is None for one in figures):
        return MemoryUse(name, batch, **times, reason="this system tells no peak memory")
    sizes = {key: max(one[key] for one in figures) for key in ("base_rss_bytes", "peak_rss_bytes")}
    return MemoryUse(name, batch, **times, **sizes)


def status_bytes(field: str) -> int | None:
    """Return a size of this process from /proc/self/status (`VmHWM`, `VmRSS`), or None where there is none.

    Not `getrusage`: on Linux its maximum begins with that of the process which started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(sizes[0]) * 1024 if sizes else None


def load_and_run(source: Source, shape: Sequence[int], threads: int) -> dict[str, float | int | None]:
    """Return the figures of this process after loading and a few runs; see `MemoryUse` for the names.

    More than one run, because ONNX Runtime plans its memory in the first one and takes it in the second.
    """
    import_runtime()
    batch = np.random.default_rng(0).standard_normal(tuple(shape), dtype=np.float32).astype(source.dtype)
    base = status_bytes("VmRSS")
    start = time.perf_counter()
    run = LOADERS[source.loader](source.path, threads, shape[0])
    loaded = time.perf_counter()
    run(batch)
    ran = time.perf_counter()
    for _ in range(RUNS - 1):
        run(batch)
    return {
        "load_ms": (loaded - start) * 1000,
        "first_run_ms": (ran - loaded) * 1000,
        "base_rss_bytes": base,
        "peak_rss_bytes": status_bytes("VmHWM"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure this process and print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m mlpdeploy.bench.memory")
    parser.add_argument("path", type=Path)
    parser.add_argument("--loader", choices=sorted(LOADERS), required=True)
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split(","))), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args(arguments)
    source = Source(given.loader, given.path, given.dtype)
    sys.stdout.write(json.dumps(load_and_run(source, given.shape, given.threads)) + "\n")


if __name__ == "__main__":
    main()
