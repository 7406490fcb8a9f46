"""`mlpdeploy build`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpdeploy.commands.options import ARTIFACT, JSON
from mlpdeploy.console import megabytes, phase_bar, print_json
from mlpdeploy.errors import UsageError

if TYPE_CHECKING:
    from mlpdeploy.engines.options import Triple
    from mlpdeploy.engines.single import Built


@click.command(
    epilog="Examples: mlpdeploy build asmlp_s --profile 1:8:64; "
    "mlpdeploy build asmlp_s --target tensorrt-rtx --compute-capability 8.9"
)
@click.argument("directory", type=ARTIFACT)
@click.option("--target", default="tensorrt", show_default=True, metavar="NAME", help="tensorrt or tensorrt-rtx.")
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help="Of the GPUs that the engine is for (TensorRT-RTX). Repeat for several.",
)
@click.option("--min-batch", type=int, help="Rows of the smallest batch.  [default: 1]")
@click.option("--opt-batch", type=int, help="Rows that the engine is made fastest for.  [default: 8]")
@click.option("--max-batch", type=int, help="Rows of the largest batch.  [default: 32]")
@click.option("--profile", "profiles", multiple=True, metavar="MIN:OPT:MAX", help="The three at once; repeatable.")
@click.option("--image-size", "sizes", metavar="MIN:OPT:MAX", help="Pixels, 224 or 224x320 each, where they are open.")
@click.option("--shift", default="auto", show_default=True, help="auto, plugin or native; auto measures both.")
@click.option(
    "--plugin",
    metavar="FORM",
    help="library, which the engine then needs, or embedded: the engine carries the code.  [default: library]",
)
@click.option("--workspace", type=int, metavar="MB", help="Limit of the builder's scratch memory.")
@click.option("--optimization-level", type=int, help="0 to 5: how long to search.")
@click.option("--timing-cache", type=ARTIFACT, help="File that keeps timings.  [default: in the artifact]")
@click.option("--hardware-compatible", is_flag=True, help="For other GPUs of Ampere and later too.")
@click.option("--version-compatible", is_flag=True, help="For other TensorRT versions of the same major too.")
@click.option("--strip", is_flag=True, help="Leave the weights out; who loads the engine puts them in.")
@click.option("--refit", is_flag=True, help="Keep the weights exchangeable.")
@click.option("--tf32", is_flag=True, help="Let products of an fp32 model be rounded to ten bits.")
@click.option("--force", is_flag=True, help="Build also where the same engine is there.")
@JSON
def build(
    directory: Path,
    target: Any,
    capabilities: tuple[str, ...],
    min_batch: int | None,
    opt_batch: int | None,
    max_batch: int | None,
    profiles: tuple[str, ...],
    sizes: str | None,
    shift: Any,
    plugin: Any,
    workspace: int | None,
    optimization_level: int | None,
    timing_cache: Path | None,
    hardware_compatible: bool,
    version_compatible: bool,
    strip: bool,
    refit: bool,
    tf32: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Build an engine from an artifact into its folder: for this GPU, or by TensorRT-RTX without one."""
    from mlpdeploy.engines.build import build_artifact
    from mlpdeploy.engines.options import BuildOptions, parse_batches, parse_image_sizes
    from mlpdeploy.engines.tensorrt_builder import EngineFlags

    options = BuildOptions(
        target=target,
        batches=tuple(map(parse_batches, profiles)) or _batches(min_batch, opt_batch, max_batch),
        image_sizes=None if sizes is None else parse_image_sizes(sizes),
        shift=shift,
        plugin=plugin,
        compute_capabilities=capabilities,
        timing_cache=timing_cache,
        flags=EngineFlags(
            tf32=tf32,
            workspace_bytes=None if workspace is None else workspace << 20,
            optimization_level=optimization_level,
            hardware_compatible=hardware_compatible,
            version_compatible=version_compatible,
            strip=strip,
            refit=refit,
        ),
    )
    if profiles and (min_batch, opt_batch, max_batch) != (None, None, None):
        raise UsageError("--profile together with --min-batch, --opt-batch or --max-batch", "one of the two")
    with phase_bar("building") as progress:
        built = build_artifact(directory, options, force=force, progress=progress)
    if as_json:
        body = dataclasses.asdict(built.sidecar)
        print_json({"path": str(built.path), "reused": built.reused, **body})
    else:
        print_built(built)


def _batches(low: int | None, middle: int | None, high: int | None) -> tuple[Triple, ...]:
    """Return the profile of the three options; what is not given follows from the others."""
    if (low, middle, high) == (None, None, None):
        return ()
    low = 1 if low is None else low
    high = max(32, low, middle or 0) if high is None else high
    middle = max(low, min(8, high)) if middle is None else middle
    return ((low, middle, high),)


def print_built(built: Built) -> None:
    """Print what a build made."""
    sidecar, mark = built.sidecar, built.sidecar.fingerprint
    state = "already there" if built.reused else f"built in {sidecar.build_seconds:.1f} s"
    click.echo(f"{built.path}: {megabytes(sidecar.bytes)}, {state}")
    shift = f", shift as {mark.shift}" if mark.shift else ""
    if mark.embedded_sha256:
        shift += ", whose code the engine carries"
    gpu = mark.gpu or ", ".join(mark.compute_capabilities)
    click.echo(f"  {mark.target} {mark.version} for {gpu}; {mark.precision}{shift}")
    for profile in mark.profiles:
        for name, shapes in profile.items():
            click.echo(f"  {name}: " + " : ".join("x".join(map(str, shape)) for shape in shapes))
    layers = ", ".join(f"{count} {name}" for name, count in sidecar.network_types.items())
    click.echo(f"  {sum(sidecar.network_layers.values())} layers parsed: {layers}")
    if sidecar.engine_layers is not None:
        inside = sidecar.engine_layers
        types = ", ".join(f"{count} {name}" for name, count in inside["types"].items())
        click.echo(f"  {sum(inside['layers'].values())} layers in the engine: {types}; {inside['reformats']} reformats")
    for form, times in sidecar.measured_ms.items():
        click.echo(f"  shift as {form}: " + ", ".join(f"{ms:.3f} ms at batch {rows}" for rows, ms in times.items()))
    for warning in sidecar.warnings:
        click.echo(f"note: {warning}", err=True)
