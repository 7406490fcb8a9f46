"""`mlpdeploy inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlpdeploy.commands.options import ARTIFACT, JSON
from mlpdeploy.console import input_lines, megabytes, print_and_write
from mlpdeploy.manifest import largest_error


@click.command(epilog="Example: mlpdeploy inspect asmlp_s --html asmlp_s.html")
@click.argument("directory", type=ARTIFACT)
@click.option("--html", type=ARTIFACT, help="Write it as one HTML file, with every layer of the engines.")
@JSON
def inspect(directory: Path, html: Path | None, as_json: bool) -> None:
    """Show what an artifact holds: files, operators, passes, verification, engines; and how NVIDIA's tools take it."""
    from mlpdeploy.artifact import check_files, write_file
    from mlpdeploy.inspection import inspect_artifact

    check_files(html)
    data = inspect_artifact(directory)

    def write_page() -> None:
        if html is not None:
            from mlpdeploy.inspection_page import inspection_page

            write_file(html, inspection_page(directory.absolute(), data).encode("utf-8", "backslashreplace"))

    print_and_write(data, as_json, lambda: print_inspection(directory, data), write_page)


def print_inspection(directory: Path, data: dict[str, Any]) -> None:
    """Print what an artifact holds."""
    from mlpdeploy.doctor import cpu_kernels
    from mlpdeploy.verify.diverge import BLOCKS

    model = data["model"]
    click.echo(f"{directory}: {model['name']}, {model['source']}, {data['precision']}, opset {data['opset']}")
    click.echo(f"  {model['parameters'] / 1e6:.2f} M parameters, {model['macs'] / 1e9:.2f} G multiply-adds")
    for kind in ("inputs", "outputs"):
        for spec in data[kind]:
            shape = ", ".join(map(str, spec["shape"]))
            click.echo(f"  {kind[:-1]:<6} {spec['name']}: {spec['dtype']} {spec['layout']} ({shape})")
    for line in input_lines(data["preprocessing"], data["labels"]):
        click.echo(f"  {line}")
    for name, entry in data["files"].items():
        shift = f", shift as {entry['shift']}" if entry["shift"] else ""
        click.echo(f"{name}: {entry['role']}{shift}, {megabytes(entry['bytes'])}")
        if "operators" in entry:
            counts = ", ".join(f"{count} {name}" for name, count in entry["operators"].items())
            click.echo(f"  {entry['nodes']} nodes: {counts}")
            if any(f"mlpdeploy::{block}" in entry["operators"] for block in BLOCKS):
                click.echo(f"  CPU kernels here: {cpu_kernels().detail}")
    for report in data["passes"]:
        click.echo(f"pass {report['name']} for {report['target']}: {report['changed']} changed")
        for reason, nodes in report["refused"].items():
            click.echo(f"  left {len(nodes)}: {reason} ({nodes[0]}{', ...' if len(nodes) > 1 else ''})")
    verification = data["verification"]
    error = largest_error(verification) if verification else None
    if error is not None:
        state = "passed" if verification["passed"] else "FAILED"
        click.echo(f"verification {state}: largest error {error:.1e} of the outputs' spread")
    elif verification:
        click.echo("verification: nothing could be run where it was made")
    else:
        click.echo("verification: never run")
    for engine in data["engines"]:
        print_engine(engine)
    for what, line in data["commands"].items():
        click.echo(f"to {what}:\n  {line}")


def print_engine(engine: dict[str, Any]) -> None:
    """Print what an engine is, and what it says of itself where that is known."""
    mark, inside = engine["fingerprint"], engine["engine_layers"]
    where = mark["gpu"] or ", ".join(mark["compute_capabilities"])
    shift = f", shift as {mark['shift']}" if mark["shift"] else ""
    scratch = engine.get("scratch_bytes")
    memory = "" if scratch is None else f", and {megabytes(scratch)} of scratch memory for each stream"
    click.echo(f"engines/{engine['file']}: {megabytes(engine['bytes'])}{memory}")
    click.echo(f"  {mark['target']} {mark['version']} for {where}; {mark['precision']}{shift}")
    types = ", ".join(f"{count} {name}" for name, count in engine["network_types"].items())
    click.echo(f"  {sum(engine['network_layers'].values())} layers parsed: {types}")
    if inside is not None:
        kinds = ", ".join(f"{count} {name}" for name, count in inside["layers"].items())
        tactics = len({layer["tactic"] for layer in inside["each"] if layer["tactic"]})
        click.echo(f"  {sum(inside['layers'].values())} layers in the engine: {kinds}")
        click.echo(f"  {tactics} different kernels, {inside['plugins']} plugin layers, {inside['reformats']} reformats")
    for form, times in engine["measured_ms"].items():
        click.echo(f"  shift as {form}: " + ", ".join(f"{ms:.3f} ms at batch {rows}" for rows, ms in times.items()))
