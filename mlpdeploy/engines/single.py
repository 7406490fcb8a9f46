"""One engine, from an artifact to its folder: lower, build in a process of its own, keep with its description."""

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
from mlpdeploy.engines.plugin_code import PluginCode, plugin_to_build_with
from mlpdeploy.engines.process import Progress, run_build
from mlpdeploy.engines.sidecar import FOLDER, SUFFIXES, BuildFacts, Fingerprint, Sidecar, read_sidecar
from mlpdeploy.engines.worker import BuildRequest
from mlpdeploy.errors import ArtifactError
from mlpdeploy.manifest import CANONICAL, Manifest, sha256_of
from mlpdeploy.runtime.gpu import Gpu, visible_gpu
from mlpdeploy.runtime.tensorrt_api import TensorRt, load_tensorrt

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
    """What builds: the TensorRT, the GPU (None without one), the plugin (None for native layers)."""

    api: TensorRt
    gpu: Gpu | None
    plugin: PluginCode | None


def build_one(
    directory: Path, manifest: Manifest, options: BuildOptions, *, force: bool = False, progress: Progress | None = None
) -> Built:
    """Return the engine with the shift in one form, built where it is not there; `auto` means the plugin where it can.

    Raises:
        As `build_artifact`.
    """
    built = _build(directory, manifest, options, force=force, progress=progress)
    assert built is not None
    return built


def find_engine(directory: Path, manifest: Manifest, options: BuildOptions) -> Built | None:
    """Return the engine that `build_one` would give, where it is there already."""
    return _build(directory, manifest, options, only_look=True)


def gpu_for(options: BuildOptions) -> Gpu | None:
    """Return the GPU that the engine is built on; None for TensorRT-RTX, which needs none.

    Asked before TensorRT is: without a GPU it does not say so, but ends the process.

    Raises:
        MissingDependencyError: there is none.
    """
    return None if options.target == "tensorrt-rtx" else visible_gpu()


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
    api = load_tensorrt(options.target)
    gpu = gpu_for(options)
    if gpu is not None:
        api.check_driver(gpu.driver, gpu.cuda)
    tell = progress or (lambda done, text: None)
    plugin, why_native = plugin_to_build_with(manifest, options, api, gpu, lambda text: tell(0.0, text))
    folder = directory / FOLDER
    with _scratch(folder) as scratch:
        tell(0.0, "lowering")
        if plugin and not options.asks_for_plugin and _only_native(manifest, options.target):
            plugin, why_native = None, ("the shift is in native layers: so it is in the artifact's file",)
        network = lowered_network(
            directory, manifest, options.target, "plugin" if plugin else NATIVE_SHIFT, scratch, api.newest_opset
        )
        mark = _fingerprint(manifest, options, _Tools(api, gpu, plugin), profiles, network)
        found = None if force else _existing(folder, mark)
        if found is not None:
            return Built(folder / found.file, found, reused=True)
        if only_look:
            return None
        cache = options.timing_cache or (_timing_cache(folder, api.version, gpu) if gpu else None)
        request = BuildRequest(
            target=options.target,
            network=str(network.path),
            output=str(scratch / "engine"),
            precision=manifest.precision,
            profiles=profiles,
            compute_capabilities=options.compute_capabilities,
            flags=options.flags,
            plugin_library=str(plugin.library) if plugin and plugin.library else "",
            embedded=str(plugin.ptx.folder) if plugin and plugin.ptx else "",
            timing_cache=str(cache or ""),
            cache_is_named=options.timing_cache is not None,
            new_timing_cache=str(scratch / "timing"),
        )
        try:
            result = run_build(request, scratch, progress)
        finally:  # also where an engine was built and is not kept
            if cache and (scratch / "timing").exists():
                write_file(cache, (scratch / "timing").read_bytes())
        result = dataclasses.replace(result, warnings=(*why_native, *result.warnings))
        return _keep(folder, scratch / "engine", mark, gpu.driver if gpu else "", result)


def _only_native(manifest: Manifest, target: str) -> bool:
    """Whether the artifact is quantized and has its shift in native layers alone: no other form can be made of it."""
    forms = {form: has_own_file(manifest, target, form) for form in FORMS}
    return manifest.precision != "fp32" and forms[NATIVE_SHIFT] and not forms["plugin"]


def _timing_cache(folder: Path, version: str, gpu: Gpu) -> Path:
    """Return the artifact's own file of timings, which are good for one version and one GPU."""
    return folder / f"timing-{version}-{re.sub('[^a-z0-9]+', '-', gpu.name.lower())}-{gpu.compute_capability}.cache"


def _fingerprint(
    manifest: Manifest, options: BuildOptions, tools: _Tools, profiles: tuple[dict[str, Shapes], ...], network: Network
) -> Fingerprint:
    gpu, plugin = tools.gpu, tools.plugin
    return Fingerprint(
        target=options.target,
        version=tools.api.version,
        gpu=gpu.name if gpu else "",
        compute_capabilities=(gpu.compute_capability,) if gpu else options.compute_capabilities,
        precision=manifest.precision,
        shift=network.shift,
        profiles=tuple(
            {name: [list(shape) for shape in shapes] for name, shapes in profile.items()} for profile in profiles
        ),
        flags=dataclasses.asdict(options.flags),
        plugin_sha256=sha256_of(plugin.library) if plugin and plugin.library else "",
        source_sha256=manifest.files[manifest.file_for(CANONICAL)].sha256,
        network_sha256=network.sha256,
        embedded_sha256=plugin.ptx.sha256 if plugin and plugin.ptx else "",
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


def _keep(folder: Path, engine: Path, mark: Fingerprint, driver: str, result: BuildFacts) -> Built:
    """Move a finished engine to its place, then write what it is beside it."""
    path = folder / f"{mark.name()}{SUFFIXES[mark.target]}"
    sidecar = Sidecar(
        fingerprint=mark,
        file=path.name,
        sha256=sha256_of(engine),
        bytes=engine.stat().st_size,
        driver=driver,
        **vars(result),
    )
    keep_file(engine, path)
    write_file(path.with_suffix(".json"), sidecar.to_json().encode())
    return Built(path, sidecar, reused=False)
