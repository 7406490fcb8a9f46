"""`mlpdeploy models`."""

from __future__ import annotations

from typing import Any

import click

from mlpdeploy.commands.options import JSON
from mlpdeploy.console import plain_table, print_json, show


@click.command()
@JSON
def models(as_json: bool) -> None:
    """List the models: names, parameters, multiply-adds."""
    from mlpdeploy.models.statistics import model_table

    rows = model_table()
    if as_json:
        print_json(rows)
        return

    print_models(rows)


def print_models(rows: list[dict[str, Any]]) -> None:
    """Print the registry: the published models, and apart from them the small ones of our own."""
    published = [row for row in rows if row["top1_percent"] is not None]
    demos = [row for row in rows if row["top1_percent"] is None]
    table = plain_table("model", "parameters", "multiply-adds", "ImageNet top-1", "also called", right=(1, 2, 3))
    for row in published:
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['macs'] / 1e9:.2f} G",
            f"{row['top1_percent']} %",
            ", ".join(row["aliases"]),
        )
    show(table)
    click.echo("At 224x224. Accuracies are the authors'; weights are not shipped: bring a checkpoint.", err=True)
    table = plain_table("demo model", "parameters", "multiply-adds", "image", "classes", right=(1, 2, 3, 4))
    for row in demos:
        height, width = row["image_size"]
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['macs'] / 1e9:.3f} G",
            f"{height}x{width}",
            str(row["classes"]),
        )
    show(table)
    click.echo("Small variants of our own for handwritten digits; examples/digits has their weights.", err=True)
