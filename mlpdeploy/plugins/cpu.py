"""The library of kernels for ONNX Runtime on the CPU: built with the system's C++ compiler, and found again.

It needs no header but the compiler's own, and takes some seconds. Nothing depends on it: the operators that it runs
have functions in the files, and without the library ONNX Runtime runs those.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlpdeploy.artifact import disk_errors, new_artifact
from mlpdeploy.env import closest, cpu_count, cpu_features
from mlpdeploy.errors import ArtifactError, MissingDependencyError, PluginError, UsageError
from mlpdeploy.plugins.build import build_lock
from mlpdeploy.plugins.find import CACHE_FIX, RECORD_NAME, cache_directory
from mlpdeploy.plugins.toolchain import CPU_FOLDER, CSRC, checksum_of, first_line

SWITCH_VARIABLE = "MLPDEPLOY_NATIVE"  # 0, or the name of the kernels; empty is the default
LIBRARY_VARIABLE = "MLPDEPLOY_CPU_LIBRARY"
LIBRARY_NAME = "libmlpdeploy_cpu.so"
# Instruction set -> what it needs of the compiler. Of float32's all but `portable` were measured to be faster than ONNX
# Runtime's own. That and `avx2int8` run by name only.
_AVX512_FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512dq")
_BF16_FLAGS = (*_AVX512_FLAGS, "-mavx512bf16")
FLAGS = {
    "avx512": ("-mavx512f",),
    "avx2": ("-mavx2", "-mfma"),
    "portable": (),
    "amx": (*_BF16_FLAGS, "-mamx-tile", "-mamx-bf16"),
    "avx512bf16": _BF16_FLAGS,
    "avx512round": ("-mavx512f", "-DMLPDEPLOY_ROUND_OPERANDS"),
    "amxint8": (*_AVX512_FLAGS, "-mamx-tile", "-mamx-int8"),
    "avx512vnni": (*_AVX512_FLAGS, "-mavx512vnni"),
    "avxvnni": ("-mavx2", "-mfma", "-mavxvnni"),
    "avx2int8": ("-mavx2", "-mfma", "-DMLPDEPLOY_WHOLE_OPERANDS"),
}
FLOAT_SETS = ("avx512", "avx2", "portable")
BF16_SETS = ("amx", "avx512bf16", "avx512round")
INT8_SETS = ("amxint8", "avx512vnni", "avxvnni", "avx2int8")
INSTRUCTION_SETS = FLOAT_SETS + BF16_SETS + INT8_SETS
# Instruction set -> what the processor calls it.
FEATURES = {
    "avx512": "avx512f",
    "avx2": "avx2",
    "amx": "amx_bf16",
    "avx512bf16": "avx512_bf16",
    "avx512round": "avx512f",
    "amxint8": "amx_int8",
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "avx2int8": "avx2",
}
DEFAULT_FEATURE = FEATURES["avx2"]  # which processors with AVX-512 have too
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast")

# Precision of the products -> the library's function that names its kernels for this processor.
_QUESTIONS = {
    "fp32": "mlpdeploy_cpu_kernels",
    "bf16": "mlpdeploy_cpu_bf16_kernels",
    "int8": "mlpdeploy_cpu_int8_kernels",
}
PRECISIONS = tuple(_QUESTIONS)

Say = Callable[[str], None]


def wanted_kernels() -> str | None:
    """Return what MLPDEPLOY_NATIVE asks for: the name of an instruction set, "" for the default, None for no kernels.

    Raises:
        UsageError: it is something else.
    """
    value = os.environ.get(SWITCH_VARIABLE, "")
    if value == "0":
        return None
    if value and value not in INSTRUCTION_SETS:
        raise UsageError(
            f"{SWITCH_VARIABLE} is {value!r}", f"0 or a set of kernels: {closest(value, INSTRUCTION_SETS)}"
        )
    return value


def wanted_here() -> bool:
    """Return whether kernels are wanted, and this processor has what the wanted ones need."""
    wanted = wanted_kernels()
    return wanted is not None and (bool(wanted) or DEFAULT_FEATURE in cpu_features())


def find_cpu_library() -> Path | None:
    """Return the library: the one that MLPDEPLOY_CPU_LIBRARY names, else the newest build of these sources, else None.

    Raises:
        PluginError: the variable names a file that is not there.
        UsageError: see `wanted_kernels`.
    """
    if not wanted_here():
        return None
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise PluginError(f"{LIBRARY_VARIABLE} is {named}, and there is no such file", "the path of a CPU library")
        return Path(named).resolve()
    try:
        cache = _cache()
    except PluginError:  # no folder, no library
        return None
    folders = sorted(cache.glob(f"{_name()}-*/{LIBRARY_NAME}"))
    return max(folders, key=lambda path: path.stat().st_mtime_ns, default=None)


def kernels_of(library: Path, precision: str = "fp32") -> str | None:
    """Return the name of the kernels that a library runs on this processor; None where it has none or cannot be loaded.

    Args:
        precision: of an artifact; in others than bf16 and int8 the products are float32's.
    """
    try:
        function = getattr(ctypes.CDLL(str(library)), _QUESTIONS.get(precision, _QUESTIONS["fp32"]))
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_char_p
    name = function()
    return None if name is None else name.decode()


def ensure_cpu_library(say: Say = lambda text: None) -> Path | None:
    """Return the library, and build it first where there is none; None, after one line, where that is not possible."""
    found = find_cpu_library()
    if found is not None or not wanted_here():
        return found
    try:
        return build_cpu_library(say)
    except (MissingDependencyError, PluginError, ArtifactError, OSError) as error:
        say(f"without the CPU kernels, which are faster: {error}")
        return None


def build_cpu_library(say: Say = lambda text: None, force: bool = False) -> Path:
    """Return the library, from the cache if these sources were built with this compiler before.

    Two builders at once wait for each other; a killed one leaves nothing that could be taken for a library.

    Raises:
        MissingDependencyError: there is no C++ compiler.
        PluginError: the compilation failed; the log's path is in the message.
    """
    compiler = _compiler()
    version = first_line([compiler, "--version"])
    mark = hashlib.sha256(version.encode()).hexdigest()[:8]
    directory = _cache() / f"{_name()}-{mark}"
    with disk_errors(directory, CACHE_FIX):
        directory.parent.mkdir(parents=True, exist_ok=True)
    with build_lock(directory.with_suffix(".lock"), "the CPU kernels", say):
        if force or not (directory / LIBRARY_NAME).is_file():
            say(f"compiling the CPU kernels, once ({version})")
            start = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="mlpdeploy-cpu-") as scratch:
                built = _compile(Path(scratch), compiler, directory.with_suffix(".log"))
                record = {
                    "sources_sha256": _sources(),
                    "compiler": version,
                    "seconds": round(time.monotonic() - start, 1),
                }
                with new_artifact(directory, CACHE_FIX) as staging:
                    shutil.copy(built, staging / LIBRARY_NAME)
                    (staging / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n")
    return directory / LIBRARY_NAME


def _cache() -> Path:
    try:
        return cache_directory(CPU_FOLDER)
    except RuntimeError as error:
        raise PluginError("this user has no home folder", "a folder for what is compiled", CACHE_FIX) from error


def _name() -> str:
    """Return the first part of a build's name; machines of other architectures may share the home folder."""
    return f"{_sources()[:16]}-{platform.machine()}"


