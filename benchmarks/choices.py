"""The measurements behind three defaults: the shift's form on the CPU, and how streams share a batch out.

Writes results/choices.json. Run with: python benchmarks/choices.py
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy import load
from mlpdeploy.artifact import write_file
from mlpdeploy.bench.measure import Candidate, measure_interleaved
from mlpdeploy.env import cpu_count, git_commit, machine, tool_versions
from mlpdeploy.export.export import export_model
from mlpdeploy.runtime import onnxruntime as backend
from mlpdeploy.runtime import session as session_module

MODEL = "asmlp_t"
ROWS = 8
SHARED = (6, 10, 14, 20)  # batches whose shares end in the middle of two rows, or do not
Run = Callable[[np.ndarray], list[np.ndarray]]


def shift_forms(scratch: Path, seconds: float) -> list[dict[str, Any]]:
    """Return timings of the lowered model with each form of the shift, and of the canonical one, at batch 1 and 8."""
    sessions = {}
    for form in ("conv", "slice"):
        export_model(MODEL, scratch / form, shift=form, verify=False)
        sessions[form] = load(scratch / form)
    sessions["canonical"] = load(scratch / "conv", role="canonical")

    def run(session: Any) -> Run:
        return lambda x: list(session.run({"input": x}).values())

    candidates = [Candidate(name, run(session)) for name, session in sessions.items()]
    timings = []
    for batch in (1, ROWS):
        feed = sessions["conv"].random_feeds(batch)["input"]
        timings += measure_interleaved(candidates, [feed], baseline="conv", seconds=seconds)
    return [dataclasses.asdict(timing) for timing in timings]


def rows_per_stream(scratch: Path, seconds: float) -> list[dict[str, Any]]:
    """Return timings of a batch of 8 in one run of all threads, and in streams that take 1, 2 or 4 rows at once."""
    default = session_module.ROWS_PER_STREAM_RUN
    with load(scratch / "conv") as session:
        feed = session.random_feeds(ROWS)["input"]
        whole = backend.inference_session(scratch / "conv" / "model.cpu.onnx")

        def streams(rows: int) -> Run:
            def run(x: np.ndarray) -> list[np.ndarray]:
                session_module.ROWS_PER_STREAM_RUN = rows
                return list(session.run({"input": x}).values())

            return run

        candidates = [Candidate("one run of all threads", lambda x: list(whole.run(None, {"input": x})))]
        candidates += [Candidate(f"streams of {rows}", streams(rows)) for rows in (1, 2, 4)]
        timings = measure_interleaved(candidates, [feed], baseline="streams of 2", seconds=seconds)
    session_module.ROWS_PER_STREAM_RUN = default
    return [dataclasses.asdict(timing) for timing in timings]


def shares_of_streams(scratch: Path, seconds: float) -> list[dict[str, Any]]:
    """Return timings of batches that streams take in equal shares, and two rows at a time as they come."""

    def as_they_come(rows: int, threads: int) -> list[tuple[int, int]]:
        step = min(session_module.ROWS_PER_STREAM_RUN, rows // threads)
        return [(start, min(start + step, rows)) for start in range(0, rows, step)]

    timings = []
    with load(scratch / "conv") as session:

        def runs(split: Callable[[int, int], list[tuple[int, int]]]) -> Run:
            def run(x: np.ndarray) -> list[np.ndarray]:
                backend.stream_runs = split
                return list(session.run({"input": x}).values())

            return run

        candidates = [
            Candidate("equal shares", runs(session_module.stream_runs)),
            Candidate("two rows as they come", runs(as_they_come)),
        ]
        for rows in SHARED:
            feed = session.random_feeds(rows)["input"]
            timings += measure_interleaved(candidates, [feed], baseline="equal shares", seconds=seconds)
        backend.stream_runs = session_module.stream_runs
    return [dataclasses.asdict(timing) for timing in timings]


def main() -> None:
    """Measure all and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40, help="per comparison and batch size")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "choices.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = {
            "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "git_commit": git_commit(),
            "machine": machine(),
            "threads": cpu_count(),
            "tools": tool_versions(["onnxruntime", "numpy", "torch"]),
            "model": f"{MODEL}, random weights, seed 0",
            "shift_forms": shift_forms(Path(scratch), options.seconds),
            "rows_per_stream": rows_per_stream(Path(scratch), options.seconds),
            "shares_of_streams": shares_of_streams(Path(scratch), options.seconds),
        }
    write_file(options.output, (json.dumps(result, indent=1) + "\n").encode())
    for kind in ("shift_forms", "rows_per_stream", "shares_of_streams"):
        for timing in result[kind]:
            ratio = timing["time_over_baseline"]
            print(
                f"{kind}, batch {timing['batch']}, {timing['name']}: {timing['p50_ms']:.1f} ms, {ratio:.2f}x the time"
            )


if __name__ == "__main__":
    main()
