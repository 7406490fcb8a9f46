"""`mlpdeploy build`: the engine that is asked for; where the form of the shift is left open, the faster one."""

from __future__ import annotations

from pathlib import Path

from mlpdeploy.engines.choose import build_fastest
from mlpdeploy.engines.network import FORMS, has_own_file
from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.engines.plugin_code import plugin_code
from mlpdeploy.engines.process import Progress
from mlpdeploy.engines.single import Built, build_one, gpu_for
from mlpdeploy.errors import MlpDeployError
from mlpdeploy.manifest import Manifest, read_manifest
from mlpdeploy.runtime.tensorrt_api import load_tensorrt


def build_artifact(
    directory: str | Path, options: BuildOptions, *, force: bool = False, progress: Progress | None = None
) -> Built:
    """Build an engine into `DIR/engines` and return it; the same request again returns the engine that is there.

    With the shift `auto`, an engine with the plugin and one with native layers are built and measured on this GPU where
    both are possible; the faster one stays.

    Args:
        directory: made by `mlpdeploy export`.
        options: what the engine is asked to be.
        force: build also where the same engine is there.
        progress: called often with the share that is done and what is going on.

    Raises:
        UsageError: an option is impossible for this model or this TensorRT.
        ArtifactError: the artifact is damaged, or its folder cannot be written.
        EngineError: TensorRT cannot parse or build the model.
        MissingDependencyError: TensorRT is not installed.
        PluginError: a form of the plugin was asked for that is not there.
    """
    directory = Path(directory)
    options.check()
    manifest = read_manifest(directory)
    if options.shift == "auto" and has_both_forms(manifest, options, progress):
        return build_fastest(directory, manifest, options, force=force, progress=progress)
    return build_one(directory, manifest, options, force=force, progress=progress)


def has_both_forms(manifest: Manifest, options: BuildOptions, progress: Progress | None = None) -> bool:
    """Return whether the shift can be the plugin and native layers, and engines with either can be run here.

    Raises:
        MissingDependencyError: there is no GPU to build on.
    """
    if options.target == "tensorrt-rtx" or manifest.model["family"] != "asmlp" or options.flags.strip:
        return False
    tell = progress or (lambda done, text: None)
    api, gpu = load_tensorrt(options.target), gpu_for(options)  # before anything is compiled for nothing
    try:
        plugin_code(options, api, gpu, lambda text: tell(0.0, text))
    except MlpDeployError:  # where the plugin was asked for by name, `build_one` says the same
        return False
    return manifest.precision == "fp32" or all(has_own_file(manifest, options.target, form) for form in FORMS)
