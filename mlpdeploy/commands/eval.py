"""`mlpdeploy eval`. The function has the command's name and hides Python's `eval` in this module only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpdeploy.commands.options import ARTIFACT, CLASS_MAP, DEVICE, JSON, THREADS
from mlpdeploy.console import RANDOM_NOTE, bar, plain_table, print_and_write, show, steps
from mlpdeploy.errors import MlpDeployError

if TYPE_CHECKING:
    from mlpdeploy.evaluation.report import EvaluationReport


@click.command(
    epilog="Example: mlpdeploy eval asmlp_s asmlp_s_int8 --data imagenet/val --resume state --html eval.html"
)
@click.argument("directories", nargs=-1, required=True, type=ARTIFACT)
@click.option("--data", required=True, type=ARTIFACT, help="A folder with one folder per class, or an .npz file.")
@CLASS_MAP
@click.option(
    "--backend", "backends", metavar="NAME", multiple=True, help="Repeat for several.  [default: onnxruntime]"
)
@click.option("--torch/--no-torch", default=None, help="Compare with PyTorch.  [default: where it is installed]")
@click.option("--limit", type=int, help="Evaluate so many images only, spread evenly over the classes.")
@click.option("--batch", "rows", default=16, show_default=True, help="Images that go through a model at once.")
@click.option("--skip-bad", is_flag=True, help="Leave images out that cannot be read, and name them.")
@click.option("--resume", type=ARTIFACT, help="Keep the results in this folder, and go on from what is there.")
@click.option("-o", "--output", type=ARTIFACT, help="Write the results as JSON.")
@click.option("--html", type=ARTIFACT, help="Write the report with plots as one HTML file.")
@DEVICE
@THREADS
@JSON
def eval(
    directories: tuple[Path, ...],
    data: Path,
    class_map: Path | None,
    backends: tuple[str, ...],
    torch: bool | None,
    limit: int | None,
    rows: int,
    skip_bad: bool,
    resume: Path | None,
    output: Path | None,
    html: Path | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure accuracy, calibration and agreement with PyTorch on labelled images, artifacts side by side."""
    from mlpdeploy.artifact import check_files
    from mlpdeploy.evaluation.classes import read_class_map
    from mlpdeploy.evaluation.evaluate import evaluate_artifacts
    from mlpdeploy.evaluation.page import write_report

    check_files(output, html, new_folder=True)
    try:
        with bar("evaluating") as progress:
            report = evaluate_artifacts(
                directories,
                data,
                class_map=None if class_map is None else read_class_map(class_map),
                backends=backends,
                torch=torch,
                device=device,
                threads=threads,
                batch=rows,
                limit=limit,
                skip_bad=skip_bad,
                resume=resume,
                progress=progress,
                say=steps(),
            )
    except KeyboardInterrupt:
        raise MlpDeployError(
            f"stopped; what was computed is kept in {resume}" if resume else "stopped; nothing was kept",
            fix="run the same command again to go on" if resume else "with --resume FOLDER it could go on",
        ) from None
    print_and_write(report.to_dict(), as_json, lambda: print_report(report), lambda: write_report(report, output, html))
    if any(result.model["random_weights"] for result in report.results):
        click.echo(f"note: {RANDOM_NOTE}", err=True)


def print_report(report: EvaluationReport) -> None:
    """Print the table, how each artifact differs from its reference, and what was left out."""
    from rich.markup import escape

    from mlpdeploy.evaluation.table import cells, comparisons, images_used, titles

    table = plain_table(*titles(report), right=tuple(range(3, 11)))
    for result in report.results:
        table.add_row(*map(escape, cells(result)))
    show(table)
    for line in (*comparisons(report), images_used(report)):
        click.echo(line)
    for reason in report.bad.values():
        click.echo(f"left out: {reason}", err=True)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
