"""From an artifact to an engine in its folder: lower, build in a process of its own, keep with its description."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlpdeploy.artifact import disk_errors, keep_file, write_file
from mlpdeploy.engines.network import FORMS, NATIVE_SHIFT, Network, has_own_file, lowered_network
from mlpdeploy.engines.options import BuildOptions, Shapes, profiles_for
from mlpdeploy.engines.process import Progress, run_build
from mlpdeploy.engines.sidecar import FOLDER, SUFFIXES, Fingerprint, Sidecar, read_sidecar
from mlpdeploy.engines.worker import BuildRequest, BuildResult
from mlpdeploy.errors import ArtifactError, MlpDeployError, UsageError
from mlpdeploy.manifest import CANONICAL, Manifest, read_manifest, sha256_of
from mlpdeploy.runtime.gpu import Gpu, visible_gpu
from mlpdeploy.runtime.tensorrt_api import load_tensorrt

_SCRATCH = ".build."


@dataclass(frozen=True)
class Built:
    """An engine in an artifact.

    Attributes:
        path: of the engine.
        sidecar: what it is.
        reused: whether it was there already.
    """

    path: Path
    sidecar: Sidecar
    reused: bool


@dataclass(frozen=True)
class _Tools:
    """What builds: the version of TensorRT, the GPU (None without one), the plugin library (None for native layers)."""

    version: str
    gpu: Gpu | None
    plugin: Path | None


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
    """
    directory = Path(directory)
    options.check()
    manifest = read_manifest(directory)
    if options.shift == "auto" and has_both_forms(manifest, options):
        from mlpdeploy.engines.choose import build_fastest

        return build_fastest(directory, manifest, options, force=force, progress=progress)
    built = _build(directory, manifest, options, force=force, progress=progress)
    assert built is not None
    return built


def find_engine(directory: Path, manifest: Manifest, options: BuildOptions) -> Built | None:
    """Return the engine that `build_artifact` would give, where it is there already; the shift must be named."""
    return _build(directory, manifest, options, only_look=True)


def has_both_forms(manifest: Manifest, options: BuildOptions) -> bool:
    """Return whether the shift can be the plugin and native layers, and engines with either can be run here."""
    if options.target == "tensorrt-rtx" or manifest.model["family"] != "asmlp" or options.flags.strip:
        return False
    try:
        _find_plugin_library(load_tensorrt(options.target).version)
    except MlpDeployError:
        return False
    return manifest.precision == "fp32" or all(has_own_file(manifest, options.target, form) for form in FORMS)


def _build(
    directory: Path,
    manifest: Manifest,
    options: BuildOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
    only_look: bool = False,
) -> Built | None:
    """Return the engine, built where it is not there; None where it is not and we only look."""
    profiles = profiles_for(manifest, options)
    version = load_tensorrt(options.target).version
    # Asked before TensorRT is: without a GPU it does not say so, but ends the process.
    gpu = None if options.target == "tensorrt-rtx" else visible_gpu()
    plugin, why_native = _plugin_library(manifest, options, version)
    tell = progress or (lambda done, text: None)
    folder = directory / FOLDER
    with _scratch(folder) as scratch:
        tell(0.0, "lowering")
        network = lowered_network(directory, manifest, options.target, "plugin" if plugin else NATIVE_SHIFT, scratch)
        mark = _fingerprint(manifest, options, _Tools(version, gpu, plugin), profiles, network)
        found = None if force else _existing(folder, mark)
        if found is not None:
            return Built(folder / found.file, found, reused=True)
        if only_look:
            return None
        cache = options.timing_cache or (_timing_cache(folder, version, gpu) if gpu else None)
        request = BuildRequest(
            target=options.target,
            network=str(network.path),
            output=str(scratch / "engine"),
            precision=manifest.precision,
            profiles=profiles,
            compute_capabilities=options.compute_capabilities,
            flags=options.flags,
            plugin_library=str(plugin or ""),
            timing_cache=str(cache or ""),
            new_timing_cache=str(scratch / "timing"),
        )
        result = run_build(request, scratch, progress)
        if cache:
            write_file(cache, (scratch / "timing").read_bytes())
        result = dataclasses.replace(result, warnings=(*why_native, *result.warnings))
        return _keep(folder, scratch / "engine", mark, gpu.driver if gpu else "", result)


