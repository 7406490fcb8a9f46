"""`mlpdeploy predict`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpdeploy.commands.options import ARTIFACT, BACKEND, DEVICE, JSON, PRECISION, THREADS
from mlpdeploy.console import RANDOM_NOTE, bar
from mlpdeploy.manifest import read_manifest

if TYPE_CHECKING:
    from mlpdeploy.prediction import Prediction


@click.command(
    epilog="Examples: mlpdeploy predict asmlp_s photo.jpg; mlpdeploy predict asmlp_s photos/ --json > out.json"
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
    as_json: bool,
) -> None:
    """Classify photographs, or folders of them."""
    from mlpdeploy.prediction import predict as run

    with bar("classifying") as progress:
        predictions = run(
            directory,
            images,
            top=top,
            backend=backend,
            device=device,
            threads=threads,
            precision=precision,
            batch=rows,
            skip_bad=skip_bad,
            progress=progress,
        )
    print_predictions(directory, predictions, as_json)


def print_predictions(directory: Path, predictions: list[Prediction], as_json: bool) -> None:
    """Print the classes of each image."""
    model = read_manifest(directory).model
    if as_json:
        data = {
            "model": model["name"],
            "weights": model["source"],
            "images": [dataclasses.asdict(p) for p in predictions],
        }
        click.echo(json.dumps(data, indent=1, ensure_ascii=False))
        return
    for prediction in predictions:
        click.echo(prediction.path + (f": {prediction.error}" if prediction.error else ""))
        for score in prediction.top:
            click.echo(f"  {100 * score.probability:5.1f} %  {score.label} ({score.index})")
    if model["random_weights"]:
        click.echo(f"note: {RANDOM_NOTE}", err=True)
