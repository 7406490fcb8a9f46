"""Build the plugin library with CMake and nvcc, once per sources, compilers, headers and architectures."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlpdeploy.artifact import disk_errors, new_artifact
from mlpdeploy.env import closest, cpu_count, package_version
from mlpdeploy.errors import PluginError, UsageError
from mlpdeploy.plugins.elf import read_symbols
from mlpdeploy.plugins.find import (
    CACHE_FIX,
    FORMAT_VERSION,
    LIBRARY_NAME,
    RECORD_NAME,
    BuildRecord,
    Face,
    PluginLibrary,
    cache_directory,
    check_library,
    face_of,
    locate,
    read_record,
)
from mlpdeploy.plugins.toolchain import CSRC, Toolchain, find_toolchain, known_architectures, sources_sha256

# Turing to Blackwell, with Orin (87) for JetPack; those that the installed nvcc does not know are left out.
ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "100", "120")
EXPORTS = {
    "IPluginV3": ("getCreators", "mlpdeploy_axial_shift", "setLoggerFinder"),
    "IPluginV2DynamicExt": ("getPluginCreators", "mlpdeploy_axial_shift", "setLoggerFinder"),
}
_LOG_NAME = "build.log"

Say = Callable[[str], None]
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        architectures: compute capabilities such as `89`; empty means all of ARCHITECTURES that nvcc knows.
        tensorrt_include: the folder of TensorRT's headers; None means: look for it.
        force: build again even if this build is in the cache.
    """

    architectures: tuple[str, ...] = ()
    tensorrt_include: Path | None = None
    force: bool = False


def ensure_plugin_library(face: Face = "IPluginV3", say: Say = lambda text: None) -> Path:
    """Return the plugin library, and build it first where there is none: half a minute, once.

    Raises:
        PluginError, MissingDependencyError: it cannot be built.
    """
    try:
        return locate(face).path
    except PluginError:
        if os.environ.get("MLPDEPLOY_PLUGIN_LIBRARY"):
            raise
    library = build_plugin(BuildOptions(), say)
    if library.record and library.record.face != face:
        raise PluginError(
            f"the headers of TensorRT {library.record.tensorrt_headers} give a library with {library.record.face}",
            f"headers of the TensorRT that will load it ({face})",
            "name their folder: mlpdeploy plugin build --tensorrt-include DIR",
        )
    return library.path


def build_plugin(
    options: BuildOptions, say: Say = lambda text: None, advance: Advance = lambda done, total: None
) -> PluginLibrary:
    """Return the library, from the cache if it was built before.

    Two builders at once wait for each other; a killed one leaves nothing that could be taken for a library.

    Args:
        say: is told what happens.
        advance: is told (steps done, steps in all) of the compilation.

    Raises:
        UsageError: an architecture that nvcc does not know.
        MissingDependencyError: a compiler or the headers are missing.
        PluginError: the compilation failed; the log's path is in the message.
    """
    tools = find_toolchain(options.tensorrt_include)
    architectures = _architectures(options.architectures, tools)
    directory = cache_directory() / _key(tools, architectures)
    with disk_errors(directory, CACHE_FIX):
        directory.parent.mkdir(parents=True, exist_ok=True)
    with build_lock(directory.with_suffix(".lock"), "the CUDA plugin", say):
        cached = PluginLibrary(directory / LIBRARY_NAME, read_record(directory / LIBRARY_NAME))
        if cached.record and not options.force:
            check_library(cached)
            return cached
        names = ", ".join(f"sm_{name}" for name in architectures)
        say(f"compiling the CUDA plugin for {names} (nvcc {tools.nvcc_version}, TensorRT {tools.tensorrt_version})")
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mlpdeploy-plugin-") as scratch:
            log = directory.with_suffix(".log")
            built = _compile(Path(scratch), tools, architectures, log, advance)
            _check_symbols(built, face_of(tools.tensorrt_version))
            seconds = round(time.monotonic() - start, 1)
            record = _record(built, tools, architectures, seconds)
            with new_artifact(directory, CACHE_FIX) as staging:
                shutil.copy(built, staging / LIBRARY_NAME)
                shutil.move(log, staging / _LOG_NAME)
                (staging / RECORD_NAME).write_text(record.to_json())
        say(f"built {directory / LIBRARY_NAME} in {seconds:.0f} s")
    return PluginLibrary(directory / LIBRARY_NAME, record)


