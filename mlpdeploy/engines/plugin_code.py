"""Which form of the plugin an engine is built with: the library that it will need, or code that it carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.errors import MlpDeployError, UsageError
from mlpdeploy.manifest import Manifest
from mlpdeploy.runtime.gpu import Gpu
from mlpdeploy.runtime.tensorrt_api import EngineError, TensorRt

Say = Callable[[str], None]

if TYPE_CHECKING:
    from mlpdeploy.plugins.ptx import Ptx


@dataclass(frozen=True)
class PluginCode:
    """One of the two; the other is None."""

    library: Path | None = None
    ptx: Ptx | None = None


def plugin_to_build_with(
    manifest: Manifest, options: BuildOptions, api: TensorRt, gpu: Gpu | None, say: Say
) -> tuple[PluginCode | None, tuple[str, ...]]:
    """Return the plugin to build with, or None for native layers; and why `auto` came to those.

    Args:
        say: is told when the plugin is compiled.

    Raises:
        UsageError: a plugin for a model without an axial shift, or embedded in an engine of a TensorRT that cannot.
        MlpDeployError: it was asked for, and its code is not there, or damaged.
    """
    if options.shift == "native" or options.target == "tensorrt-rtx":
        return None, ()
    asked = options.asks_for_plugin
    if manifest.model["family"] != "asmlp":
        if asked:
            raise UsageError(f"{asked} for {manifest.model['name']}", "an AS-MLP", f"leave {asked} out")
        return None, ()
    try:
        return plugin_code(options, api, gpu, say), ()
    except MlpDeployError as error:
        if asked:
            raise
        return None, (f"the shift is in native layers: {error}",)


def plugin_code(options: BuildOptions, api: TensorRt, gpu: Gpu | None, say: Say) -> PluginCode:
    """Return the code in the form that is asked for; it is compiled where that was not done before.

    Raises:
        UsageError: engines of this TensorRT carry none.
        PluginError, MissingDependencyError: it is not built, damaged, or cannot be compiled.
        EngineError: the driver is too old for it.
    """
    if options.plugin != "embedded":
        library = find_library(api.version, say)
        _check_runtime(library, gpu)
        return PluginCode(library=library)
    from mlpdeploy.plugins.ptx import build_ptx

    api.check_embedded()
    say("compiling the plugin's code for the engine")
    ptx = build_ptx()
    if gpu is not None and gpu.cuda and _numbers(gpu.cuda) < _numbers(ptx.cuda):
        raise EngineError(
            f"the NVIDIA driver {gpu.driver} serves CUDA {gpu.cuda}, and this nvcc makes code for CUDA {ptx.cuda}",
            "a driver as new as nvcc, or an older nvcc",
            "update the driver, name another nvcc in CUDACXX, or build with --plugin library",
        )
    return PluginCode(ptx=ptx)


def _check_runtime(library: Path, gpu: Gpu | None) -> None:
    """Raise EngineError where the library has a later major version of CUDA than the driver: no kernel would start."""
    from mlpdeploy.plugins.find import read_record

    record = read_record(library)
    if record is not None and gpu is not None and gpu.cuda and _numbers(gpu.cuda)[0] < _numbers(record.nvcc)[0]:
        raise EngineError(
            f"the NVIDIA driver {gpu.driver} serves CUDA {gpu.cuda}, and {library} was compiled by nvcc {record.nvcc}",
            f"nvcc {_numbers(gpu.cuda)[0]}, or a driver as new as nvcc",
            "update the driver, or name another nvcc in CUDACXX and run: mlpdeploy plugin build --force",
        )


def find_library(version: str, say: Say) -> Path:
    """Return the plugin's library for a version of TensorRT; it is compiled where there is none.

    Raises:
        PluginError: it cannot be compiled, or is damaged.
        MissingDependencyError: there is none, and no compiler.
    """
    from mlpdeploy.plugins.build import ensure_plugin_library
    from mlpdeploy.plugins.find import face_of

    return ensure_plugin_library(face_of(version), say)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
