"""The C++ library beside Python's session. Writes results/cpp.json.

Run with: make cpp && python benchmarks/cpp.py [--model asmlp_t] [--rounds 5]

Two things: the time of a C++ call beyond ONNX Runtime's own run of the same row (a small model, where it would show),
and images per second of `mlpdeploy-infer bench` and `mlpdeploy bench`. The two programs take turns, a few seconds each,
so that a slow minute of the machine hits both; the ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import write_file
from mlpdeploy.env import git_commit, machine, tool_versions

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "cpp-release"
BATCHES = (1, 8)
SMALL = "asmlp"  # of tests/cpp/artifacts.py: a run of some 0.1 ms


def run(*command: object) -> str:
    """Return what a command prints, or stop with its error."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return done.stdout


def images_per_s(output: str) -> dict[int, float]:
    return {result["batch"]: result["timing"]["images_per_s"] for result in json.loads(output)["results"]}


def throughput(artifact: Path, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Return one entry per batch size: medians of both, and the median of the rounds' ratios."""
    batches = [word for batch in BATCHES for word in ("--batch", batch)]
    cpp = (BUILD / "mlpdeploy-infer", "bench", artifact, *batches, "--seconds", seconds, "--json")
    python = (sys.executable, "-m", "mlpdeploy", "bench", artifact, *batches, "--seconds", seconds)
    rows: dict[int, list[tuple[float, float]]] = {batch: [] for batch in BATCHES}
    for index in range(rounds):
        commands = [cpp, (*python, "--peer", "none", "--no-memory", "--json")]
        outputs = [run(*command) for command in (commands if index % 2 else commands[::-1])]
        ours, theirs = map(images_per_s, outputs if index % 2 else outputs[::-1])
        for batch in BATCHES:
            rows[batch].append((ours[batch], theirs[batch]))
        print(f"round {index + 1} of {rounds}", file=sys.stderr)
    return [
        {
            "batch": batch,
            "cpp_images_per_s": statistics.median(ours for ours, _ in pairs),
            "python_images_per_s": statistics.median(theirs for _, theirs in pairs),
            "cpp_over_python": statistics.median(ours / theirs for ours, theirs in pairs),
            "ratios": [ours / theirs for ours, theirs in pairs],
        }
        for batch, pairs in rows.items()
    ]


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="[default: asmlp_t and vip_s7]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each program per batch size and round")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "cpp.json")
    options = parser.parse_args()
    if not (BUILD / "mlpdeploy-infer").exists():
        sys.exit("the C++ program is not built; run: make cpp")
    result: dict[str, Any] = {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": machine(),
        "tools": tool_versions(["onnxruntime"]),
    }
    with tempfile.TemporaryDirectory() as scratch:
        run(sys.executable, ROOT / "tests" / "cpp" / "artifacts.py", scratch)
        overheads = [json.loads(run(BUILD / "tests" / "call_overhead", Path(scratch, SMALL))) for _ in range(5)]
        result["call_overhead"] = {
            "runs": [overhead["overhead_us"] for overhead in overheads],
            "overhead_us": statistics.median(overhead["overhead_us"] for overhead in overheads),
            "backend_us": statistics.median(overhead["backend_us"] for overhead in overheads),
        }
        result["throughput"] = {}
        for model in options.model or ["asmlp_t", "vip_s7"]:
            artifact = Path(scratch, model)
            run(sys.executable, "-m", "mlpdeploy", "export", "--model", model, "-o", artifact)
            result["throughput"][model] = throughput(artifact, options.rounds, options.seconds)
    write_file(options.output, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps({key: result[key] for key in ("call_overhead", "throughput")}, indent=1))


if __name__ == "__main__":
    main()
