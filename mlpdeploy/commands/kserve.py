"""`mlpdeploy kserve`."""

from __future__ import annotations

from pathlib import Path

import click

from mlpdeploy.artifact import write_file
from mlpdeploy.commands.options import ARTIFACT
from mlpdeploy.kserve import KServeOptions, inference_service, yaml_of
from mlpdeploy.manifest import read_manifest


@click.command(
    epilog="Example: mlpdeploy kserve asmlp_s --storage-uri s3://models/asmlp_s --image registry/mlpdeploy:1"
)
@click.argument("directory", type=ARTIFACT)
@click.option("--storage-uri", required=True, help="Where the cluster finds the artifact, or the Triton repository.")
@click.option("--runtime", default="mlpdeploy", show_default=True, help="mlpdeploy or triton.")
@click.option("--image", default="", help="Container with mlpdeploy[serve] and a backend, for --runtime mlpdeploy.")
@click.option("--model-format", help="onnx or tensorrt, for --runtime triton.  [default: onnx]")
@click.option("--name", help="Of the service.  [default: the model's]")
@click.option("--min-replicas", default=1, show_default=True, help="0 lets KServe stop it when nobody asks.")
@click.option("--max-replicas", default=1, show_default=True, help="To which KServe scales.")
@click.option("--cpu", default="4", show_default=True, help="Processors of a replica.")
@click.option("--memory", default="4Gi", show_default=True, help="Memory of a replica.")
@click.option("--gpus", default=0, show_default=True, help="GPUs of a replica.")
@click.option("-o", "--output", type=ARTIFACT, help="Write it to this file.  [default: stdout]")
def kserve(directory: Path, storage_uri: str, name: str | None, output: Path | None, **asked: object) -> None:
    """Print a KServe InferenceService for Kubernetes."""
    known = str(read_manifest(directory).model["name"]).replace("_", "-")
    options = KServeOptions(name=name or known, storage_uri=storage_uri, **asked)  # type: ignore[arg-type]
    text = yaml_of(inference_service(options))
    if output is None:
        click.echo(text, nl=False)
    else:
        write_file(output, text.encode())
