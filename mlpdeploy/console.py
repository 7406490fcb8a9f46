"""What the command line prints: tables on stdout, progress on stderr."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mlpdeploy.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from mlpdeploy.doctor import Finding
    from mlpdeploy.prediction import Prediction
    from mlpdeploy.verify import VerifyReport

RANDOM_NOTE = "random weights: the classes mean nothing, the speed and the equality with PyTorch do"


def show(table: Table) -> None:
    """Print a table to stdout, at its own width where stdout is not a terminal."""
    console = Console(highlight=False)
    console.print(table) if console.is_terminal else Console(width=160, highlight=False).print(table)


def plain_table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    """Return a table without frames; columns whose index is in `right` are flush right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    return table


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, total) that draws a progress bar on stderr, where that is a terminal."""
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def megabytes(count: int) -> str:
    """Return a number of bytes in MB."""
    return f"{count / 1e6:.1f} MB"


def print_models(rows: list[dict[str, Any]]) -> None:
    """Print the registry."""
    table = plain_table("model", "parameters", "multiply-adds", "ImageNet top-1", "also called", right=(1, 2, 3))
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['macs'] / 1e9:.2f} G",
            f"{row['top1_percent']} %",
            ", ".join(row["aliases"]),
        )
    show(table)
    click.echo("At 224x224. Accuracies are the authors'; weights are not shipped: bring a checkpoint.", err=True)


def print_export(directory: Path, manifest: Manifest) -> None:
    """Print what an export made."""
    click.echo(f"{directory}: {manifest.model['name']}, {manifest.model['source']}")
    for name, entry in manifest.files.items():
        shift = f", shift as {entry.shift}" if entry.shift else ""
        click.echo(f"  {name:<22} {megabytes(entry.bytes):>9}  {entry.role}{shift}")
    for report in manifest.passes:
        refused = sum(map(len, report["refused"].values()))
        if not report["changed"] and not refused:
            continue
        left = f", {refused} left as they are (mlpdeploy inspect says why)" if refused else ""
        click.echo(f"  {report['name']}: {report['changed']} changed{left}")
    if manifest.verification:
        worst = _worst(manifest.verification)
        click.echo(f"  equal to PyTorch: largest error {worst:.1e} of the outputs' spread (float64 reference)")
    else:
        click.echo("  not verified: run mlpdeploy verify")
    if manifest.model["random_weights"]:
        click.echo(f"note: {RANDOM_NOTE}", err=True)


def _worst(verification: dict[str, Any]) -> float:
    checks = [check for file in verification["files"].values() for check in file["checks"]]
    return max((c["relative_error"] for c in checks if c["check"].startswith("values")), default=float("nan"))


def print_verify(report: VerifyReport) -> None:
    """Print every check."""
    from mlpdeploy.verify.verify import describe

    click.echo(f"{report.model}, {report.weights}")
    for name, file in report.files.items():
        click.echo(f"{name}" + (f": not run here, {file['skipped']}" if file["skipped"] else ""))
        for check in file["checks"]:
            figures = describe(check)
            click.echo(
                f"  {'ok  ' if check['passed'] else 'FAIL'}  {check['check']}" + (f": {figures}" if figures else "")
            )
        if file["divergence"]:
            click.echo(f"  {file['divergence']}")
    real = f"{report.photographs} photographs among the images" if report.photographs else "random images only"
    click.echo(f"{'passed' if report.passed else 'FAILED'}: against {report.reference}; {real}")


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


def print_inspection(directory: Path, data: dict[str, Any]) -> None:
    """Print what an artifact holds."""
    model = data["model"]
    click.echo(f"{directory}: {model['name']}, {model['source']}, {data['precision']}, opset {data['opset']}")
    click.echo(f"  {model['parameters'] / 1e6:.2f} M parameters, {model['macs'] / 1e9:.2f} G multiply-adds")
    for kind in ("inputs", "outputs"):
        for spec in data[kind]:
            shape = ", ".join(map(str, spec["shape"]))
            click.echo(f"  {kind[:-1]:<6} {spec['name']}: {spec['dtype']} {spec['layout']} ({shape})")
    for name, entry in data["files"].items():
        shift = f", shift as {entry['shift']}" if entry["shift"] else ""
        click.echo(f"{name}: {entry['role']}{shift}, {megabytes(entry['bytes'])}")
        if "operators" in entry:
            counts = ", ".join(f"{count} {name}" for name, count in entry["operators"].items())
            click.echo(f"  {entry['nodes']} nodes: {counts}")
    for report in data["passes"]:
        click.echo(f"pass {report['name']} for {report['target']}: {report['changed']} changed")
        for reason, nodes in report["refused"].items():
            click.echo(f"  left {len(nodes)}: {reason} ({nodes[0]}{', ...' if len(nodes) > 1 else ''})")
    verification = data["verification"]
    if verification:
        state = "passed" if verification["passed"] else "FAILED"
        click.echo(f"verification {state}: largest error {_worst(verification):.1e} of the outputs' spread")
    else:
        click.echo("verification: never run")


def print_findings(findings: list[Finding]) -> None:
    """Print the doctor's report."""
    table = plain_table("", "what", "found", "to do")
    marks = {"ok": "ok", "missing": "MISSING", "warning": "note"}
    for finding in findings:
        table.add_row(marks[finding.status], finding.name, finding.detail, finding.fix)
    show(table)
