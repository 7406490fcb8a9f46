"""Measure models against their peers on this CPU; results go to benchmarks/results/. Run by `make bench`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from mlpdeploy.bench.report import print_report
from mlpdeploy.bench.run import bench_artifact, write_report
from mlpdeploy.export.export import export_model

RESULTS = Path(__file__).parent / "results"
DEFAULT = ("asmlp_t", "asmlp_s", "vip_s7")


def main() -> None:
    """Export each model with random weights, and measure it at batch 1 and 8."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=DEFAULT)
    parser.add_argument("--seconds", type=float, default=60, help="of measuring per model and batch size")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch) / name
            start = time.monotonic()
            export_model(name, directory)
            print(f"{name}: exported and verified in {time.monotonic() - start:.1f} s", flush=True)
            report = bench_artifact(directory, seconds=options.seconds, progress=print)
        write_report(report, options.output / f"cpu_{name}.json", options.output / f"cpu_{name}.png")
        print_report(report)


if __name__ == "__main__":
    main()
