"""What serving costs before any protocol: `ServedModel.infer` beside `Session.run`. Writes results/serving_core.json.

Run with: python benchmarks/serving_core.py ARTIFACT [ARTIFACT ...] [--rounds 5] [--seconds 5]

Per artifact, in turns, so that a slow minute of the machine hits all: one row by the session in this process and by the
served model (the difference is the overhead); the session's batches of several sizes (the best is what serving is
compared with); a closed loop of clients with one row each. The clients run in the event loop that serves.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlpdeploy import load
from mlpdeploy.artifact import write_file
from mlpdeploy.bench.measure import percentile
from mlpdeploy.env import cpu_count, git_commit, machine, tool_versions
from mlpdeploy.manifest import read_manifest
from mlpdeploy.runtime.feeds import Arrays
from mlpdeploy.runtime.session import Session
from mlpdeploy.serving.model import ServedModel
from mlpdeploy.serving.options import ServeOptions

BATCHES = (1, 2, 4, 8, 16, 32)
RESULTS = Path(__file__).parent / "results" / "serving_core.json"


def session_rate(session: Session, feeds: Arrays, seconds: float) -> tuple[float, float]:
    """Return (rows per second, median seconds of a run) of a session that is called again and again."""
    rows = len(next(iter(feeds.values())))
    session.run(feeds)
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(feeds)
        times.append(time.perf_counter() - start)
    return rows * len(times) / sum(times), statistics.median(times)


async def one_row(session: Session, model: ServedModel, feeds: Arrays, seconds: float) -> tuple[float, float]:
    """Return the median milliseconds of one row by the session and by the served model."""
    _, alone = session_rate(session, feeds, seconds)
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        await model.infer(feeds)
        times.append(time.perf_counter() - start)
    return alone * 1000, statistics.median(times) * 1000


async def closed_loop(model: ServedModel, feeds: Arrays, clients: int, seconds: float) -> dict[str, Any]:
    """Return the rate and latencies of clients that each send one row and wait for its answer."""
    latencies: list[float] = []
    before = Counter(model.stats.batches)

    async def client(end: float) -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            await model.infer(feeds, timeout=120.0)
            latencies.append(time.perf_counter() - start)

    began = time.perf_counter()
    await asyncio.gather(*(client(began + seconds) for _ in range(clients)))
    took = time.perf_counter() - began
    return {
        "rows_per_s": len(latencies) / took,
        "p50_ms": percentile(latencies, 50) * 1000,
        "p99_ms": percentile(latencies, 99) * 1000,
        "batches": dict(sorted((model.stats.batches - before).items())),
    }


async def measure(directory: Path, options: ServeOptions, clients: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return what was measured of one artifact; see the module's text."""
    manifest = read_manifest(directory)
    model = await ServedModel.start("model", "1", directory, manifest, options)
    try:
        with load(directory, options.backend, options.device) as session:
            feeds = {batch: session.random_feeds(batch) for batch in {*BATCHES, model.max_batch}}
            single, rates, batch_seconds, loops = [], [], [], []
            for _ in range(rounds):
                single.append(await one_row(session, model, feeds[1], seconds / 2))
                rates.append({batch: session_rate(session, feeds[batch], seconds / 6)[0] for batch in BATCHES})
                batch_seconds.append(session_rate(session, feeds[model.max_batch], seconds / 6)[1])
                loops.append(await closed_loop(model, feeds[1], clients, seconds))
    finally:
        await model.close()
    best = [max(rate.values()) for rate in rates]
    middle = statistics.median
    return {
        "artifact": manifest.model["name"],
        "precision": manifest.precision,
        "max_batch": model.max_batch,
        "clients": clients,
        "session_one_row_p50_ms": middle(alone for alone, _ in single),
        "served_one_row_p50_ms": middle(served for _, served in single),
        "overhead_p50_ms": middle(served - alone for alone, served in single),
        "session_rows_per_s": {batch: middle(rate[batch] for rate in rates) for batch in BATCHES},
        "session_batch_ms": middle(batch_seconds) * 1000,
        "closed_loop_rows_per_s": middle(loop["rows_per_s"] for loop in loops),
        "closed_loop_over_best_session": middle(
            loop["rows_per_s"] / rate for loop, rate in zip(loops, best, strict=True)
        ),
        "closed_loop_p50_ms": middle(loop["p50_ms"] for loop in loops),
        "closed_loop_p99_ms": middle(loop["p99_ms"] for loop in loops),
        "rounds": loops,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--max-batch", type=int)
    parser.add_argument("--max-delay-ms", type=float, default=ServeOptions.max_delay_ms)
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    options = ServeOptions(
        max_batch=chosen.max_batch, max_delay_ms=chosen.max_delay_ms, instances=chosen.instances, timeout_ms=120_000
    )
    results = []
    for directory in chosen.artifacts:
        results.append(asyncio.run(measure(directory, options, chosen.clients, chosen.rounds, chosen.seconds)))
        print(json.dumps({key: value for key, value in results[-1].items() if key != "rounds"}, indent=1))
    body = {
        "what": __doc__.splitlines()[0] if __doc__ else "",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "machine": machine(),
        "versions": tool_versions(("numpy", "onnxruntime")),
        "threads": cpu_count(),
        "load_average_before": os.getloadavg(),
        "options": dataclasses.asdict(options),
        "results": results,
    }
    write_file(chosen.output, (json.dumps(body, indent=1, default=str) + "\n").encode())


if __name__ == "__main__":
    main()
