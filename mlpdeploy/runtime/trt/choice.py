"""Which engine of an artifact runs on this machine; where none does, what differs and what to type.

Everything is compared before anything is loaded: TensorRT itself says no more than that it returns nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from mlpdeploy.artifact import disk_errors
from mlpdeploy.engines.sidecar import FOLDER, Fingerprint, Sidecar, engines_of
from mlpdeploy.errors import ArtifactError, PluginError
from mlpdeploy.manifest import CANONICAL, Manifest
from mlpdeploy.runtime.gpu import Gpu
from mlpdeploy.runtime.tensorrt_api import EngineError

AMPERE = 8.0


@dataclass(frozen=True)
class Machine:
    """What decides whether an engine runs here.

    Attributes:
        target: the flavour of TensorRT that is installed, `tensorrt` or `tensorrt-rtx`.
        version: of TensorRT, in full.
        gpu: the GPU.
        index: of it, among those that the process may use.
    """

    target: str
    version: str
    gpu: Gpu
    index: int = 0


def choose_engine(directory: Path, manifest: Manifest, machine: Machine) -> Sidecar:
    """Return the engine of an artifact that fits this machine; of several the fastest as measured, or the widest.

    One whose plugin library is not here is taken only where there is no other, so that the error names the library.

    Raises:
        EngineError: there is none; the message names the nearest one, what differs, and the command that builds.
        ArtifactError: an engine's description is damaged.
    """
    engines = [engine for engine in engines_of(directory) if engine.fingerprint.target == machine.target]
    if not engines:
        raise EngineError(
            f"{directory} has no engine for {machine.target} yet",
            fix=f"run: {build_command(directory, machine)}",
        )
    differences = {engine.file: differences_of(engine.fingerprint, manifest, machine) for engine in engines}
    fitting = [engine for engine in engines if not differences[engine.file]]
    if not fitting:
        nearest = min(engines, key=lambda engine: len(differences[engine.file]))
        others = f" (the nearest of {len(engines)})" if len(engines) > 1 else ""
        raise EngineError(
            f"{directory / FOLDER / nearest.file}{others} does not fit: {'; '.join(differences[nearest.file])}",
            fix=f"run: {build_command(directory, machine, nearest.fingerprint)}",
        )
    return max(fitting, key=lambda engine: (_plugin_is_here(engine), _preference(engine)))


def differences_of(mark: Fingerprint, manifest: Manifest, machine: Machine) -> list[str]:
    """Return one phrase for each reason why an engine cannot run this artifact on this machine."""
    gpu, found = machine.gpu, []
    if not _version_fits(mark, machine.version):
        found.append(f"it is for TensorRT {mark.version}, here is {machine.version}")
    if mark.target == "tensorrt-rtx":
        if gpu.compute_capability not in mark.compute_capabilities:
            found.append(f"it is for compute capability {_joined(mark)}, {gpu.name} has {gpu.compute_capability}")
    elif mark.flags.get("hardware_compatible"):
        if float(gpu.compute_capability) < AMPERE:
            found.append(f"it is for GPUs of Ampere and later, {gpu.name} is older")
    elif (mark.gpu, mark.compute_capabilities) != (gpu.name, (gpu.compute_capability,)):
        found.append(f"it is for {mark.gpu} ({_joined(mark)}), here is {gpu.name} ({gpu.compute_capability})")
    if mark.source_sha256 != manifest.files[manifest.file_for(CANONICAL)].sha256:
        found.append("it was built from another model than the artifact holds now")
    if mark.precision != manifest.precision:
        found.append(f"it is {mark.precision}, the artifact {manifest.precision}")
    if mark.flags.get("strip"):
        found.append("it was built without weights (--strip), which only other programs put in")
    return found


def build_command(directory: Path, machine: Machine, like: Fingerprint | None = None) -> str:
    """Return the command that builds an engine for this machine, with the shapes and the shift of another one."""
    words = ["mlpdeploy", "build", str(directory)]
    if machine.target == "tensorrt-rtx":
        words += ["--target", machine.target, "--compute-capability", machine.gpu.compute_capability]
    elif machine.index:  # TensorRT builds for the first GPU that it may use
        words.insert(0, f"CUDA_VISIBLE_DEVICES={_name_of_gpu(machine.index)}")
    for profile in like.profiles if like else ():
        low, middle, high = next(iter(profile.values()))
        words += ["--profile", f"{low[0]}:{middle[0]}:{high[0]}"]
    if like and like.profiles:
        sizes = [tuple(shape[2:]) for shape in next(iter(like.profiles[0].values()))]
        if len(set(sizes)) > 1:
            words += ["--image-size", ":".join("x".join(map(str, size)) for size in sizes)]
    return shlex.join(words)


def _name_of_gpu(index: int) -> str:
    """Return by what CUDA_VISIBLE_DEVICES names a GPU that has this index here: it may be set already."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return named[index] if index < len(named) else str(index)


