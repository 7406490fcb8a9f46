"""Find the plugin library: for the engine build, for loading an engine, and for programs in C++."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlpdeploy.errors import PluginError
from mlpdeploy.plugins.toolchain import sources_sha256

LIBRARY_VARIABLE = "MLPDEPLOY_PLUGIN_LIBRARY"
REGISTER_VARIABLE = "MLPDEPLOY_REGISTER_PLUGIN"  # read by the library itself: see csrc/exports.cpp
CACHE_VARIABLE = "MLPDEPLOY_CACHE"
CACHE_FIX = f"name a folder that you own in {CACHE_VARIABLE}"
LIBRARY_NAME = "libmlpdeploy_plugins.so"
RECORD_NAME = "build.json"
FORMAT_VERSION = 1
OLDEST_V3 = 10

Face = Literal["IPluginV3", "IPluginV2DynamicExt"]


@dataclass(frozen=True)
class BuildRecord:
    """What was built, from what and with what; written beside the library, because its machine code does not say.

    Attributes:
        format: of this record.
        mlpdeploy: version of this package.
        sources_sha256: checksum over csrc.
        library_sha256: checksum of the library.
        library_bytes: its size.
        face: the plugin interface that it has.
        tensorrt_headers: version of the headers.
        nvcc: version of the CUDA compiler, whose runtime library is inside.
        host_compiler: what the C++ compiler says of itself.
        architectures: compute capabilities with machine code, as in `89`.
        ptx: compute capabilities with code that the driver compiles.
        seconds: that the build took.
    """

    format: int
    mlpdeploy: str
    sources_sha256: str
    library_sha256: str
    library_bytes: int
    face: Face
    tensorrt_headers: str
    nvcc: str
    host_compiler: str
    architectures: tuple[str, ...]
    ptx: tuple[str, ...]
    seconds: float

    def to_json(self) -> str:
        """Return the record as a JSON document."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class PluginLibrary:
    """A library that is there, with its record where there is one: a library named by hand may have none."""

    path: Path
    record: BuildRecord | None


def cache_directory(kind: str = "plugins") -> Path:
    """Return the folder of what is kept of one kind, below $MLPDEPLOY_CACHE or the user's cache folder."""
    given, user = os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME", "")
    if given:
        return Path(given) / kind
    return (Path(user) if os.path.isabs(user) else Path.home() / ".cache") / "mlpdeploy" / kind


def face_of(tensorrt_version: str) -> Face:
    """Return the plugin interface that a TensorRT wants: IPluginV3 from 10.0 on."""
    return "IPluginV3" if int(tensorrt_version.partition(".")[0]) >= OLDEST_V3 else "IPluginV2DynamicExt"


def find_plugin_library(face: Face = "IPluginV3") -> Path:
    """Return the plugin library: the one that MLPDEPLOY_PLUGIN_LIBRARY names, else the newest build of these sources.

    Raises:
        PluginError: there is none, or it is damaged.
    """
    return locate(face).path


def locate(face: Face = "IPluginV3") -> PluginLibrary:
    """Return what `find_plugin_library` finds, with its record."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        return _named(Path(named), face)
    found = [library for library in builds() if library.record and library.record.face == face]
    current = [library for library in found if library.record and library.record.sources_sha256 == sources_sha256()]
    if not current:
        stale = f"; {len(found)} of other versions are in the cache" if found else ""
        raise PluginError(
            f"the CUDA plugin is not built{stale}",
            fix=f"run: mlpdeploy plugin build, or name a library built elsewhere in {LIBRARY_VARIABLE}",
        )
    newest = max(current, key=lambda library: library.path.stat().st_mtime_ns)
    check_library(newest)
    return newest


def builds() -> list[PluginLibrary]:
    """Return every finished build in the cache, of whatever version."""
    folders = sorted(cache_directory().glob(f"*/{LIBRARY_NAME}"))
    return [PluginLibrary(path, read_record(path)) for path in folders if not path.parent.name.startswith(".")]


def read_record(library: Path) -> BuildRecord | None:
    """Return the record beside a library, or None where there is none that this version understands."""
    try:
        data = json.loads((library.parent / RECORD_NAME).read_text())
        record = BuildRecord(**{**data, "architectures": tuple(data["architectures"]), "ptx": tuple(data["ptx"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if record.format == FORMAT_VERSION else None


def check_library(library: PluginLibrary) -> None:
    """Raise PluginError if a library is not what its record says."""
    if library.record is None:
        return
    data = library.path.read_bytes()
    if len(data) != library.record.library_bytes or hashlib.sha256(data).hexdigest() != library.record.library_sha256:
        raise PluginError(f"{library.path} was changed or cut off", fix="run: mlpdeploy plugin build --force")


def _named(path: Path, face: Face) -> PluginLibrary:
    if not path.is_file():
        raise PluginError(f"{LIBRARY_VARIABLE} is {path}, and there is no such file", "the path of a plugin library")
    library = PluginLibrary(path.resolve(), read_record(path.resolve()))
    if library.record and library.record.face != face:
        raise PluginError(
            f"{path} has the interface {library.record.face}", face, "build it with the headers of your TensorRT"
        )
    check_library(library)
    return library
