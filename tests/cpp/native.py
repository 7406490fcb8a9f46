"""The C++ library through its C interface, and the build that the tests share."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mlpdeploy
from mlpdeploy.errors import MlpDeployError
from mlpdeploy.manifest import TensorSpec, _checksum
from mlpdeploy.plugins.toolchain import find_nvcc, find_tensorrt_include

ROOT = Path(mlpdeploy.__file__).parent.parent
PRESET = "release"
BUILD = ROOT / "build" / f"cpp-{PRESET}"


def warning_options() -> list[str]:
    """Return CMake's options for warnings: errors in the tests, but not for users, whose compilers warn of more."""
    # `make cpp` sets it: what it builds is used.
    return [f"-DCMAKE_COMPILE_WARNING_AS_ERROR={'OFF' if os.environ.get('MLPDEPLOY_TEST_WARNINGS') else 'ON'}"]


def tensorrt_options() -> list[str]:
    """Return CMake's options for the backend tensorrt: on where the headers of TensorRT and CUDA are here."""
    nvcc = find_nvcc()
    homes = [os.environ.get("CUDA_HOME"), nvcc.resolve().parent.parent if nvcc else None, "/usr/local/cuda"]
    cuda = next((Path(home, "include") for home in homes if home and Path(home, "include", "cuda.h").is_file()), None)
    try:
        tensorrt = find_tensorrt_include()
    except MlpDeployError:
        tensorrt = None
    if tensorrt is None or cuda is None:
        return ["-DMLPDEPLOY_WITH_TENSORRT=OFF"]
    return ["-DMLPDEPLOY_WITH_TENSORRT=ON", f"-DTENSORRT_INCLUDE_DIR={tensorrt}", f"-DCUDA_INCLUDE_DIR={cuda}"]


def built() -> Path:
    """Return the folder with the library and the programs; build them where they are older than the sources.

    A missing compiler, package or header skips the test and says which.
    """
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}: the C++ part is not tested")
    headers = [sys.executable, str(ROOT / "cpp" / "get_onnxruntime.py"), str(ROOT / "build" / "onnxruntime")]
    configure = ["cmake", "--preset", PRESET, *tensorrt_options(), *warning_options()]
    for command in (headers, configure):
        done = subprocess.run(command, cwd=ROOT / "cpp", capture_output=True, text=True)
        if done.returncode:
            lines = (done.stdout + done.stderr).strip().splitlines()
            why = next((line for line in lines if "mlpdeploy needs" in line or "headers" in line), lines[-1])
            pytest.skip(f"the C++ part cannot be built here: {why.strip()}")
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "2")
    done = subprocess.run(
        ["cmake", "--build", "--preset", PRESET, "-j", jobs], cwd=ROOT / "cpp", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return BUILD


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("backend", ctypes.c_char_p),
        ("device", ctypes.c_char_p),
        ("role", ctypes.c_char_p),
        ("threads", ctypes.c_int),
        ("max_batch", ctypes.c_int),
    )


class NativeError(Exception):
    """What a function of the library refused: its exit code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def library(build: Path) -> ctypes.CDLL:
    """Return libmlpdeploy with its argument types."""
    lib = ctypes.CDLL(str(build / "libmlpdeploy.so"))
    size, pointer, text = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
    lib.mlpdeploy_last_error.restype = lib.mlpdeploy_label.restype = text
    lib.mlpdeploy_load.argtypes = (text, ctypes.POINTER(_Options), ctypes.POINTER(pointer))
    lib.mlpdeploy_free.argtypes = (pointer,)
    lib.mlpdeploy_run.argtypes = (pointer, ctypes.POINTER(_Tensor), size, ctypes.POINTER(_Tensor), size)
    lib.mlpdeploy_prepare_file.argtypes = (pointer, text, pointer, size)
    lib.mlpdeploy_prepare_pixels.argtypes = (
        pointer,
        pointer,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_ssize_t,
        pointer,
        size,
    )
    lib.mlpdeploy_label.argtypes = (pointer, size)
    return lib


def _tensor(name: str, array: np.ndarray) -> _Tensor:
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    return _Tensor(name.encode(), array.dtype.name.encode(), shape, array.ndim, array.ctypes.data)


class NativeSession:
    """A session of the C++ library."""

    def __init__(
        self,
        build: Path,
        folder: Path,
        threads: int = 0,
        max_batch: int = 0,
        role: str = "",
        backend: str = "",
        device: str = "",
    ) -> None:
        self._lib = library(build)
        self._handle = ctypes.c_void_p()
        name = os.fsencode(folder)
        options = _Options(backend.encode(), device.encode(), role.encode(), threads, max_batch)
        self._check(self._lib.mlpdeploy_load(name, ctypes.byref(options), ctypes.byref(self._handle)))

    def _check(self, code: int) -> None:
        if code:
            raise NativeError(code, self._lib.mlpdeploy_last_error().decode())

    def run(self, feeds: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write to `outputs`, and return them."""
        sides = [[_tensor(name, array) for name, array in side.items()] for side in (feeds, outputs)]
        arrays = [(_Tensor * len(side))(*side) for side in sides]
        self._check(self._lib.mlpdeploy_run(self._handle, arrays[0], len(sides[0]), arrays[1], len(sides[1])))
        return outputs

    def run_like(self, feeds: dict[str, np.ndarray], specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
        """Run with fresh outputs of the manifest's fixed sizes."""
        rows = len(next(iter(feeds.values())))
        outputs = {s.name: np.full((rows, *s.shape[1:]), np.nan, s.dtype) for s in specs}  # type: ignore[arg-type]
        return self.run(feeds, outputs)

    def prepare_file(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        """Return the input tensor (C, H, W) of a picture."""
        out = np.full(shape, np.nan, np.float32)
        self._check(self._lib.mlpdeploy_prepare_file(self._handle, os.fsencode(path), out.ctypes.data, out.size))
        return out

    def prepare_pixels(self, pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the input tensor of RGB pixels (height, width, 3); rows may lie apart."""
        height, width, _ = pixels.shape
        out = np.full(shape, np.nan, np.float32)
        code = self._lib.mlpdeploy_prepare_pixels(
            self._handle, pixels.ctypes.data, height, width, pixels.strides[0], out.ctypes.data, out.size
        )
        self._check(code)
        return out

    def close(self) -> None:
        self._lib.mlpdeploy_free(self._handle)
        self._handle = ctypes.c_void_p()


def edit(
    folder: Path, *, seal: bool = True, drop: list[str] | None = None, drop_file: str = "", **changes: object
) -> None:
    """Change the manifest, with a checksum that fits unless `seal` is off."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    body.update(changes)
    for name in drop or []:
        del body[name]
    if drop_file:
        del body["files"][drop_file]
    if seal:
        del body["sha256"]
        body["sha256"] = _checksum(body)
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False))


if __name__ == "__main__":  # for `make cpp`, so that it builds what the tests would build again otherwise
    sys.stdout.write(" ".join(tensorrt_options() + warning_options()) + "\n")