def read_engine_file(directory: Path, sidecar: Sidecar) -> bytes:
    """Return an engine's bytes.

    Raises:
        ArtifactError: it is missing, truncated or changed.
    """
    path, again = (
        directory / FOLDER / sidecar.file,
        f"run: mlpdeploy build {shlex.quote(str(directory))} --force with the same options",
    )
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", fix=again)
    with disk_errors(path):
        plan = path.read_bytes()
    if len(plan) != sidecar.bytes:
        raise ArtifactError(f"{path} is cut off: it has {len(plan)} bytes", f"{sidecar.bytes}", again)
    if hashlib.sha256(plan).hexdigest() != sidecar.sha256:
        raise ArtifactError(f"{path} was changed: its checksum differs", fix=again)
    return plan


def plugin_for(sidecar: Sidecar) -> Path | None:
    """Return the plugin library that an engine needs, or None.

    Raises:
        PluginError: it is not built, or another one.
    """
    mark = sidecar.fingerprint
    if not mark.plugin_sha256:
        return None
    from mlpdeploy.plugins.find import builds, check_library, face_of, find_plugin_library

    try:
        library = find_plugin_library(face_of(mark.version))
    except PluginError as error:
        raise PluginError(f"{sidecar.file} needs the plugin library: {error.got}", error.wanted, error.fix) from error
    if hashlib.sha256(library.read_bytes()).hexdigest() != mark.plugin_sha256:
        for other in builds():  # an earlier one may still be in the cache
            if other.record is not None and other.record.library_sha256 == mark.plugin_sha256:
                check_library(other)
                return other.path
        raise PluginError(
            f"{sidecar.file} was built with another plugin library than {library}",
            fix="build the engine again with mlpdeploy build, or name its library in MLPDEPLOY_PLUGIN_LIBRARY",
        )
    return library


def _plugin_is_here(sidecar: Sidecar) -> bool:
    try:
        plugin_for(sidecar)
    except PluginError:
        return False
    return True


def _version_fits(mark: Fingerprint, version: str) -> bool:
    """Whether a version runs an engine: its own does, and with --version-compatible a later one of the same major."""
    if mark.version == version:
        return True
    built, here = ([int(part) for part in re.findall(r"\d+", text)] for text in (mark.version, version))
    return bool(mark.flags.get("version_compatible")) and built[0] == here[0] and built <= here


def _joined(mark: Fingerprint) -> str:
    return " and ".join(mark.compute_capabilities)


def _preference(engine: Sidecar) -> tuple[bool, int, bool, str]:
    """What was measured to be the faster form, then the most rows, then the plugin."""
    mark = engine.fingerprint
    rows = max((shapes[2][0] for profile in mark.profiles for shapes in profile.values()), default=0)
    return bool(engine.measured_ms), rows, bool(mark.plugin_sha256), mark.name()