def _plugin_library(manifest: Manifest, options: BuildOptions, version: str) -> tuple[Path | None, tuple[str, ...]]:
    """Return the plugin library to build with, or None for native layers; and why `auto` came to those.

    Raises:
        UsageError: `plugin` for a model without an axial shift.
        MlpDeployError: `plugin`, and its library is not there, or damaged.
    """
    if options.shift == "native" or options.target == "tensorrt-rtx":
        return None, ()
    if manifest.model["family"] != "asmlp":
        if options.shift == "plugin":
            raise UsageError(f"--shift plugin for {manifest.model['name']}", "an AS-MLP", "leave --shift out")
        return None, ()
    try:
        return _find_plugin_library(version), ()
    except MlpDeployError as error:
        if options.shift == "plugin":
            raise
        return None, (f"the shift is in native layers: {error}",)


def _find_plugin_library(version: str) -> Path:
    """Return the plugin's library for a version of TensorRT.

    Raises:
        PluginError: it is not built, or damaged.
    """
    from mlpdeploy.plugins.find import face_of, find_plugin_library

    return find_plugin_library(face_of(version))


def _timing_cache(folder: Path, version: str, gpu: Gpu) -> Path:
    """Return the artifact's own file of timings, which are good for one version and one GPU."""
    return folder / f"timing-{version}-{re.sub('[^a-z0-9]+', '-', gpu.name.lower())}-{gpu.compute_capability}.cache"


def _fingerprint(
    manifest: Manifest, options: BuildOptions, tools: _Tools, profiles: tuple[dict[str, Shapes], ...], network: Network
) -> Fingerprint:
    gpu = tools.gpu
    return Fingerprint(
        target=options.target,
        version=tools.version,
        gpu=gpu.name if gpu else "",
        compute_capabilities=(gpu.compute_capability,) if gpu else options.compute_capabilities,
        precision=manifest.precision,
        shift=network.shift,
        profiles=tuple(
            {name: [list(shape) for shape in shapes] for name, shapes in profile.items()} for profile in profiles
        ),
        flags=dataclasses.asdict(options.flags),
        plugin_sha256=sha256_of(tools.plugin) if tools.plugin else "",
        source_sha256=manifest.files[manifest.file_for(CANONICAL)].sha256,
        network_sha256=network.sha256,
    )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a folder in `folder` for one build, which vanishes afterwards, as do those of builds that were killed.

    Each is locked by the process that made it; the lock ends with the process.
    """
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
        for old in folder.glob(f"{_SCRATCH}*"):
            with suppress(OSError), _locked(old):
                shutil.rmtree(old)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=folder))
    try:
        with _locked(scratch):
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # it stays where an engine is in it
            folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; OSError where another process holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _existing(folder: Path, mark: Fingerprint) -> Sidecar | None:
    """Return the engine with this fingerprint, or None where there is none that is whole."""
    path = folder / f"{mark.name()}.json"
    if not path.exists():
        return None
    try:
        sidecar = read_sidecar(path)
    except ArtifactError:
        return None
    engine = folder / sidecar.file
    whole = engine.is_file() and engine.stat().st_size == sidecar.bytes and sha256_of(engine) == sidecar.sha256
    return sidecar if whole and sidecar.fingerprint == mark else None


def _keep(folder: Path, engine: Path, mark: Fingerprint, driver: str, result: BuildResult) -> Built:
    """Move a finished engine to its place, then write what it is beside it."""
    path = folder / f"{mark.name()}{SUFFIXES[mark.target]}"
    sidecar = Sidecar(
        fingerprint=mark,
        file=path.name,
        sha256=sha256_of(engine),
        bytes=engine.stat().st_size,
        driver=driver,
        parse_seconds=round(result.parse_seconds, 3),
        build_seconds=round(result.build_seconds, 3),
        network_layers=result.network_layers,
        network_types=result.network_types,
        engine_layers=result.engine_layers,
        warnings=result.warnings,
    )
    keep_file(engine, path)
    write_file(path.with_suffix(".json"), sidecar.to_json().encode())
    return Built(path, sidecar, reused=False)
