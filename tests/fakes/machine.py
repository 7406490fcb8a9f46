"""A machine with a GPU and TensorRT that are both simulated, for tests of the runtime and of what stands on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from fakes.fake_cuda import Device, make_cuda_python, make_pointer_get_attribute, make_pycuda
from fakes.fake_tensorrt import make_tensorrt

import mlpdeploy
from mlpdeploy.engines import plugin_code, single
from mlpdeploy.engines.build import build_artifact
from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.errors import PluginError
from mlpdeploy.plugins import find as find_module
from mlpdeploy.runtime import gpu, tensorrt, tensorrt_api
from mlpdeploy.runtime.cuda import cuda_python, interface, pycuda
from mlpdeploy.runtime.gpu import Gpu

TESTS = Path(__file__).parent.parent
VERSIONS = ("8.6.1", "10.16.1.11", "11.4.0.106")
NEWEST = VERSIONS[-1]
RTX = "1.7.1.116"  # TensorRT-RTX
L4 = Gpu("NVIDIA L4", "8.9", "580.65.06", "13.0")
PROVIDERS: dict[str, tuple[ModuleType, Callable[[Device], ModuleType]]] = {
    "cuda-python": (cuda_python, make_cuda_python),
    "pycuda": (pycuda, make_pycuda),
}


class Machine:
    """What is installed; the attributes may be changed between two loads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, provider: str = "cuda-python") -> None:
        self.device, self.patch = Device(), monkeypatch
        paths = [TESTS / "fakes" / "site", TESTS, Path(mlpdeploy.__file__).parent.parent]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
        monkeypatch.setenv("MLPDEPLOY_CUDA", provider)
        monkeypatch.setattr(interface, "_opened", {})
        for module, make in PROVIDERS.values():
            monkeypatch.setattr(module, "require", lambda name, make=make: make(self.device))
        monkeypatch.setattr(pycuda, "_pointer_get_attribute", lambda: make_pointer_get_attribute(self.device))
        self.library: Path | None = None
        monkeypatch.setattr(find_module, "find_plugin_library", lambda face: self._library())
        monkeypatch.setattr(plugin_code, "find_library", lambda version, say: self._library())
        self.use(NEWEST)
        self.use_gpu(L4)
        monkeypatch.setattr(tensorrt_api, "cuda_major", lambda target: 13)

    def use(self, version: str, plugins: bool = True) -> None:
        """Have this version of TensorRT, or RTX; with `plugins` false it loads no library."""
        self.patch.setenv("FAKE_TENSORRT", version)
        self.module = make_tensorrt(version, plugins, self.device, rtx=version == RTX)
        self.patch.setattr(tensorrt_api, "require", lambda name: self.module)

    def use_gpu(self, found: Gpu) -> None:
        """Have this GPU."""
        for module in (single, tensorrt, gpu):
            self.patch.setattr(module, "visible_gpu", lambda index=0: found)

    def _library(self) -> Path:
        if self.library is None:
            raise PluginError("the CUDA plugin is not built", fix="run: mlpdeploy plugin build")
        return self.library

    def built(self, exported: Path, place: Path, options: BuildOptions | None = None) -> Path:
        """Return a copy of an artifact with an engine in it."""
        directory = Path(shutil.copytree(exported, place))
        build_artifact(directory, options or BuildOptions())
        return directory

    def nothing_is_left(self) -> bool:
        """Return whether everything on the GPU was freed."""
        return (
            not self.device.memory
            and not self.device.pinned
            and not self.device.graphs
            and len(self.device.streams) == 1
        )
