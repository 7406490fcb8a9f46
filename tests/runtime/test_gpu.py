"""What the driver says about the GPU, from a library that stands in for it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mlpdeploy.errors import MissingDependencyError
from mlpdeploy.runtime import gpu

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int* count) { *count = 2; return 0; }
int cuDeviceGet(int* device, int index) { *device = index + 40; return 0; }
int cuDeviceGetName(char* name, int size, int device) {
  strncpy(name, device == 41 ? "NVIDIA L4" : "NVIDIA H100", size);
  return FAIL;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 9 : -1;
  return 0;
}
int cuDriverGetVersion(int* version) { *version = 12040; return 0; }
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu, "_driver_version", lambda: None)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the driver that stands in")
    (tmp_path / "driver.c").write_text(DRIVER)
    return tmp_path


def use(monkeypatch: pytest.MonkeyPatch, folder: Path, init: int = 0, fail: int = 0) -> None:
    library = folder / f"libcuda{init}{fail}.so"
    flags = ["-shared", "-fPIC", f"-DINIT={init}", f"-DFAIL={fail}"]
    compiler = shutil.which("cc") or "gcc"
    subprocess.run([compiler, *flags, str(folder / "driver.c"), "-o", str(library)], check=True)
    monkeypatch.setattr(gpu, "_LIBRARY", str(library))


def test_what_the_driver_says(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, driver)
    assert gpu.visible_gpu(1) == gpu.Gpu("NVIDIA L4", "8.9", "CUDA 12.4", "12.4")
    assert gpu.visible_gpu().name == "NVIDIA H100"


def test_no_such_gpu(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, driver)
    with pytest.raises(MissingDependencyError, match="no GPU 2"):
        gpu.visible_gpu(2)
    use(monkeypatch, driver, init=100)
    with pytest.raises(MissingDependencyError, match="CUDA error 100"):
        gpu.visible_gpu()
    use(monkeypatch, driver, fail=1)
    with pytest.raises(MissingDependencyError, match="does not tell"):
        gpu.visible_gpu()
