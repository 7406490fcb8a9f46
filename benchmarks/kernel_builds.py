"""Builds of the CPU kernels against each other, on the same artifacts: what a change to them gains.

Writes results/kernel_builds.json. Run with: python benchmarks/kernel_builds.py A=LIBRARY B=LIBRARY --artifacts DIR ...

`mlpdeploy plugin build --cpu --json` names the library of a checkout. Each build runs in several processes, because how
a process gets its memory makes it a few percent faster or slower for as long as it lives. Their turns are interleaved.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy import load
from mlpdeploy.artifact import write_file
from mlpdeploy.env import git_commit, machine, tool_versions

BATCHES = (1, 8)
UNCOUNTED = 2  # runs of a turn


class Process:
    """One session in a process of its own, which runs a turn when it is told to."""

    def __init__(self, library: Path, artifact: Path, batch: int) -> None:
        command = [sys.executable, __file__, "--turns", str(artifact), str(batch)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "MLPDEPLOY_CPU_LIBRARY": str(library)},
        )
        self.ready: dict[str, Any] = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def turn(self, runs: int) -> float:
        """Return the median of some runs, in ms."""
        assert self._process.stdin is not None
        print(runs, file=self._process.stdin, flush=True)
        return float(self._read())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def take_turns(artifact: Path, batch: int) -> None:
    """Run as many times as each line of stdin says, and print the median."""
    with load(artifact) as session:
        feeds = session.random_feeds(batch, height_width=session.manifest.preprocessing.height_width)
        session.run(feeds)
        outputs = next(iter(session.run(feeds).values()))
        smaps = Path("/proc/self/smaps_rollup").read_text()
        large = int(smaps.partition("AnonHugePages:")[2].split()[0])
        ready = {"kernels": session.kernels, "large_pages_kb": large, "sum": float(np.abs(outputs).sum())}
        print(json.dumps(ready), flush=True)
        for line in sys.stdin:
            took = []
            for _ in range(UNCOUNTED + int(line)):
                started = time.perf_counter()
                session.run(feeds)
                took.append(1000 * (time.perf_counter() - started))
            print(float(np.median(took[UNCOUNTED:])), flush=True)


@contextlib.contextmanager
def processes(
    libraries: dict[str, Path], artifact: Path, batch: int, count: int
) -> Iterator[list[tuple[str, Process]]]:
    """Yield `count` processes of each build, started in turns."""
    made: list[tuple[str, Process]] = []
    try:
        for _ in range(count):
            made += [(name, Process(library, artifact, batch)) for name, library in libraries.items()]
        yield made
    finally:
        for _, process in made:
            process.close()


def compare(libraries: dict[str, Path], artifact: Path, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return each build's medians, and how many times faster the last is than the first."""
    with processes(libraries, artifact, batch, arguments.processes) as made:
        sums = [process.ready["sum"] for _, process in made]
        np.testing.assert_allclose(sums, sums[0], 1e-3)
        taken: dict[int, list[float]] = {index: [] for index in range(len(made))}
        for _ in range(arguments.rounds):
            for index in random.sample(range(len(made)), len(made)):
                taken[index].append(made[index][1].turn(arguments.runs))
    found: dict[str, Any] = {}
    for name in libraries:
        own = [index for index, (build, _) in enumerate(made) if build == name]
        found[name] = {
            "kernels": made[own[0]][1].ready["kernels"],
            "large_pages_kb": made[own[0]][1].ready["large_pages_kb"],
            "ms": float(np.median([taken[index] for index in own])),
            "ms_of_each_process": [float(np.median(taken[index])) for index in own],
        }
    first, *_, last = (found[name]["ms"] for name in libraries)
    return {"artifact": artifact.name, "batch": batch, "builds": found, "last_over_first": first / last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("builds", nargs="*", metavar="NAME=LIBRARY")
    parser.add_argument("--artifacts", nargs="+", type=Path, default=[], metavar="DIR")
    parser.add_argument("--processes", type=int, default=3, help="of each build")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--runs", type=int, default=6, help="of one turn")
    parser.add_argument("--turns", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "kernel_builds.json")
    arguments = parser.parse_args()
    if arguments.turns:
        take_turns(Path(arguments.turns[0]), int(arguments.turns[1]))
        return
    libraries = {name: Path(path).resolve() for name, _, path in (text.partition("=") for text in arguments.builds)}
    if len(libraries) < 2 or not arguments.artifacts:
        parser.error("two builds and an artifact at least")
    results = []
    for artifact in arguments.artifacts:
        for batch in BATCHES:
            results.append(compare(libraries, artifact, batch, arguments))
            each = ", ".join(f"{name} {one['ms']:.2f} ms" for name, one in results[-1]["builds"].items())
            print(f"{artifact.name}, batch {batch}: {each}; {results[-1]['last_over_first']:.3f}x", flush=True)
    body = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "machine": machine(),
        "tools": tool_versions(("numpy", "onnxruntime")),
        "results": results,
    }
    write_file(arguments.output, (json.dumps(body, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
