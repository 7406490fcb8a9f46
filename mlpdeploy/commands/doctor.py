"""`mlpdeploy doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlpdeploy.commands.options import JSON
from mlpdeploy.console import plain_table, print_json, show

if TYPE_CHECKING:
    from mlpdeploy.doctor import Finding


@click.command()
@JSON
def doctor(as_json: bool) -> None:
    """Tell what is installed, what is missing and what to type. Exit 1 if models cannot be run."""
    import dataclasses

    from mlpdeploy.doctor import examine

    findings = examine()
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        print_findings(findings)
    if any(finding.status == "missing" for finding in findings):
        raise click.exceptions.Exit(1)


def print_findings(findings: list[Finding]) -> None:
    """Print the doctor's report."""
    from rich.markup import escape  # an extra's brackets are no markup

    table = plain_table("", "what", "found", "to do")
    marks = {"ok": "ok", "missing": "MISSING", "warning": "note"}
    for finding in findings:
        table.add_row(marks[finding.status], finding.name, escape(finding.detail), escape(finding.fix))
    show(table)
