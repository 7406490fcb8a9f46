"""The command line: parse, one call, print. Data goes to stdout, talk to stderr; exit 0, 1 (failure) or 2 (usage)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mlpdeploy.env import closest, package_version
from mlpdeploy.errors import MlpDeployError, UsageError


class Commands(click.Group):
    """A group that turns our errors into one line and an exit code, and suggests the nearest command."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MlpDeployError as error:
            click.echo(f"mlpdeploy: {error}", err=True)
            ctx.exit(error.exit_code)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}; {closest(args[0], self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


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


ARTIFACT = click.Path(path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout instead of text.")
THREADS = click.option("--threads", type=int, help="Threads of one run.  [default: all usable processors]")
BACKEND = click.option("--backend", metavar="NAME", help="onnxruntime or torch.  [default: onnxruntime]")
DEVICE = click.option("--device", metavar="NAME", help="cpu or cuda.  [default: cuda where it is there]")


def print_json(data: Any) -> None:
    """Write JSON to stdout."""
    click.echo(json.dumps(data, indent=1, ensure_ascii=False))


def steps() -> Callable[[str], None]:
    """Return a function that tells on stderr which step begins, and when."""
    start = time.monotonic()
    return lambda text: click.echo(f"{time.monotonic() - start:6.1f} s  {text}", err=True)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with: mlpdeploy export --model asmlp_s -o asmlp_s && mlpdeploy predict asmlp_s photo.jpg",
)
@click.version_option(package_version(), prog_name="mlpdeploy")
def main() -> None:
    """From a PyTorch checkpoint of AS-MLP or Vision Permutator to fast, verified inference."""


@main.command()
@JSON
def models(as_json: bool) -> None:
    """List the models: names, parameters, multiply-adds."""
    from mlpdeploy.models.statistics import model_table

    rows = model_table()
    if as_json:
        print_json(rows)
        return
    from mlpdeploy.console import print_models

    print_models(rows)


@main.command(
    epilog="Examples: mlpdeploy export --model asmlp_s --checkpoint asmlp_s.pth -o asmlp_s; "
    "mlpdeploy export --model asmlp_t --features --image-size dynamic -o backbone"
)
@click.option("--model", "name", required=True, metavar="NAME", help="See: mlpdeploy models.")
@click.option("-o", "--output", "directory", required=True, type=ARTIFACT, help="The artifact folder to make.")
@click.option("--checkpoint", type=ARTIFACT, help=".pth or .safetensors.  [default: random weights]")
@click.option("--seed", default=0, show_default=True, help="Of the random weights.")
@click.option("--num-classes", type=int, help="[default: 1000]")
@click.option("--labels", type=ARTIFACT, help="File with one label a line, or a JSON list.")
@click.option("--image-size", type=ImageSize(), help="224, 224x320 (height x width) or dynamic.  [default: 224]")
@click.option("--pad-odd-sizes", is_flag=True, help="Take any size, padded with zeros as detection code does (AS-MLP).")
@click.option("--in-chans", type=int, help="Channels of the image.  [default: 3]")
@click.option("--batch", type=Batch(), default="dynamic", show_default=True, help="Rows, or dynamic.")
@click.option("--shift-size", type=int, help="AS-MLP's shift size, odd.  [default: 5]")
@click.option("--dilation", type=int, help="AS-MLP's dilation.  [default: 1]")
@click.option("--padding", metavar="MODE", help="zero, circular, reflect or replicate (AS-MLP).  [default: zero]")
@click.option("--branches", metavar="MODE", help="parallel or serial (AS-MLP).  [default: parallel]")
@click.option("--shift", default="auto", show_default=True, help="The lowered axial shift: auto, plugin, conv, slice.")
@click.option("--target", metavar="NAME", help="cpu or tensorrt.  [default: cpu; tensorrt for --shift plugin]")
@click.option("--features", is_flag=True, help="One feature map per stage instead of logits (AS-MLP).")
@click.option("--opset", type=int, help="Of the standard operators.  [default: 21]")
@click.option("--no-verify", is_flag=True, help="Do not compare with PyTorch.")
@click.option("--force", is_flag=True, help="Replace an artifact that is there.")
@JSON
def export(
    name: str,
    directory: Path,
    checkpoint: Path | None,
    seed: int,
    num_classes: int | None,
    labels: Path | None,
    image_size: Any,
    pad_odd_sizes: bool,
    in_chans: int | None,
    batch: int | None,
    shift_size: int | None,
    dilation: int | None,
    padding: Any,
    branches: Any,
    shift: Any,
    target: str | None,
    features: bool,
    opset: int | None,
    no_verify: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Export a model to ONNX: canonical, lowered for a target, and compared with PyTorch."""
    from mlpdeploy.artifact import check_output
    from mlpdeploy.models.registry import resolve_model

    resolve_model(name)
    check_output(directory, force)
    say = steps()
    say("loading PyTorch")
    from mlpdeploy.export.export import export_model
    from mlpdeploy.export.labels import read_labels
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
        seed=seed,
    )
    manifest = export_model(
        model,
        directory,
        image_size="dynamic" if image_size == "dynamic" else None,
        batch=batch,
        shift=shift,
        target=target,
        opset=opset or DEFAULT_OPSET,
        labels=None if labels is None else read_labels(labels),
        force=force,
        verify=not no_verify,
        progress=say,
    )
    say("done")
    if as_json:
        print_json(json.loads(manifest.to_json()))
        return
    from mlpdeploy.console import print_export

    print_export(directory, manifest)


@main.command(epilog="Example: mlpdeploy verify asmlp_s --json")
@click.argument("directory", type=ARTIFACT)
@BACKEND
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="cpu or cuda.")
@THREADS
@click.option("--no-record", is_flag=True, help="Leave the artifact's manifest as it is.")
@JSON
def verify(
    directory: Path, backend: str | None, device: str, threads: int | None, no_record: bool, as_json: bool
) -> None:
    """Compare an artifact with PyTorch: interface, values, rows of a batch, classes."""
    from mlpdeploy.verify import verify_artifact

    report = verify_artifact(
        directory, backend=backend, device=device, threads=threads, record=not no_record, progress=steps()
    )
    if as_json:
        print_json(report.to_dict())
    else:
        from mlpdeploy.console import print_verify

        print_verify(report)
    if not report.passed:
        click.echo(f"mlpdeploy: {report.failure()}", err=True)
        raise click.exceptions.Exit(1)


@main.command(
    epilog="Examples: mlpdeploy predict asmlp_s photo.jpg; mlpdeploy predict asmlp_s photos/ --json > out.json"
)
@click.argument("directory", type=ARTIFACT)
@click.argument("images", nargs=-1, required=True, type=ARTIFACT)
@click.option("--top", default=5, show_default=True, help="Classes to name per image.")
@click.option("--batch", "rows", default=8, show_default=True, help="Images that go through the model at once.")
@click.option("--skip-bad", is_flag=True, help="Name images that cannot be read, and go on.")
@BACKEND
@DEVICE
@THREADS
@JSON
def predict(
    directory: Path,
    images: tuple[Path, ...],
    top: int,
    rows: int,
    skip_bad: bool,
    backend: str | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Classify photographs, or folders of them."""
    from mlpdeploy.console import bar, print_predictions
    from mlpdeploy.prediction import predict as run

    with bar("classifying") as progress:
        predictions = run(
            directory,
            images,
            top=top,
            backend=backend,
            device=device,
            threads=threads,
            batch=rows,
            skip_bad=skip_bad,
            progress=progress,
        )
    print_predictions(directory, predictions, as_json)


@main.command(epilog="Example: mlpdeploy bench asmlp_s --batch 1 --batch 8 -o bench.json --plot bench.png")
@click.argument("directory", type=ARTIFACT)
@click.option("--batch", "batches", multiple=True, type=int, help="Repeat for a sweep.  [default: 1, 8]")
@click.option("--image-size", type=ImageSize(), help="Where the model leaves it open.  [default: the model's own]")
@click.option("--seconds", default=20.0, show_default=True, help="Measuring time per batch size.")
@click.option("--peer", "peers", multiple=True, help="Compare with these only; `none` for no peer. Repeat for several.")
@click.option("--no-memory", is_flag=True, help="Do not measure memory and load time in processes of their own.")
@click.option("-o", "--output", type=ARTIFACT, help="Write the results as JSON.")
@click.option("--plot", type=ARTIFACT, help="Write the comparison as PNG.")
@THREADS
@JSON
def bench(
    directory: Path,
    batches: tuple[int, ...],
    image_size: Any,
    seconds: float,
    peers: tuple[str, ...],
    no_memory: bool,
    output: Path | None,
    plot: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure an artifact against what else one would use: eager, compiled, exported without us."""
    from mlpdeploy.bench.report import print_report
    from mlpdeploy.bench.run import bench_artifact, write_report

    if image_size == "dynamic":
        raise UsageError("image size dynamic for a measurement", "a size in pixels")
    report = bench_artifact(
        directory,
        batches=batches or None,
        threads=threads,
        seconds=seconds,
        image_size=image_size,
        peers=() if peers == ("none",) else peers or None,
        memory=not no_memory,
        progress=steps(),
    )
    write_report(report, output, plot)
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)


@main.command()
@click.argument("directory", type=ARTIFACT)
@JSON
def inspect(directory: Path, as_json: bool) -> None:
    """Show what an artifact holds: files, operators, passes, verification."""
    from mlpdeploy.inspection import inspect_artifact

    data = inspect_artifact(directory)
    if as_json:
        print_json(data)
        return
    from mlpdeploy.console import print_inspection

    print_inspection(directory, data)


@main.command()
@JSON
def doctor(as_json: bool) -> None:
    """Tell what is installed, what is missing and what to type. Exit 1 if models cannot be run."""
    import dataclasses

    from mlpdeploy.doctor import examine

    findings = examine()
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        from mlpdeploy.console import print_findings

        print_findings(findings)
    if any(finding.status == "missing" for finding in findings):
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main()
