"""`mlpdeploy bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlpdeploy.commands.options import ARTIFACT, BACKEND, JSON, PRECISION, THREADS, ImageSize
from mlpdeploy.console import print_and_write, steps
from mlpdeploy.errors import UsageError


@click.command(
    epilog="Examples: mlpdeploy bench asmlp_s --batch 1 --batch 8 -o bench.json --plot bench.png; "
    "mlpdeploy bench asmlp_s --peer none --callers 1 --callers 4. Peers: onnxruntime, openvino, no-kernels, canonical, "
    "torch-eager, torch-compile, naive-dynamo, naive-legacy, naive-openvino"
)
@click.argument("directory", type=ARTIFACT)
@click.option("--batch", "batches", multiple=True, type=int, help="Repeat for a sweep.  [default: 1, 8]")
@click.option("--image-size", type=ImageSize(), help="Where the model leaves it open.  [default: the model's own]")
@click.option("--seconds", default=20.0, show_default=True, help="Measuring time per batch size; twice with --callers.")
@click.option("--peer", "peers", multiple=True, help="Compare with these only; `none` for no peer. Repeat for several.")
@click.option(
    "--callers", multiple=True, type=int, help="Also: throughput of so many threads at once. Repeat for a sweep."
)
@click.option("--no-memory", is_flag=True, help="Do not measure memory and load time in processes of their own.")
@click.option("-o", "--output", type=ARTIFACT, help="Write the results as JSON.")
@click.option("--plot", type=ARTIFACT, help="Write the comparison as PNG.")
@BACKEND
@THREADS
@PRECISION
@JSON
def bench(
    directory: Path,
    batches: tuple[int, ...],
    image_size: Any,
    seconds: float,
    peers: tuple[str, ...],
    callers: tuple[int, ...],
    no_memory: bool,
    output: Path | None,
    plot: Path | None,
    backend: str | None,
    threads: int | None,
    precision: str | None,
    as_json: bool,
) -> None:
    """Measure an artifact against what else one would use: eager, compiled, exported without us."""
    from mlpdeploy.artifact import check_files
    from mlpdeploy.bench.report import print_report
    from mlpdeploy.bench.run import bench_artifact, write_report

    if image_size == "dynamic":
        raise UsageError("image size dynamic for a measurement", "a size in pixels")
    check_files(output, plot, new_folder=True)
    report = bench_artifact(
        directory,
        batches=batches or None,
        threads=threads,
        seconds=seconds,
        image_size=image_size,
        peers=() if peers == ("none",) else peers or None,
        memory=not no_memory,
        backend=backend,
        precision=precision,
        callers=callers,
        progress=steps(),
    )
    print_and_write(report.to_dict(), as_json, lambda: print_report(report), lambda: write_report(report, output, plot))
