"""The C++ library beside Python's session. Writes results/cpp.json.

Run with: make cpp && python benchmarks/cpp.py [--model asmlp_t] [--pairs 60]

Two things: the time of a C++ call beyond ONNX Runtime's own run of the same row (a small model, where it would show),
and images per second of both sessions on the same tensors. They take turns in one process, run by run and in changing
order, so that a slow second of the machine hits both; what counts is the ratio of each pair, its median over the pairs
and the interval in which that median lies with 95 % probability. The call of C++ from Python is in C++'s time.
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
from mlpdeploy.env import git_commit, machine, tool_versions
from mlpdeploy.runtime.session import load

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cpp"))
from native import NativeSession  # noqa: E402 (the tests' own view of the C interface)

BUILD = ROOT / "build" / "cpp-release"
BATCHES = (1, 8)
PARTS = ("call_overhead", "throughput")
SETTLE_SECONDS = 0.02  # as in mlpdeploy/bench/measure.py
SMALL = "asmlp"  # of tests/cpp/artifacts.py: a run of some 0.1 ms


def run(*command: object) -> str:
    """Return what a command prints, or stop with its error."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return done.stdout


def one_turn(call: Callable[[], object]) -> float:
    """Return the milliseconds of one run, after others that are not timed: the other session's threads rest by then."""
    settled = time.perf_counter() + SETTLE_SECONDS
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


def throughput(artifact: Path, pairs: int) -> list[dict[str, Any]]:
    """Return one entry per batch size: medians of both, and how much faster C++ is."""
    native, results = NativeSession(BUILD, artifact), []
    with load(artifact) as session:
        for batch in BATCHES:
            feeds = session.random_feeds(batch)
            wanted, outputs = session.run(feeds), session.run(feeds)
            if any(wanted[name].tobytes() != array.tobytes() for name, array in native.run(feeds, outputs).items()):
                sys.exit(f"{artifact.name}, batch {batch}: the outputs differ")
            calls = (partial(native.run, feeds, outputs), partial(session.run, feeds, outputs))
            times: list[tuple[float, float]] = []
            for index in range(pairs):
                turns = [one_turn(call) for call in (calls if index % 2 else calls[::-1])]
                times.append((turns[0], turns[1]) if index % 2 else (turns[1], turns[0]))
            ratios = [python / cpp for cpp, python in times]
            results.append(
                {
                    "batch": batch,
                    "pairs": pairs,
                    "cpp_images_per_s": batch * 1000 / statistics.median(cpp for cpp, _ in times),
                    "python_images_per_s": batch * 1000 / statistics.median(python for _, python in times),
                    "cpp_over_python": statistics.median(ratios),
                    "interval_95": interval_of_median(ratios),
                    "equal_bits": True,
                }
            )
            print(artifact.name, results[-1], file=sys.stderr)
    native.close()
    return results


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="[default: asmlp_t and vip_s7]")
    parser.add_argument("--pairs", type=int, default=60, help="of runs, per model and batch size")
    parser.add_argument("--part", choices=PARTS, action="append", help="[default: both]; the other stays in the file")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "cpp.json")
    options = parser.parse_args()
    if not (BUILD / "mlpdeploy-infer").exists():
        sys.exit("the C++ program is not built; run: make cpp")
    parts = options.part or PARTS
    origin = {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": machine(),
        "tools": tool_versions(["onnxruntime"]),
    }
    result: dict[str, Any] = {} if len(parts) == len(PARTS) else json.loads(options.output.read_text())
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
        if "throughput" in parts:
            result["throughput"] = {**origin, "models": {}}
            for model in options.model or ["asmlp_t", "vip_s7"]:
                artifact = Path(scratch, model)
                run(sys.executable, "-m", "mlpdeploy", "export", "--model", model, "-o", artifact)
                result["throughput"]["models"][model] = throughput(artifact, options.pairs)
    write_file(options.output, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
