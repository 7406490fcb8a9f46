"""`mlpdeploy verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpdeploy.commands.options import ARTIFACT, BACKEND, JSON, THREADS
from mlpdeploy.console import print_json, steps

if TYPE_CHECKING:
    from mlpdeploy.verify import VerifyReport


@click.command(epilog="Example: mlpdeploy verify asmlp_s --json")
@click.argument("directory", type=ARTIFACT)
@BACKEND
@click.option("--device", metavar="NAME", help="cpu or cuda.  [default: cpu; cuda for tensorrt]")
@THREADS
@click.option("--no-record", is_flag=True, help="Leave the artifact's manifest as it is.")
@JSON
def verify(
    directory: Path, backend: str | None, device: str | None, threads: int | None, no_record: bool, as_json: bool
) -> None:
    """Compare an artifact with PyTorch: interface, values, rows of a batch, classes."""
    from mlpdeploy.verify import verify_artifact

    report = verify_artifact(
        directory, backend=backend, device=device, threads=threads, record=not no_record, progress=steps()
    )
    if as_json:
        print_json(report.to_dict())
    else:
        print_verify(report)
    if not report.passed:
        click.echo(f"mlpdeploy: {report.failure()}", err=True)
        raise click.exceptions.Exit(1)


def print_verify(report: VerifyReport) -> None:
    """Print every check."""
    from mlpdeploy.verify.verify import describe

    click.echo(f"{report.model}, {report.weights}")
    for name, file in report.files.items():
        click.echo(name + (f": not run here, {file['skipped']}" if file["skipped"] else f", on {file['backend']}"))
        for check in file["checks"]:
            figures = describe(check)
            click.echo(
                f"  {'ok  ' if check['passed'] else 'FAIL'}  {check['check']}" + (f": {figures}" if figures else "")
            )
        if file["divergence"]:
            click.echo(f"  {file['divergence']}")
    real = f"{report.photographs} photographs among the images" if report.photographs else "random images only"
    state = "passed" if report.passed else "FAILED" if report.compared else "not verified"
    click.echo(f"{state}: against {report.reference}; {real}")
