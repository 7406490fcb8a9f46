"""The axial shift's kernel as PTX, which an engine can carry instead of needing the plugin library; nvcc makes it."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mlpdeploy.artifact import new_artifact
from mlpdeploy.errors import MissingDependencyError, PluginError
from mlpdeploy.plugins.find import CACHE_FIX, cache_directory
from mlpdeploy.plugins.toolchain import CSRC, find_nvcc, known_architectures, nvcc_version, sources_sha256

ELEMENT_BYTES = (1, 2, 4)
# Turing, the oldest that the plugin is for: the driver compiles PTX for every later GPU.
OLDEST_ARCHITECTURE = "75"


@dataclass(frozen=True)
class Ptx:
    """The kernel for each size of an element.

    Attributes:
        folder: has `axial_shift_<bytes>.ptx`.
        sha256: over all of them.
        cuda: the version that a driver must serve at least to read it, as in `13.0`.
    """

    folder: Path
    sha256: str
    cuda: str


def kernel_name(element_bytes: int) -> str:
    """Return the kernel's name in the PTX for elements of this size."""
    return f"mlpdeploy_axial_shift_{element_bytes}"


def ptx_file(element_bytes: int) -> str:
    """Return the name of the file with the kernel for elements of this size."""
    return f"axial_shift_{element_bytes}.ptx"


def build_ptx() -> Ptx:
    """Return the kernel as PTX; it is compiled once for these sources and this nvcc.

    Raises:
        MissingDependencyError: there is no nvcc.
        PluginError: the compilation failed.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise MissingDependencyError(
            "no nvcc found on PATH, in CUDA_HOME or in /usr/local/cuda",
            "the CUDA toolkit, whose nvcc makes the code that the engine carries",
            "install it, or leave --plugin out",
        )
    version = nvcc_version(nvcc)
    architecture = OLDEST_ARCHITECTURE
    if architecture not in (known := known_architectures(nvcc)):
        architecture = min(known, key=int)
    key = hashlib.sha256("\n".join((sources_sha256(), version, architecture)).encode()).hexdigest()[:16]
    folder = cache_directory() / f"ptx-{key}"
    if not folder.is_dir():
        with new_artifact(folder, CACHE_FIX) as staging:
            for element_bytes in ELEMENT_BYTES:
                _compile(nvcc, architecture, element_bytes, staging / ptx_file(element_bytes))
    digest = hashlib.sha256()
    for element_bytes in ELEMENT_BYTES:
        digest.update((folder / ptx_file(element_bytes)).read_bytes())
    return Ptx(folder, digest.hexdigest(), ".".join(version.split(".")[:2]))


def _compile(nvcc: Path, architecture: str, element_bytes: int, output: Path) -> None:
    source = CSRC / "axial_shift" / "embedded.cu"
    command = [str(nvcc), "-ptx", "-std=c++17", "-O3", f"-arch=compute_{architecture}"]
    command += [f"-DMLPDEPLOY_ELEMENT_BYTES={element_bytes}", str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise PluginError(f"the kernel could not be compiled to PTX ({lines[0]})", fix="check the CUDA toolkit")
