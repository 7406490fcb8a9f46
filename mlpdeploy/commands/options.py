"""Options and parameter types that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class ImageSize(click.ParamType[Any]):
    """`224`, `224x320` (height x width) or, where allowed, `dynamic`."""

    name = "pixels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "dynamic" or isinstance(value, tuple | int):
            return value
        height, _, width = str(value).lower().partition("x")
        if not height.isdigit() or not (width.isdigit() or "x" not in str(value).lower()):
            self.fail(f"{value!r} is neither 224 nor 224x320 (height x width) nor dynamic", param, ctx)
        return (int(height), int(width or height))


class Batch(click.ParamType[Any]):
    """A number of rows, or `dynamic`, which is None."""

    name = "rows"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is None or value == "dynamic":
            return None
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of rows nor dynamic", param, ctx)
        return int(value)


class Numbers(click.ParamType[Any]):
    """Numbers with commas between them: `0.5` or `0.485,0.456,0.406`."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(number) for number in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers with commas between them, such as 0.485,0.456,0.406", param, ctx)


ARTIFACT = click.Path(path_type=Path)
CLASS_MAP = click.option(
    "--class-map", type=ARTIFACT, help='JSON {"folder": class index}, where the names do not tell.'
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout instead of text.")
THREADS = click.option("--threads", type=int, help="Threads of one run.  [default: all usable processors]")
BACKEND = click.option(
    "--backend",
    metavar="NAME",
    help="onnxruntime, openvino, tensorrt, onnxruntime-tensorrt, torch or auto, the fastest.  [default: onnxruntime]",
)
PRECISION = click.option(
    "--precision", metavar="NAME", help="Compute in fp32 or bf16 (openvino).  [default: the artifact's]"
)
DEVICE = click.option("--device", metavar="NAME", help="cpu or cuda.  [default: cuda where it is there]")


def calibration_options(command: Any) -> Any:
    """Add the options about calibration images."""
    for option in reversed(
        (
            click.option(
                "--calibration-data",
                "images",
                type=ARTIFACT,
                help="A folder of pictures, an .npy or .npz file, or a .txt file with one path a line.",
            ),
            click.option(
                "--images", "images_limit", default=512, show_default=True, help="At most so many calibration images."
            ),
            click.option(
                "--cache", type=ARTIFACT, help="Keep the collected ranges in this file, or read them from it."
            ),
            click.option("--skip-bad", is_flag=True, help="Name pictures that cannot be read, and go on."),
        )
    ):
        command = option(command)
    return command
