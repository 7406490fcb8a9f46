"""The compilers and headers that build the plugin library: found, and named when they are missing."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlpdeploy.errors import MissingDependencyError, PluginError

CSRC = Path(__file__).parent / "csrc"
CPU_FOLDER = "cpu"  # below it: a library of its own, see cpu.py
INCLUDE_VARIABLE = "MLPDEPLOY_TENSORRT_INCLUDE"
HEADER = "NvInferRuntime.h"
# The packages of the distributions, of the tar archive, and of NVIDIA's containers.
_SYSTEM_INCLUDES = (
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/include",
    "/usr/local/tensorrt/include",
    "/opt/tensorrt/include",
)
OLDEST_TENSORRT = (8, 6)


@dataclass(frozen=True)
class Toolchain:
    """Everything that a build depends on but the sources.

    Attributes:
        nvcc: the CUDA compiler.
        nvcc_version: as in `13.0.88`.
        host_compiler: the first line that the C++ compiler says of itself.
        cmake: the build system.
        ninja: its faster backend, or None for make.
        tensorrt_include: the folder of NvInferRuntime.h.
        tensorrt_version: of these headers, as in `10.14.1`.
    """

    nvcc: Path
    nvcc_version: str
    host_compiler: str
    cmake: Path
    ninja: Path | None
    tensorrt_include: Path
    tensorrt_version: str


def find_toolchain(tensorrt_include: Path | None = None) -> Toolchain:
    """Return the tools of this machine.

    Args:
        tensorrt_include: the folder of TensorRT's headers; None means: look for it.

    Raises:
        MissingDependencyError: no nvcc, no CMake or no headers.
        PluginError: headers of a TensorRT that is too old.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise MissingDependencyError(
            "no nvcc found on PATH, in CUDA_HOME or in /usr/local/cuda",
            fix="install the CUDA toolkit, or copy a plugin library built elsewhere and name it in "
            "MLPDEPLOY_PLUGIN_LIBRARY",
        )
    cmake = _program("cmake")
    if cmake is None:
        raise MissingDependencyError("CMake is not installed", fix="run: pip install 'mlpdeploy[plugin]'")
    include = find_tensorrt_include(tensorrt_include)
    version = tensorrt_version(include)
    if tuple(map(int, version.split(".")))[:2] < OLDEST_TENSORRT:
        raise PluginError(f"TensorRT {version} headers in {include}", "8.6 or newer", "install a newer TensorRT")
    ninja = _program("ninja")
    host = first_line([os.environ.get("CXX", "c++"), "--version"])
    return Toolchain(nvcc, nvcc_version(nvcc), host, cmake, ninja, include, version)


def find_nvcc() -> Path | None:
    """Return the CUDA compiler: CUDACXX, PATH, CUDA_HOME, then the usual place."""
    candidates = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    candidates += [f"{home}/bin/nvcc" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return next((Path(path) for path in candidates if path and os.access(path, os.X_OK)), None)


def nvcc_version(nvcc: Path) -> str:
    """Return nvcc's version, as in `13.0.88`."""
    found = re.search(r"\bV(\d+\.\d+\.\d+)", _output([str(nvcc), "--version"]))
    if found is None:
        raise PluginError(f"{nvcc} does not say its version", fix="check the CUDA toolkit")
    return found[1]


def known_architectures(nvcc: Path) -> set[str]:
    """Return the compute capabilities that this nvcc compiles for, as in `89`."""
    return set(re.findall(r"compute_(\d+)", _output([str(nvcc), "--list-gpu-arch"])))


def find_tensorrt_include(given: Path | None = None) -> Path:
    """Return the folder of TensorRT's headers.

    Raises:
        MissingDependencyError: there is none where one was named, or nowhere at all.
    """
    named = {
        "--tensorrt-include": given,
        INCLUDE_VARIABLE: os.environ.get(INCLUDE_VARIABLE),
        "TENSORRT_HOME": os.environ.get("TENSORRT_HOME"),
    }
    for source, value in named.items():
        if not value:
            continue
        for folder in (Path(value), Path(value) / "include"):
            if (folder / HEADER).is_file():
                return folder.resolve()
        raise MissingDependencyError(f"{source} is {value}, and there is no {HEADER} in it", "the folder of NvInfer.h")
    # A package of Triton kernels that carries the headers of TensorRT 10.14: nobody else puts them on PyPI.
    package = importlib.util.find_spec("kernel_lens")
    folders = [Path(folder) for folder in _SYSTEM_INCLUDES]
    if package and package.origin:
        folders.append(Path(package.origin).parent / "include" / "tensorrt")
    for folder in folders:
        if (folder / HEADER).is_file():
            return folder.resolve()
    raise MissingDependencyError(
        "TensorRT's C++ headers are not installed (pip's tensorrt has none)",
        fix="run: apt install libnvinfer-headers-dev, or name their folder with --tensorrt-include, or run: "
        "pip install --no-deps kernel-lens==2.0.1",
    )


def tensorrt_version(include: Path) -> str:
    """Return the version of the headers in a folder, as in `10.14.1`."""
    text = (include / "NvInferVersion.h").read_text(errors="replace")
    # TensorRT 10 spells the numbers in macros of their own.
    numbers = dict(re.findall(r"#define\s+(\w+)\s+(\d+)", text))
    alias = dict(re.findall(r"#define\s+(NV_TENSORRT_\w+)\s+([A-Z]\w+)", text))
    names = [f"NV_TENSORRT_{part}" for part in ("MAJOR", "MINOR", "PATCH")]
    parts = [numbers.get(alias.get(name, name)) for name in names]
    if None in parts:
        raise PluginError(f"{include / 'NvInferVersion.h'} does not say its version", "headers of TensorRT 8.6 to 11")
    return ".".join(str(part) for part in parts)


@functools.cache
def sources_sha256() -> str:
    """Return a checksum over everything that is compiled for the plugin."""
    return checksum_of(path for path in CSRC.rglob("*") if path.relative_to(CSRC).parts[0] != CPU_FOLDER)


def checksum_of(files: Iterable[Path]) -> str:
    """Return a checksum over those of the files below CSRC that a compiler reads."""
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.suffix in (".h", ".cpp", ".cu", ".txt", ".map")):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(CSRC).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _program(name: str) -> Path | None:
    """Return a program from this environment, whether it is activated or not, or from PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return Path(found) if found else None


def first_line(command: list[str]) -> str:
    """Return the first line that a program prints."""
    return _output(command).partition("\n")[0].strip()


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise PluginError(
            f"{' '.join(command)} does not run ({error})", fix="check the compiler's installation"
        ) from error
    return done.stdout
