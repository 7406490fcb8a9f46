"""`mlpdeploy triton`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click

from mlpdeploy.commands.options import ARTIFACT, JSON
from mlpdeploy.console import print_json
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import read_manifest


@click.command(
    epilog="Examples: mlpdeploy triton asmlp_s -o model_repository --ensemble; "
    "mlpdeploy triton asmlp_s -o model_repository --backend tensorrt"
)
@click.argument("artifacts", metavar="[NAME=]DIRECTORY...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=ARTIFACT, help="The repository; it may hold other models.")
@click.option("--backend", default="onnxruntime", show_default=True, help="onnxruntime or tensorrt.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda, of onnxruntime.")
@click.option("--engine", default="", help="Fingerprint of an engine.  [default: the only one]")
@click.option("--max-batch", type=int, help="Rows put together.  [default: the engine's most, or 8]")
@click.option("--preferred", type=int, multiple=True, help="Batch sizes sent on at once; repeatable.")
@click.option("--max-delay-ms", type=float, help="That a request waits for others.  [default: 2]")
@click.option("--queue-limit", type=int, help="Waiting requests; 0 for no limit.  [default: 128]")
@click.option("--timeout-ms", type=float, help="That a request may wait; 0 for ever.  [default: 0]")
@click.option("--instances", default=1, show_default=True, help="Of the model, on the CPU or on each GPU.")
@click.option("--threads", type=int, help="Of one run on the CPU.  [default: ONNX Runtime's]")
@click.option("--model-version", "version", default=1, show_default=True, help="Number of the version's folder.")
@click.option(
    "--keep-versions", default=1, show_default=True, help="How many of the newest are served, and stay with --force."
)
@click.option("--warmup/--no-warmup", default=True, help="Run the model before it is ready.  [default: yes]")
@click.option("--ensemble", is_flag=True, help="Add models that take photographs (Triton's Python backend).")
@click.option("--force", is_flag=True, help="Replace models of the same name.")
@JSON
def triton(artifacts: tuple[str, ...], output: Path, force: bool, as_json: bool, **asked: Any) -> None:
    """Write a model repository for NVIDIA Triton."""
    from mlpdeploy.triton.options import TritonOptions
    from mlpdeploy.triton.repository import write_repository

    written = write_repository(named_artifacts(artifacts), output, TritonOptions(**asked), force=force)
    if as_json:
        print_json({**dataclasses.asdict(written), "repository": str(written.repository)})
        return
    click.echo(f"{written.repository}: {', '.join(written.models)}")
    click.echo(f"  {written.command}")


def named_artifacts(texts: tuple[str, ...]) -> dict[str, Path]:
    """Return {model name: folder} of `DIRECTORY`, which takes the manifest's name, or `NAME=DIRECTORY`."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        directory = Path(rest if equals else text)
        name = name if equals else str(read_manifest(directory).model["name"])
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UsageError(f"the model name {name!r}", "letters, digits, . _ -", "name it: NAME=DIRECTORY")
        if name in found:
            raise UsageError(f"two models are named {name!r}", "names that differ", "name one of them: NAME=DIRECTORY")
        found[name] = directory
    return found
