"""`mlpdeploy debug`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpdeploy.commands.options import ARTIFACT, JSON
from mlpdeploy.console import plain_table, print_json, show

if TYPE_CHECKING:
    from mlpdeploy.debug import DebugReport


@click.command(
    epilog="Examples: mlpdeploy debug asmlp_s_int8 --data photographs; mlpdeploy debug asmlp_s_fp16 --backend tensorrt"
)
@click.argument("directory", type=ARTIFACT)
@click.option(
    "--role", metavar="NAME", help="Which model: cpu, openvino, tensorrt, tensorrt-rtx.  [default: the first there is]"
)
@click.option("--backend", default="onnxruntime", show_default=True, help="onnxruntime or tensorrt, which builds.")
@click.option("--against", default="canonical", show_default=True, metavar="NAME", help="Role of the reference.")
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="Images, as quantize takes them for calibration; a few are used.  [default: noise]",
)
@click.option("--top", default=10, show_default=True, help="Blocks to show.")
@JSON
def debug(
    directory: Path, role: str | None, backend: str, against: str, data: Path | None, top: int, as_json: bool
) -> None:
    """Tell which blocks of a model its error comes from."""
    from mlpdeploy.debug import debug_artifact

    report = debug_artifact(directory, role, backend, against, data)
    if as_json:
        print_json(report.to_dict())
    else:
        print_debug(report, against, top)


def print_debug(report: DebugReport, against: str, top: int) -> None:
    """Print the blocks that add most."""
    click.echo(f"{report.model}, {report.precision}: {report.file} on {report.backend} against {against}")
    table = plain_table("block", "error added", "error after it", "worst value", "value")
    for block in report.ranked()[:top]:
        table.add_row(
            block.block, f"{block.added:+.1e}", f"{block.error:.1e}", f"{block.worst:.1e}", block.value
        )  # fmt: skip
    show(table)
    click.echo(
        f"parts of each value's spread, over {report.images} images ({report.data}); the last block is the output"
    )
