"""One build of the C++ part, and the artifacts that it is tried on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tiny import tiny, tiny_asmlp, tiny_vip

from mlpdeploy.export.export import export_model

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one
from artifacts import make_pictures
from native import built


@pytest.fixture(scope="session")
def build() -> Path:
    """The folder with the library and the programs."""
    return built()


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> dict[str, Path]:
    """All families, a fixed batch, and feature maps of open size; do not change them."""
    folder = tmp_path_factory.mktemp("cpp")
    export_model(tiny_vip(), folder / "vip", verify=False)
    export_model(tiny("cyclemlp"), folder / "cyclemlp", verify=False)
    export_model(tiny_asmlp(), folder / "fixed", batch=3, verify=False)
    export_model(tiny_asmlp(features=True), folder / "features", image_size="dynamic", verify=False)
    return {"asmlp": exported, **{name: folder / name for name in ("vip", "cyclemlp", "fixed", "features")}}


@pytest.fixture(scope="session")
def native_environment(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a C++ test program, with what `artifacts.py` makes."""
    folder = tmp_path_factory.mktemp("native")
    for name, artifact in artifacts.items():
        (folder / name).symlink_to(artifact)
    make_pictures(folder)
    return {**os.environ, "MLPDEPLOY_TEST_ARTIFACTS": str(folder)}
