"""The plugin library, compiled once for all architectures; tests that need it are skipped where nothing compiles it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlpdeploy.errors import MlpDeployError
from mlpdeploy.plugins.build import BuildOptions, build_plugin
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
    """The library for every architecture, as users get it; do not change it."""
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(tmp_path_factory.mktemp("plugin"))
    try:
        return build_plugin(BuildOptions())
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
