"""`mlpdeploy quantize`."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpdeploy.commands.options import ARTIFACT, CLASS_MAP, JSON, THREADS, calibration_options
from mlpdeploy.console import RANDOM_NOTE, bar, megabytes, print_json, steps
from mlpdeploy.errors import UsageError

if TYPE_CHECKING:
    from mlpdeploy.manifest import Manifest


@click.command(
    epilog="Examples: mlpdeploy quantize asmlp_s --precision fp16 -o asmlp_s_fp16; "
    "mlpdeploy quantize asmlp_s --precision int8 --calibration-data photos/ --max-drop 0.5 -o asmlp_s_int8"
)
@click.argument("directory", type=ARTIFACT)
@click.option("-o", "--output", required=True, type=ARTIFACT, help="The artifact folder to make.")
@click.option("--precision", required=True, metavar="NAME", help="fp16, bf16 or int8.")
@calibration_options
@click.option("--calibrator", metavar="NAME", help="minmax, percentile, entropy or mse.  [default: see the guide]")
@click.option("--io", default="fp32", show_default=True, metavar="TYPE", help="Type of inputs and outputs: fp32, fp16.")
@click.option("--keep", multiple=True, metavar="BLOCK", help="Leave this block or node as it is. Repeat for several.")
@click.option("--rest", default="fp32", show_default=True, metavar="TYPE", help="Beside INT8: fp32, fp16, bf16.")
@click.option("--weight-bits", default=8, show_default=True, help="Of INT8: 8, or 7 for CPUs without VNNI.")
@click.option("--max-drop", type=float, help="Search for the blocks to keep: lose at most so many points of top-1.")
@click.option("--min-sqnr", type=float, help="Search for the blocks to keep: logits with at least so many dB.")
@click.option(
    "--data", "labelled", type=ARTIFACT, help="Labelled images for --max-drop.  [default: count changed classes]"
)
@CLASS_MAP
@click.option("--target", "targets", multiple=True, metavar="NAME", help="[default: those of the float32 artifact]")
@click.option("--no-verify", is_flag=True, help="Do not compare with PyTorch.")
@click.option("--force", is_flag=True, help="Replace an artifact that is there.")
@THREADS
@JSON
def quantize(
    directory: Path,
    output: Path,
    precision: Any,
    images: Path | None,
    images_limit: int,
    cache: Path | None,
    skip_bad: bool,
    calibrator: Any,
    io: Any,
    keep: tuple[str, ...],
    rest: Any,
    weight_bits: int,
    max_drop: float | None,
    min_sqnr: float | None,
    labelled: Path | None,
    class_map: Path | None,
    targets: tuple[str, ...],
    no_verify: bool,
    force: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Make an artifact in half precision or INT8, and prove what it costs."""
    from mlpdeploy.evaluation.classes import read_class_map
    from mlpdeploy.quant.mixed import analyse
    from mlpdeploy.quant.quantize import checked_source, quantize_artifact
    from mlpdeploy.quant.recipe import Recipe
    from mlpdeploy.quant.search import Goal
    from mlpdeploy.quant.speed import quick_speed

    recipe = Recipe(precision, io, calibrator, images_limit, keep, rest, weight_bits)
    goal = None if max_drop is None and min_sqnr is None else Goal(max_drop, min_sqnr)
    if goal is None and labelled is not None:
        raise UsageError("--data without --max-drop or --min-sqnr", fix="labelled images serve the search only")
    if goal is not None:  # before the search, which takes its time
        checked_source(directory, output, recipe, targets or None, force)
    say, report = steps(), None
    with tempfile.TemporaryDirectory() as folder, bar(f"quantizing to {precision}") as count:
        shared: dict[str, Any] = {"images": images, "threads": threads, "skip_bad": skip_bad}
        shared |= {"progress": say, "count": count}
        if goal is not None:
            cache = cache or Path(folder) / "calibration.json"
            folders = None if class_map is None else read_class_map(class_map)
            report = analyse(directory, recipe, cache=cache, labelled=labelled, class_map=folders, goal=goal, **shared)
            assert report.found is not None
            recipe = dataclasses.replace(recipe, keep=(*keep, *report.found.keep))
        manifest = quantize_artifact(
            directory,
            output,
            recipe,
            cache=cache,
            targets=targets or None,
            force=force,
            verify=not no_verify,
            search=report.to_dict() if report else None,
            **shared,
        )
    if as_json:
        say("done")
        print_json(json.loads(manifest.to_json()))
        return
    say("comparing the speed")
    print_quantized(directory, output, manifest, quick_speed(directory, output, threads))


def print_quantized(source: Path, directory: Path, manifest: Manifest, speeds: dict[str, float]) -> None:
    """Print what a quantization made: per target its size, what is in the precision, and the speed seen in passing."""
    from mlpdeploy.manifest import WEIGHTS, largest_error, read_manifest

    before, model = read_manifest(source), manifest.model
    assert manifest.quantization is not None
    click.echo(f"{directory}: {model['name']} in {manifest.precision}, {model['source']}")
    for name, entry in manifest.models.items():
        report = manifest.quantization["targets"].get(entry.role)
        if report is None:
            continue
        size = entry.bytes + manifest.files[entry.weights].bytes
        exact = sum(
            file.bytes
            for other, file in before.files.items()
            if file.role == entry.role or (file.role == WEIGHTS and other == entry.weights)
        )
        parts = [megabytes(size) + (f", {100 * size / exact:.0f} % of the float32 file" if exact else "")]
        share = report.get("int8_share_of_macs", report.get("macs_share"))
        if share is not None:
            parts.append(f"{100 * share:.1f} % of the multiply-adds in {manifest.precision.upper()}")
        if entry.role in speeds:
            parts.append(f"{speeds[entry.role]:.2f} times as fast at batch 1 here, by a quick look")
        click.echo(f"  {name}: {'; '.join(parts)}")
    keep = manifest.quantization["recipe"]["keep"]
    if keep:
        rest = manifest.quantization["recipe"]["rest"]
        click.echo(f"  kept in {rest}: {', '.join(keep)}")
    search = manifest.quantization["search"] or {}
    if found := search.get("found"):
        cost, drop = found["cost"], "points lost" if search["labelled"] else "% of the classes changed"
        click.echo(f"  found by {found['tried']} trials: {cost['sqnr_db']:.1f} dB, {cost['drop']:.2f} {drop}")
    error = largest_error(manifest.verification) if manifest.verification else None
    if error is not None:
        click.echo(f"  largest error {error:.1e} of the outputs' spread; its accuracy: mlpdeploy eval")
    elif manifest.verification:
        click.echo("  not verified: none of its files can be run here; on the machine that can: mlpdeploy verify")
    else:
        click.echo("  not verified: run mlpdeploy verify")
    if model["random_weights"]:
        click.echo(f"note: {RANDOM_NOTE}", err=True)