@functools.cache
def _sources() -> str:
    return checksum_of((CSRC / CPU_FOLDER).iterdir())


def _compiler() -> str:
    """Return the C++ compiler: CXX, or the first one on PATH."""
    for name in (os.environ.get("CXX"), *_COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise MissingDependencyError(
        "no C++ compiler found on PATH or in CXX", fix="run: apt install g++ && mlpdeploy plugin build --cpu"
    )


def _compile(scratch: Path, compiler: str, log: Path) -> Path:
    """Compile every source, the kernels once per instruction set that the compiler knows, and link."""
    sets = {name: flags for name, flags in FLAGS.items() if _knows(compiler, flags)}
    known = tuple(f"-DMLPDEPLOY_WITH_{name.upper()}" for name in sets)
    units: list[tuple[Path, str, tuple[str, ...]]] = [
        (path, path.stem, known) for path in sorted((CSRC / CPU_FOLDER).glob("*.cpp")) if path.stem != "kernels"
    ]
    units += [(CSRC / CPU_FOLDER / "kernels.cpp", f"kernels_{name}", flags) for name, flags in sets.items()]
    objects = [scratch / f"{name}.o" for _, name, _ in units]
    commands = [
        [compiler, *_FLAGS, *flags, "-c", str(source), "-o", str(target)]
        for (source, _, flags), target in zip(units, objects, strict=True)
    ]
    library = scratch / LIBRARY_NAME
    with ThreadPoolExecutor(cpu_count()) as pool:
        done = list(pool.map(_run, commands))
    if all(code == 0 for code, _ in done):
        done.append(_run([compiler, "-shared", *map(str, objects), "-o", str(library)]))
    failed = [text for code, text in done if code != 0]
    if failed:
        with disk_errors(log, CACHE_FIX):
            log.write_text("\n".join(failed))
        first = next((line for line in failed[0].splitlines() if "error" in line), "the compiler stopped")
        raise PluginError(f"the CPU kernels could not be compiled ({first.strip()})", fix=f"see {log}")
    if not library.is_file():
        raise PluginError(f"{compiler} makes no library, and no error either", fix="name another compiler in CXX")
    return library


def _knows(compiler: str, flags: tuple[str, ...]) -> bool:
    """Return whether a compiler has an instruction set: one for another processor, or an old one, does not."""
    return not flags or _run([compiler, *flags, "-x", "c++", "-fsyntax-only", os.devnull])[0] == 0


def _run(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return 1, f"$ {' '.join(command)}\nerror: {error}\n"
    return done.returncode, f"$ {' '.join(command)}\n{done.stdout}{done.stderr}"
