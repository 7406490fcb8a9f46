"""`mlpdeploy sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpdeploy.commands.options import ARTIFACT, CLASS_MAP, JSON, THREADS, calibration_options
from mlpdeploy.console import RANDOM_NOTE, bar, plain_table, print_and_write, show, steps

if TYPE_CHECKING:
    from mlpdeploy.quant.mixed import SensitivityReport


@click.command(
    epilog="Example: mlpdeploy sensitivity asmlp_s --calibration-data photos/ -o blocks.json --plot blocks.png"
)
@click.argument("directory", type=ARTIFACT)
@calibration_options
@click.option("--calibrator", metavar="NAME", help="minmax, percentile, entropy or mse.")
@click.option("--data", "labelled", type=ARTIFACT, help="Labelled images to measure on.  [default: the calibration's]")
@CLASS_MAP
@click.option("--limit", "measured", default=256, show_default=True, help="Images that every variant is measured on.")
@click.option("-o", "--output", type=ARTIFACT, help="Write the report as JSON.")
@click.option("--plot", type=ARTIFACT, help="Write it as PNG.")
@THREADS
@JSON
def sensitivity(
    directory: Path,
    images: Path | None,
    images_limit: int,
    cache: Path | None,
    skip_bad: bool,
    calibrator: Any,
    labelled: Path | None,
    class_map: Path | None,
    measured: int,
    output: Path | None,
    plot: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Rank a model's blocks by what INT8 costs in them: each one alone, and all but it."""
    from mlpdeploy.artifact import check_files
    from mlpdeploy.evaluation.classes import read_class_map
    from mlpdeploy.quant.chart import write_report
    from mlpdeploy.quant.mixed import analyse
    from mlpdeploy.quant.recipe import Recipe

    check_files(output, plot)
    with bar("measuring") as count:
        report = analyse(
            directory,
            Recipe("int8", calibrator=calibrator, images=images_limit),
            images=images,
            cache=cache,
            labelled=labelled,
            class_map=None if class_map is None else read_class_map(class_map),
            limit=measured,
            threads=threads,
            skip_bad=skip_bad,
            progress=steps(),
            count=count,
        )
    print_and_write(
        report.to_dict(), as_json, lambda: print_sensitivity(report), lambda: write_report(report, output, plot)
    )


def print_sensitivity(report: SensitivityReport) -> None:
    """Print the ranking."""
    drop = "top-1 lost" if report.labelled else "classes changed"
    table = plain_table("block", "MACs", "alone", drop, "all but it", drop, right=(1, 2, 3, 4, 5))
    total = sum(cost.macs for cost in report.blocks)
    for cost in report.blocks:
        table.add_row(
            cost.block,
            f"{100 * cost.macs / total:.1f} %",
            f"{cost.alone.sqnr_db:.1f} dB",
            f"{cost.alone.drop:.2f}",
            f"{cost.without.sqnr_db:.1f} dB",
            f"{cost.without.drop:.2f}",
        )
    show(table)
    click.echo(
        f"all in INT8: {report.int8.sqnr_db:.1f} dB, {report.int8.drop:.2f} points ({drop}), on {report.images} images"
    )
    if report.weights.startswith("random"):
        click.echo(f"note: {RANDOM_NOTE}", err=True)
