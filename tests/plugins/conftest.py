"""The plugin library, compiled once for one architecture, and the CPU kernels, once per instruction set.

Tests that need them are skipped where nothing compiles them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlpdeploy.env import cpu_features
from mlpdeploy.errors import MissingDependencyError, MlpDeployError
from mlpdeploy.plugins.build import BuildOptions, build_plugin
from mlpdeploy.plugins.cpu import INSTRUCTION_SETS, SWITCH_VARIABLE, build_cpu_library
from mlpdeploy.plugins.find import CACHE_VARIABLE, LIBRARY_VARIABLE, PluginLibrary
from mlpdeploy.plugins.toolchain import Toolchain, find_toolchain

NEEDS = {"avx512": "avx512f", "avx2": "avx2"}


@pytest.fixture(scope="session")
def tools() -> Toolchain:
    """The compilers and headers of this machine."""
    try:
        return find_toolchain()
    except MlpDeployError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def plugin_library(tools: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> PluginLibrary:
    """The library for sm_90 and PTX of it; do not change it."""
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(tmp_path_factory.mktemp("plugin"))
    try:
        return build_plugin(BuildOptions(architectures=("90",)))
    finally:
        del os.environ[CACHE_VARIABLE]
        if before is not None:
            os.environ[CACHE_VARIABLE] = before


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that this test alone uses."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    return tmp_path / "cache" / "plugins"


@pytest.fixture(scope="module", params=INSTRUCTION_SETS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the library that runs one instruction set; it asks for the name once."""
    name = request.param
    if NEEDS.get(name, "avx2") not in cpu_features() and name != "portable":
        pytest.skip(f"this processor has no {name}")
    try:
        library = build_cpu_library()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    copy = shutil.copy(library, tmp_path_factory.mktemp("kernels") / f"{name}.so")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH_VARIABLE, name)
        function = ctypes.CDLL(str(copy)).mlpdeploy_cpu_kernels
        function.restype = ctypes.c_char_p
        assert function() == name.encode()
        yield Path(copy)
