"""The GPU of this process as the NVIDIA driver tells it; only the driver's own library is needed for that."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

from mlpdeploy.errors import MissingDependencyError

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as the driver says it.
        compute_capability: `8.9` and so on.
        driver: version of the driver, or of the CUDA that it serves where its own is not told.
        cuda: the newest version of CUDA that the driver serves, `13.0`.
    """

    name: str
    compute_capability: str
    driver: str
    cuda: str = ""


def visible_gpu(index: int = 0) -> Gpu:
    """Return the GPU with this index among those that the process may use.

    Raises:
        MissingDependencyError: no driver, or no such GPU.
    """
    fix = "see: mlpdeploy doctor; TensorRT-RTX builds without a GPU: --target tensorrt-rtx"
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise MissingDependencyError(
            "no NVIDIA driver on this machine", "a GPU for the target tensorrt", fix
        ) from error
    count = ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status or index >= count.value:
        told = f"the NVIDIA driver finds no GPU {index} (CUDA error {status}, {count.value} GPUs)"
        raise MissingDependencyError(told, "a GPU for the target tensorrt", fix)
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    major, minor, served = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    calls = (
        cuda.cuDeviceGet(ctypes.byref(device), index),
        cuda.cuDeviceGetName(name, _NAME_BYTES, device),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
        cuda.cuDriverGetVersion(ctypes.byref(served)),
    )
    if any(calls):
        raise MissingDependencyError(f"the NVIDIA driver does not tell what GPU {index} is (CUDA error {max(calls)})")
    cuda_version = f"{served.value // 1000}.{served.value % 1000 // 10}"
    driver = _driver_version() or f"CUDA {cuda_version}"
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}", driver, cuda_version)


def _driver_version() -> str | None:
    """Return the kernel module's version, where the system tells it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)", text)
    return found.group(1) if found else None
