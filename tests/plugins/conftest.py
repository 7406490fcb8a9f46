"""The plugin library, compiled once for all architectures, and the CPU kernels, once per instruction set.

Tests that need them are skipped where nothing compiles them.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlpdeploy.env import cpu_features
from mlpdeploy.errors import MissingDependencyError, MlpDeployError
from mlpdeploy.plugins.build import BuildOptions, build_plugin
from mlpdeploy.plugins.cpu import BF16_SETS, FEATURES, FLOAT_SETS, INT8_SETS, SWITCH_VARIABLE, build_cpu_library
from mlpdeploy.plugins.cpu_pictures import function_of
from mlpdeploy.plugins.find import CACHE_VARIABLE, LIBRARY_VARIABLE, PluginLibrary
from mlpdeploy.plugins.toolchain import Toolchain, find_toolchain


@pytest.fixture(scope="session")
def tools() -> Toolchain:
    """The compilers and headers of this machine."""
    try:
        return find_toolchain()
    except MlpDeployError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def plugin_library(tools: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> PluginLibrary:
    """The library for every architecture; do not change it. Users get the same, but a warning is no error there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("plugin")))
        patch.setenv("CXXFLAGS", "-Werror")
        patch.setenv("CUDAFLAGS", "-Werror=all-warnings -Xcompiler=-Werror")
        return build_plugin(BuildOptions())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that this test alone uses."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    return tmp_path / "cache" / "plugins"


@pytest.fixture(scope="module", params=FLOAT_SETS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the library that runs one instruction set; it asks for the name once."""
    yield from library_of(request.param, tmp_path_factory, "mlpdeploy_cpu_kernels")


@pytest.fixture(scope="module", params=BF16_SETS)
def bf16_kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same for the instructions that multiply bfloat16."""
    yield from library_of(request.param, tmp_path_factory, "mlpdeploy_cpu_bf16_kernels")


@pytest.fixture(scope="module", params=INT8_SETS)
def int8_kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same for products of 8 bits."""
    yield from library_of(request.param, tmp_path_factory, "mlpdeploy_cpu_int8_kernels")


@pytest.fixture(scope="module", params=FLOAT_SETS)
def picture_kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the library that prepares pictures with these instructions; it chooses them at its first picture."""
    for library in library_of(request.param, tmp_path_factory, "mlpdeploy_cpu_kernels"):
        pixel, level, out = np.zeros(1, np.uint8), np.zeros((1, 256), np.float32), np.empty(1, np.float32)
        sizes = (1, 1, 1, 1, 2, 2, 0, 0, 1, 1, 0)
        assert function_of(library)(pixel.ctypes.data, *sizes, level.ctypes.data, 1, out.ctypes.data) == 0
        yield library


def library_of(name: str, tmp_path_factory: pytest.TempPathFactory, question: str) -> Iterator[Path]:
    """Yield a copy of the library that answers the question with the instruction set's name."""
    if name in FEATURES and FEATURES[name] not in cpu_features():
        pytest.skip(f"this processor has no {name}")
    try:
        library = build_cpu_library()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    copy = shutil.copy(library, tmp_path_factory.mktemp("kernels") / f"{name}.so")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH_VARIABLE, name)
        function = getattr(ctypes.CDLL(str(copy)), question)
        function.restype = ctypes.c_char_p
        assert function() == name.encode()
        yield Path(copy)
