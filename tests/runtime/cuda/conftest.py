"""The real pycuda on a simulated driver. It is compiled on the user's machine, so the development environment has none.

`docs/adr/0013-cuda-providers.md` says how it was compiled on a machine without a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mlpdeploy
from mlpdeploy.plugins.toolchain import find_nvcc

HERE = Path(__file__).parent
ROOT = Path(mlpdeploy.__file__).parent.parent
FAKES = ROOT / "cpp" / "tests" / "fakes"


def cuda_include() -> Path:
    """Return the folder of cuda.h."""
    nvcc = find_nvcc()
    homes = [os.environ.get("CUDA_HOME"), nvcc.resolve().parent.parent if nvcc else None, "/usr/local/cuda"]
    found = next((Path(home, "include") for home in homes if home and Path(home, "include", "cuda.h").is_file()), None)
    if found is None:
        pytest.skip("no cuda.h for a simulated driver")
    return found


def names_of(binary: Path, *options: str) -> set[str]:
    """Return the driver's functions among the names that `nm` lists."""
    told = subprocess.run(["nm", *options, binary], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"\bcu[A-Z]\w+", told))


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda.so.1: the simulated GPU, and a failure for everything else that pycuda wants to find."""
    package = importlib.util.find_spec("pycuda")  # imports nothing
    if package is None or package.origin is None:
        pytest.skip("no pycuda: pip install pycuda compiles it (docs/adr/0013-cuda-providers.md)")
    (extension,) = Path(package.origin).parent.glob("_driver*.so")
    for tool in ("g++", "nm"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} for a simulated driver")
    folder = tmp_path_factory.mktemp("driver")
    include = [f"-I{FAKES}", f"-I{ROOT / 'cpp' / 'src'}", "-isystem", str(cuda_include())]
    objects = []
    for source in (FAKES / "fake_cuda.cpp", HERE / "driver_for_pycuda.cpp"):
        objects.append(str(folder / f"{source.stem}.o"))
        command = ["g++", "-std=c++17", "-fPIC", *include, "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, check=True)
    told = subprocess.run(
        ["nm", "-D", "--undefined-only", extension], check=True, capture_output=True, text=True
    ).stdout
    names = set(re.findall(r"\bcu[A-Z]\w+", told))
    assert "cuMemHostAlloc" in names, "pycuda was linked with a libcuda without the real names"
    rest = names.difference(*(names_of(Path(name), "--defined-only") for name in objects))
    stub = folder / "rest.c"
    stub.write_text("".join(f"int {name}(void) {{ return 801; }} /* not supported */\n" for name in sorted(rest)))
    subprocess.run(["gcc", "-w", "-fPIC", "-c", str(stub), "-o", str(folder / "rest.o")], check=True)
    command = ["g++", "-shared", "-Wl,-soname,libcuda.so.1", *objects, str(folder / "rest.o"), "-pthread"]
    subprocess.run([*command, "-o", str(folder / "libcuda.so.1")], check=True)
    return folder


@pytest.fixture(scope="session")
def with_pycuda(driver: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python with these words, the real pycuda and the simulated driver, or that of another folder."""

    def run(*words: str, driver: Path = driver) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": path}
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)

    return run
