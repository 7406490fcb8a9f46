"""`mlpdeploy predict`."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpdeploy.commands.options import ARTIFACT, BACKEND, DEVICE, JSON, PRECISION, THREADS
from mlpdeploy.console import RANDOM_NOTE, bar, print_json
from mlpdeploy.env import closest
from mlpdeploy.errors import MlpDeployError, UsageError
from mlpdeploy.manifest import read_manifest

if TYPE_CHECKING:
    from mlpdeploy.distributed.predict import Summary
    from mlpdeploy.prediction import Prediction

ENGINES = ("local", "ray")


@click.command(
    epilog="Examples: mlpdeploy predict asmlp_s photo.jpg; mlpdeploy predict asmlp_s photos/ --json > out.json; "
    "mlpdeploy predict asmlp_s photos.parquet -o classes --engine ray"
)
@click.argument("directory", type=ARTIFACT)
@click.argument("images", nargs=-1, required=True, type=ARTIFACT)
@click.option("--top", default=5, show_default=True, help="Classes to name per image.")
@click.option("--batch", "rows", default=8, show_default=True, help="Images that go through the model at once.")
@click.option("--skip-bad", is_flag=True, help="Name images that cannot be read, and go on.")
@BACKEND
@DEVICE
@THREADS
@PRECISION
@click.option("--engine", default="local", show_default=True, help="local, or ray: many workers, Parquet out.")
@click.option("-o", "--output", type=ARTIFACT, help="Folder for the Parquet files of --engine ray.")
@click.option("--workers", type=int, help="Of --engine ray.  [default: one for each 4 processors, or each GPU]")
@click.option("--ray-address", metavar="ADDRESS", help="Of a Ray cluster, or auto.  [default: this machine]")
@click.option("--column", help="Of Parquet input of --engine ray, with the pictures.  [default: image]")
@JSON
def predict(
    directory: Path,
    images: tuple[Path, ...],
    top: int,
    rows: int,
    skip_bad: bool,
    backend: str | None,
    device: str | None,
    threads: int | None,
    precision: str | None,
    engine: str,
    output: Path | None,
    workers: int | None,
    ray_address: str | None,
    column: str | None,
    as_json: bool,
) -> None:
    """Classify photographs, or folders of them; with --engine ray also Parquet files with a column of pictures."""
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}", fix=closest(engine, ENGINES))
    shared: dict[str, Any] = {"top": top, "backend": backend, "device": device, "threads": threads}
    shared |= {"precision": precision, "batch": rows, "skip_bad": skip_bad}
    if engine == "ray":
        if output is None:
            raise UsageError("--engine ray without a place for the results", fix="add -o FOLDER")
        from mlpdeploy.distributed.chunks import DEFAULT_COLUMN
        from mlpdeploy.distributed.predict import RayOptions, predict_on_ray

        with bar("classifying") as progress:
            options = RayOptions(ray_address, workers, column=DEFAULT_COLUMN if column is None else column)
            summary = predict_on_ray(directory, images, output, options, progress=progress, **shared)
        print_summary(summary, as_json)
        return
    if any(value is not None for value in (output, workers, ray_address, column)):
        raise UsageError(
            "-o, --workers, --ray-address or --column without --engine ray", fix="add --engine ray, or leave it out"
        )
    from mlpdeploy.prediction import predict_batches

    def parts() -> Iterator[list[Prediction]]:
        # On a terminal the results themselves show how far it is. The bar is gone before JSON is printed.
        on_terminal = sys.stdout is not None and sys.stdout.isatty()
        with bar("classifying") if as_json or not on_terminal else nullcontext() as progress:
            yield from predict_batches(directory, images, progress=progress, **shared)

    print_predictions(directory, parts(), as_json)


def print_summary(summary: Summary, as_json: bool) -> None:
    """Print what a run of many workers did."""
    if as_json:
        print_json(dataclasses.asdict(summary))
        return
    before = f", {summary.rows_before} of them by an earlier run" if summary.rows_before else ""
    bad = f"; {summary.bad} could not be read" if summary.bad else ""
    click.echo(f"{summary.output}: {summary.rows} pictures{before}{bad}")


def print_predictions(directory: Path, parts: Iterable[list[Prediction]], as_json: bool) -> None:
    """Print the classes of each image as soon as they are known, or as one JSON object; an error costs none of them."""
    model = read_manifest(directory).model
    if as_json:
        found: list[dict[str, Any]] = []
        data = {"model": model["name"], "weights": model["source"], "images": found}
        try:
            for part in parts:
                found += map(dataclasses.asdict, part)
        except (MlpDeployError, KeyboardInterrupt):
            if found:
                print_json(data)
            raise
        print_json(data)
        return
    for prediction in itertools.chain.from_iterable(parts):
        click.echo(prediction.path + (f": {prediction.error}" if prediction.error else ""))
        for score in prediction.top:
            click.echo(f"  {100 * score.probability:5.1f} %  {score.label} ({score.index})")
    if model["random_weights"]:
        click.echo(f"note: {RANDOM_NOTE}", err=True)
