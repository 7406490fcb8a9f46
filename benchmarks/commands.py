"""Whole commands as a user starts them: time and peak memory. Writes results/commands.json.

Run with: python benchmarks/commands.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.artifact import write_file
from mlpdeploy.env import git_commit, machine, tool_versions

CLI = ("-m", "mlpdeploy")


def measure(arguments: tuple[str, ...], runs: int) -> dict[str, Any]:
    """Return median wall seconds, and the largest resident memory in bytes, of a command that must succeed."""
    seconds, peaks = [], []
    for run in range(runs + 1):
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(arguments)} failed with {process.returncode}")
        if run or runs == 1:  # the first warms the file cache
            seconds.append(time.perf_counter() - start)
            peaks.append(usage.ru_maxrss * 1024)
        if runs == 1:
            break
    return {"seconds": statistics.median(seconds), "peak_rss_bytes": max(peaks), "runs": len(seconds)}


def main() -> None:
    """Measure import, help, export with verification, verify, load and calibration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "commands.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        artifact = str(Path(scratch) / "asmlp_s")
        images = str(Path(scratch) / "images.npy")
        np.save(images, np.random.default_rng(0).integers(0, 256, (512, 224, 224, 3), np.uint8))
        load = f"import time, mlpdeploy; from mlpdeploy.runtime.loading import load; load({artifact!r})"
        commands = {
            "python -c pass": (("-c", "pass"), 10),
            "import mlpdeploy": (("-c", "import mlpdeploy"), 10),
            "mlpdeploy --help": ((*CLI, "--help"), 10),
            "mlpdeploy export --model asmlp_s": ((*CLI, "export", "--model", "asmlp_s", "-o", artifact), 1),
            "mlpdeploy verify asmlp_s": ((*CLI, "verify", artifact), 3),
            "load asmlp_s, a whole process": (("-c", load), 5),
            "mlpdeploy quantize asmlp_s --precision int8, 512 images": (
                (
                    *CLI,
                    "quantize",
                    artifact,
                    "--precision",
                    "int8",
                    "--calibration-data",
                    images,
                    "-o",
                    f"{artifact}_int8",
                ),
                1,
            ),
        }
        figures = {name: measure(*command) for name, command in commands.items()}
    result = {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": machine(),
        "tools": tool_versions(["onnxruntime", "torch"]),
        "commands": figures,
    }
    write_file(options.output, (json.dumps(result, indent=1) + "\n").encode())
    for name, figure in figures.items():
        print(f"{figure['seconds']:7.3f} s  {figure['peak_rss_bytes'] / 1e6:7.0f} MB  {name}")


if __name__ == "__main__":
    main()
