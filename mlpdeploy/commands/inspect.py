"""`mlpdeploy inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlpdeploy.commands.options import ARTIFACT, JSON
from mlpdeploy.console import megabytes, print_json
from mlpdeploy.manifest import largest_error


@click.command()
@click.argument("directory", type=ARTIFACT)
@JSON
def inspect(directory: Path, as_json: bool) -> None:
    """Show what an artifact holds: files, operators, passes, verification."""
    from mlpdeploy.inspection import inspect_artifact

    data = inspect_artifact(directory)
    if as_json:
        print_json(data)
        return

    print_inspection(directory, data)


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
        click.echo(f"verification {state}: largest error {largest_error(verification):.1e} of the outputs' spread")
    else:
        click.echo("verification: never run")