def _architectures(wanted: tuple[str, ...], tools: Toolchain) -> tuple[str, ...]:
    known = known_architectures(tools.nvcc)
    names = [name.lower().removeprefix("sm_").replace(".", "") for name in wanted]
    for name in names:
        if name not in known:
            raise UsageError(f"architecture {name!r} with nvcc {tools.nvcc_version}", closest(name, known))
    chosen = set(names) if names else known.intersection(ARCHITECTURES)
    return tuple(sorted(chosen, key=int))


def _key(tools: Toolchain, architectures: tuple[str, ...]) -> str:
    parts = (sources_sha256(), tools.nvcc_version, tools.host_compiler, tools.tensorrt_version, ",".join(architectures))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _record(library: Path, tools: Toolchain, architectures: tuple[str, ...], seconds: float) -> BuildRecord:
    data = library.read_bytes()
    return BuildRecord(
        format=FORMAT_VERSION,
        mlpdeploy=package_version(),
        sources_sha256=sources_sha256(),
        library_sha256=hashlib.sha256(data).hexdigest(),
        library_bytes=len(data),
        face=face_of(tools.tensorrt_version),
        tensorrt_headers=tools.tensorrt_version,
        nvcc=tools.nvcc_version,
        host_compiler=tools.host_compiler,
        architectures=architectures,
        ptx=tuple(sorted({architectures[0], architectures[-1]}, key=int)),
        seconds=seconds,
    )


def _compile(scratch: Path, tools: Toolchain, architectures: tuple[str, ...], log: Path, advance: Advance) -> Path:
    # Machine code for each; of the newest also PTX, for GPUs to come, and of the oldest, for those in between.
    last = len(architectures) - 1
    targets = [name if index in (0, last) else f"{name}-real" for index, name in enumerate(architectures)]
    configure = [str(tools.cmake), "-S", str(CSRC), "-B", str(scratch), "-DCMAKE_BUILD_TYPE=Release"]
    configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools.ninja}"] if tools.ninja else ["-G", "Unix Makefiles"]
    configure += [f"-DCMAKE_CUDA_COMPILER={tools.nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(targets)}"]
    configure += [f"-DTENSORRT_INCLUDE_DIR={tools.tensorrt_include}"]
    build = [str(tools.cmake), "--build", str(scratch), "--parallel", str(cpu_count())]
    with disk_errors(log, CACHE_FIX), log.open("w") as file:
        for command in (configure, build):
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            _run(command, file.fileno(), log, advance)
    return scratch / LIBRARY_NAME


def _run(command: list[str], log_handle: int, log: Path, advance: Advance) -> None:
    """Run one step of the build; its output goes to the log, its `[3/7]` to the progress bar."""
    first_error = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            os.write(log_handle, line.encode())
            if step := re.match(r"\[(\d+)/(\d+)\]", line):
                advance(int(step[1]), int(step[2]))
            if not first_error and re.search(r"\berror\b", line, re.IGNORECASE):
                first_error = line.strip()
    if process.returncode:
        raise PluginError(
            f"the CUDA plugin could not be compiled ({first_error or f'exit code {process.returncode}'})",
            fix=f"see {log}",
        )


def _check_symbols(library: Path, face: Face) -> None:
    """Raise PluginError unless a library shows what TensorRT looks for, and wants nothing of TensorRT itself."""
    symbols = read_symbols(library)
    if symbols.defined != EXPORTS[face]:
        raise PluginError(f"the built library exports {', '.join(symbols.defined)}", ", ".join(EXPORTS[face]))
    wanted = [name for name in symbols.undefined if "nvinfer" in name.lower() or "PluginRegistry" in name]
    if wanted:
        raise PluginError(f"the built library needs {', '.join(wanted)} of TensorRT", "no symbol of it")


@contextmanager
def build_lock(path: Path, what: str, say: Say) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process ends, however it ends."""
    with disk_errors(path, CACHE_FIX), path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process builds {what}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
