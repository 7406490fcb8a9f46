"""`mlpdeploy export`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from mlpdeploy.commands.options import ARTIFACT, JSON, Batch, ImageSize, Numbers
from mlpdeploy.console import RANDOM_NOTE, input_lines, megabytes, print_json, steps
from mlpdeploy.manifest import Manifest, largest_error


@click.command(
    epilog="Examples: mlpdeploy export --checkpoint finetuned.pth --labels names.txt -o mine; "
    "mlpdeploy export --model asmlp_s -o asmlp_s; "
    "mlpdeploy export --model asmlp_t --features --image-size dynamic -o backbone"
)
@click.option("--model", "name", metavar="NAME", help="See: mlpdeploy models.  [default: what the checkpoint is of]")
@click.option("-o", "--output", "directory", required=True, type=ARTIFACT, help="The artifact folder to make.")
@click.option("--checkpoint", type=ARTIFACT, help=".pth or .safetensors.  [default: random weights]")
@click.option(
    "--checkpoint-key",
    metavar="KEY",
    help="Which weights of a file that has several: model_ema, ...  [default: those that training evaluates]",
)
@click.option("--seed", default=0, show_default=True, help="Of the random weights.")
@click.option("--num-classes", type=int, help="[default: the model's]")
@click.option(
    "--labels", type=ARTIFACT, help="File with one label a line, a JSON list or object, or a folder of class folders."
)
@click.option("--image-size", type=ImageSize(), help="224, 224x320 (height x width), dynamic.  [default: the model's]")
@click.option("--pad-odd-sizes", is_flag=True, help="Take any size, padded with zeros as detection code does (AS-MLP).")
@click.option("--in-chans", type=int, help="Channels of the image.  [default: the model's]")
@click.option("--mean", type=Numbers(), help="Per channel, of pixels in 0..1, as in training.  [default: the model's]")
@click.option("--std", type=Numbers(), help="Per channel, as in training.  [default: the model's]")
@click.option("--crop-pct", type=float, help="Side of the crop over side of the image.  [default: the model's]")
@click.option("--interpolation", metavar="NAME", help="bicubic or bilinear.  [default: the model's]")
@click.option("--batch", type=Batch(), default="dynamic", show_default=True, help="Rows, or dynamic.")
@click.option("--shift-size", type=int, help="AS-MLP's shift size, odd.  [default: 5]")
@click.option("--dilation", type=int, help="AS-MLP's dilation.  [default: 1]")
@click.option("--padding", metavar="MODE", help="zero, circular, reflect or replicate (AS-MLP).  [default: zero]")
@click.option("--branches", metavar="MODE", help="parallel or serial (AS-MLP).  [default: parallel]")
@click.option("--shift", default="auto", show_default=True, help="The lowered axial shift: auto, plugin, conv, slice.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="cpu, openvino, tensorrt or tensorrt-rtx; repeat for several.  [default: cpu; tensorrt for --shift plugin]",
)
@click.option("--features", is_flag=True, help="One feature map per stage instead of logits (AS-MLP, CycleMLP).")
@click.option("--opset", type=int, help="Of the standard operators.  [default: 21]")
@click.option("--no-verify", is_flag=True, help="Do not compare with PyTorch.")
@click.option("--force", is_flag=True, help="Replace an artifact that is there.")
@JSON
def export(
    name: str | None,
    directory: Path,
    checkpoint: Path | None,
    checkpoint_key: str | None,
    seed: int,
    num_classes: int | None,
    labels: Path | None,
    image_size: Any,
    pad_odd_sizes: bool,
    in_chans: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    crop_pct: float | None,
    interpolation: str | None,
    batch: int | None,
    shift_size: int | None,
    dilation: int | None,
    padding: Any,
    branches: Any,
    shift: Any,
    targets: tuple[str, ...],
    features: bool,
    opset: int | None,
    no_verify: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Export a model to ONNX: canonical, lowered for a target, and compared with PyTorch."""
    from mlpdeploy.artifact import check_output
    from mlpdeploy.models.registry import resolve_model

    if name is not None:
        resolve_model(name)
    check_output(directory, force)
    say = steps()
    say("loading PyTorch")
    from mlpdeploy.export.export import export_model
    from mlpdeploy.export.labels import read_labels
    from mlpdeploy.export.preprocessing import preprocessing_for
    from mlpdeploy.export.trace import DEFAULT_OPSET
    from mlpdeploy.models.create import create_model

    say("building the model")
    model = create_model(
        name,
        num_classes=num_classes,
        image_size=None if image_size == "dynamic" else image_size,
        in_chans=in_chans,
        shift_size=shift_size,
        dilation=dilation,
        padding=padding,
        branches=branches,
        features=features,
        pad_odd_sizes=pad_odd_sizes,
        checkpoint=checkpoint,
        checkpoint_key=checkpoint_key,
        seed=seed,
    )
    if name is None:
        outputs = "feature maps" if getattr(model.config, "features", False) else f"{model.config.num_classes} classes"
        say(f"{checkpoint} is of {model.name}, {outputs}")
    manifest = export_model(
        model,
        directory,
        image_size="dynamic" if image_size == "dynamic" else None,
        batch=batch,
        shift=shift,
        target=targets,
        opset=DEFAULT_OPSET if opset is None else opset,
        labels=None if labels is None else read_labels(labels),
        preprocessing=preprocessing_for(model, mean=mean, std=std, crop_pct=crop_pct, interpolation=interpolation),
        force=force,
        verify=not no_verify,
        progress=say,
    )
    say("done")
    if as_json:
        print_json(json.loads(manifest.to_json()))
        return

    print_export(directory, manifest)


def print_export(directory: Path, manifest: Manifest) -> None:
    """Print what an export made."""
    click.echo(f"{directory}: {manifest.model['name']}, {manifest.model['source']}")
    for name, entry in manifest.files.items():
        shift = f", shift as {entry.shift}" if entry.shift else ""
        click.echo(f"  {name:<22} {megabytes(entry.bytes):>9}  {entry.role}{shift}")
    prepared = None if manifest.preprocessing is None else dataclasses.asdict(manifest.preprocessing)
    for line in input_lines(prepared, manifest.labels):
        click.echo(f"  {line}")
    for report in manifest.passes:
        refused = sum(map(len, report["refused"].values()))
        if not report["changed"] and not refused:
            continue
        left = f", {refused} left as they are (mlpdeploy inspect says why)" if refused else ""
        click.echo(f"  {report['name']}: {report['changed']} changed{left}")
    error = largest_error(manifest.verification) if manifest.verification else None
    if error is not None:
        click.echo(f"  equal to PyTorch: largest error {error:.1e} of the outputs' spread (float64 reference)")
    else:
        click.echo("  not verified: run mlpdeploy verify")
    if manifest.model["random_weights"]:
        click.echo(f"note: {RANDOM_NOTE}", err=True)
