"""The C++ library beside Python's session. Writes results/cpp.json.

Run with: make cpp && python benchmarks/cpp.py [--part throughput --model asmlp_t --batch 8]

Two things: the time of a C++ call beyond ONNX Runtime's own run of the same row (a small model, where it would show),
and images per second of both sessions on the same tensors.

Where the weights come to lie in memory makes a session some percent faster or slower for as long as it lives, and the
first one that a process loads is often the slower one: so one load of each says little, however often it runs. Each
load is a process of its own with two sessions of each kind, in changing order. They take turns run by run, in random
order, so that a slow second of the machine hits all. A load's ratio is the
median over its rounds of Python's time over C++'s, both of them the sum of two sessions; what counts is the median
over the loads, and the interval in which that median lies with 95 % probability. The two sessions of a kind beside each
other say what the method sees where there is nothing to see: `same_kind`. The call of C++ from Python is in C++'s time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.artifact import write_file
from mlpdeploy.bench.measure import SETTLE_NS
from mlpdeploy.env import git_commit, machine, tool_versions
from mlpdeploy.runtime.loading import load

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cpp"))
from native import NativeSession  # noqa: E402 (the tests' own view of the C interface)

BUILD = ROOT / "build" / "cpp-release"
BATCHES = (1, 8)
ORDERS = ("cppc", "pccp", "ccpp", "ppcc", "cpcp", "pcpc")  # in which the sessions are loaded: C++, Python
PARTS = ("call_overhead", "throughput")
SMALL = "asmlp"  # of tests/cpp/artifacts.py: a run of some 0.1 ms


def run(*command: object) -> str:
    """Return what a command prints, or stop with its error."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return done.stdout


def one_turn(call: Callable[[], object]) -> float:
    """Return the milliseconds of one run, after others that are not timed: the other session's threads rest by then."""
    settled = time.perf_counter() + SETTLE_NS / 1e9
    while True:
        call()
        if time.perf_counter() >= settled:
            break
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def interval_of_median(values: list[float]) -> list[float]:
    """Return the bounds between which the median lies with 95 % probability, by bootstrap."""
    generator = np.random.default_rng(0)
    samples = generator.choice(np.array(values), (2000, len(values)))
    return [float(bound) for bound in np.percentile(np.median(samples, axis=1), [2.5, 97.5])]


def one_load(artifact: Path, batch: int, rounds: int, order: str) -> list[list[float]]:
    """Return the milliseconds of every round of each session, in the order in which they were loaded."""
    sessions = [NativeSession(BUILD, artifact) if kind == "c" else load(artifact) for kind in order]
    python = sessions[order.index("p")]
    feeds = python.random_feeds(batch)
    wanted, outputs = python.run(feeds), python.run(feeds)
    calls: list[Callable[[], dict[str, np.ndarray]]] = [
        partial(session.run, feeds, outputs) if kind == "c" else partial(session.run, feeds)
        for session, kind in zip(sessions, order, strict=True)
    ]
    for call in (*calls, *calls):
        if any(wanted[name].tobytes() != array.tobytes() for name, array in call().items()):
            sys.exit(f"{artifact.name}, batch {batch}: the outputs differ")
    times: list[list[float]] = [[] for _ in order]
    for index in range(rounds):
        turns = list(range(len(order)))
        first = index % len(turns)
        turns = turns[first:] + turns[:first]
        for turn in turns if index // len(turns) % 2 == 0 else reversed(turns):
            times[turn].append(one_turn(calls[turn]))
    return times


def compared(order: str, times: list[list[float]]) -> dict[str, float]:
    """Return the ratios of one load: Python's time over C++'s, and in each kind that of its first session."""
    cpp, python = (np.array([one for kind, one in zip(order, times, strict=True) if kind == which]) for which in "cp")
    ratios = {"cpp_over_python": python.sum(0) / cpp.sum(0), "cpp": cpp[0] / cpp[1], "python": python[0] / python[1]}
    medians = {"cpp_ms": cpp, "python_ms": python}
    return {name: float(np.median(values)) for name, values in (ratios | medians).items()}


def throughput(artifact: Path, batch: int, loads: int, rounds: int) -> dict[str, Any]:
    """Return how much faster C++ is, and both medians; each load in a process of its own."""
    found = []
    for index in range(loads):
        order = ORDERS[index % len(ORDERS)]
        words = ("--load", artifact, "--batch", batch, "--rounds", rounds, "--order", order)
        found.append(compared(order, json.loads(run(sys.executable, __file__, *words))))
        print(artifact.name, batch, order, found[-1], file=sys.stderr)
    column = {name: [one[name] for one in found] for name in found[0]}
    return {
        "batch": batch,
        "loads": loads,
        "rounds": rounds,
        "cpp_images_per_s": batch * 1000 / statistics.median(column["cpp_ms"]),
        "python_images_per_s": batch * 1000 / statistics.median(column["python_ms"]),
        "cpp_over_python": statistics.median(column["cpp_over_python"]),
        "interval_95": interval_of_median(column["cpp_over_python"]),
        "of_each_load": [round(value, 4) for value in column["cpp_over_python"]],
        "same_kind": {kind: [round(value, 4) for value in column[kind]] for kind in ("cpp", "python")},
        "equal_bits": True,
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="[default: asmlp_t and vip_s7]")
    parser.add_argument("--batch", action="append", type=int, help="[default: 1 and 8]")
    parser.add_argument("--loads", type=int, default=12, help="processes, per model and batch size")
    parser.add_argument("--rounds", type=int, default=6, help="of runs, per process")
    parser.add_argument("--part", choices=PARTS, action="append", help="[default: both]")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "cpp.json")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # one process of `throughput`
    parser.add_argument("--order", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (BUILD / "mlpdeploy-infer").exists():
        sys.exit("the C++ program is not built; run: make cpp")
    if options.load is not None:
        print(json.dumps(one_load(options.load, options.batch[0], options.rounds, options.order)))
        return
    parts = options.part or PARTS
    origin = {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": machine(),
        "tools": tool_versions(["onnxruntime"]),
    }
    # What is not measured now stays in the file, with its own date.
    result: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        if "call_overhead" in parts:
            run(sys.executable, ROOT / "tests" / "cpp" / "artifacts.py", scratch)
            overheads = [json.loads(run(BUILD / "tests" / "call_overhead", Path(scratch, SMALL))) for _ in range(5)]
            result["call_overhead"] = {
                **origin,
                "runs": [overhead["overhead_us"] for overhead in overheads],
                "overhead_us": statistics.median(overhead["overhead_us"] for overhead in overheads),
                "backend_us": statistics.median(overhead["backend_us"] for overhead in overheads),
            }
        for model in (options.model or ["asmlp_t", "vip_s7"]) if "throughput" in parts else []:
            artifact = Path(scratch, model)
            run(sys.executable, "-m", "mlpdeploy", "export", "--model", model, "-o", artifact)
            for batch in options.batch or BATCHES:
                entry = {**origin, **throughput(artifact, batch, options.loads, options.rounds)}
                result.setdefault("throughput", {}).setdefault(model, {})[str(batch)] = entry
    write_file(options.output, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
