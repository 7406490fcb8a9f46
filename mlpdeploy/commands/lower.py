"""`mlpdeploy lower`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mlpdeploy.commands.export import print_export
from mlpdeploy.commands.options import ARTIFACT, JSON
from mlpdeploy.console import print_json, steps


@click.command(epilog="Example: mlpdeploy lower asmlp_s --target openvino")
@click.argument("directory", type=ARTIFACT)
@click.option(
    "--target",
    "targets",
    required=True,
    multiple=True,
    metavar="NAME",
    help="cpu, openvino, tensorrt or tensorrt-rtx; repeat for several.",
)
@click.option("--shift", default="auto", show_default=True, help="The lowered axial shift: auto, plugin, conv, slice.")
@click.option("--no-verify", is_flag=True, help="Do not compare with PyTorch.")
@click.option("--force", is_flag=True, help="Replace a file for the target that is there.")
@JSON
def lower(directory: Path, targets: tuple[str, ...], shift: Any, no_verify: bool, force: bool, as_json: bool) -> None:
    """Add a file for a further target to an artifact, and compare it with PyTorch."""
    say = steps()
    say("loading PyTorch")
    from mlpdeploy.export.add import lower_artifact

    manifest = lower_artifact(directory, targets, shift=shift, force=force, verify=not no_verify, progress=say)
    say("done")
    if as_json:
        print_json(json.loads(manifest.to_json()))
    else:
        print_export(directory, manifest)
