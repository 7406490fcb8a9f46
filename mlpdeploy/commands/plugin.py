"""`mlpdeploy plugin build` and `mlpdeploy plugin info`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpdeploy.commands.options import JSON
from mlpdeploy.console import bar, megabytes, plain_table, print_json, show, steps

if TYPE_CHECKING:
    from mlpdeploy.plugins.find import PluginLibrary


@click.group()
def plugin() -> None:
    """Build the CUDA plugin for TensorRT or the CPU kernels for ONNX Runtime, or tell what is built."""


@plugin.command(epilog="Example: mlpdeploy plugin build --arch 89")
@click.option(
    "--arch",
    "architectures",
    multiple=True,
    metavar="NAME",
    help="Compute capability, e.g. 89; repeatable.  [default: all]",
)
@click.option(
    "--tensorrt-include",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of NvInfer.h.  [default: looked for]",
)
@click.option("--cpu", is_flag=True, help="Build the CPU kernels for ONNX Runtime instead: a C++ compiler is enough.")
@click.option("--force", is_flag=True, help="Build again even if this build is in the cache.")
@JSON
def build(architectures: tuple[str, ...], tensorrt_include: Path | None, cpu: bool, force: bool, as_json: bool) -> None:
    """Compile the plugin library with CMake and nvcc into the user's cache; needs no GPU."""
    import dataclasses

    if cpu:
        build_cpu(architectures, tensorrt_include, force, as_json)
        return

    from mlpdeploy.plugins.build import BuildOptions, build_plugin

    options = BuildOptions(architectures, tensorrt_include, force)
    with bar("compiling") as advance:
        library = build_plugin(options, steps(), advance)
    if as_json:
        record = dataclasses.asdict(library.record) if library.record else None
        print_json({"library": str(library.path), "record": record})
    else:
        print_build(library)


def build_cpu(architectures: tuple[str, ...], tensorrt_include: Path | None, force: bool, as_json: bool) -> None:
    """Build the CPU kernels, and print where they are."""
    from mlpdeploy.errors import UsageError
    from mlpdeploy.plugins.cpu import PRECISIONS, build_cpu_library, kernels_of

    if architectures or tensorrt_include:
        raise UsageError("--cpu with an option of the CUDA plugin", fix="leave --arch and --tensorrt-include out")
    path = build_cpu_library(steps(), force)
    kernels = {precision: kernels_of(path, precision) for precision in PRECISIONS}
    if as_json:
        others = {f"{precision}_kernels": kernels[precision] for precision in PRECISIONS[1:]}
        print_json({"library": str(path), "kernels": kernels["fp32"], **others})
    else:
        click.echo(path)
        click.echo(f"  float32: {kernels['fp32'] or 'not used on this processor, which has no AVX2'}")
        click.echo(f"  bfloat16: {kernels['bf16'] or 'none for this processor, which has neither AMX nor AVX-512'}")
        click.echo(f"  int8: {kernels['int8'] or 'none for this processor, which has neither AMX nor VNNI'}")


def print_build(library: PluginLibrary) -> None:
    """Print where a library is, and what for."""
    click.echo(library.path)
    if library.record:
        record = library.record
        click.echo(f"  {record.face}, headers of TensorRT {record.tensorrt_headers}, nvcc {record.nvcc}")
        click.echo(f"  sm_{', sm_'.join(record.architectures)}; PTX of {', '.join(record.ptx)}")
        click.echo(f"  {megabytes(record.library_bytes)}, compiled in {record.seconds:.0f} s")


@plugin.command()
@JSON
def info(as_json: bool) -> None:
    """Tell which plugin library is used, what is in it, and what could build one. Exit 1 if there is none."""
    from mlpdeploy.plugins.info import plugin_info

    report = plugin_info()
    if as_json:
        print_json(report)
    else:
        print_info(report)
    if report["library"] is None:
        raise click.exceptions.Exit(1)


def print_info(report: dict[str, Any]) -> None:
    """Print `plugin_info`."""
    table = plain_table("what", "found")
    table.add_row("library", report["library"] or report["problem"])
    if record := report["record"]:
        table.add_row("interface", f"{record['face']}, headers of TensorRT {record['tensorrt_headers']}")
        table.add_row("architectures", f"sm_{', sm_'.join(record['architectures'])}; PTX of {', '.join(record['ptx'])}")
        table.add_row("compilers", f"nvcc {record['nvcc']}, {record['host_compiler']}")
        table.add_row("size", megabytes(record["library_bytes"]))
    elif report["library"]:
        table.add_row("record", "none beside it: versions and architectures are not known")
    if symbols := report["symbols"]:
        table.add_row("exports", ", ".join(symbols["defined"]))
    tools = report["tools"]
    table.add_row("cache", f"{report['cache']}, {len(report['builds'])} builds")
    table.add_row(
        "tools",
        f"nvcc {tools['nvcc_version']}, TensorRT {tools['tensorrt_version']} headers in {tools['tensorrt_include']}"
        if tools
        else report["tools_problem"],
    )
    show(table)
