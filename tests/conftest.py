"""Small models that export in a second, and artifacts made of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlpdeploy.export.export import export_model
from mlpdeploy.models.asmlp import AsMlpConfig
from mlpdeploy.models.create import Model, model_from_config, random_weights
from mlpdeploy.models.vip import VipConfig

torch.set_num_threads(2)


def tiny_asmlp(**changes: Any) -> Model:
    """Return an AS-MLP of two stages with 21 and 42 channels (no multiple of the shift size) for 32x32 images."""
    values = {"embed_dim": 21, "depths": (1, 1), "image_size": (32, 32), "num_classes": 7}
    return named(model_from_config(AsMlpConfig(**{**values, **changes})), "asmlp_t")


def tiny_vip() -> Model:
    """Return a Vision Permutator with an 8x8 and a 4x4 grid."""
    config = VipConfig((1, 1), (16, 32), (True, False), 4, native_size=32, image_size=(32, 32), num_classes=7)
    return named(model_from_config(config), "vip_s7")


def named(model: Model, name: str) -> Model:
    random_weights(model, 0)
    model.name, model.source = name, "random weights, seed 0"
    return model.eval()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified artifact of the small AS-MLP; do not change it, see `artifact`."""
    directory = tmp_path_factory.mktemp("artifacts") / "tiny"
    export_model(tiny_asmlp(), directory)
    return directory


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    """A copy of `exported` that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "tiny"))


@pytest.fixture
def flip_byte() -> Callable[[Path], None]:
    """Change one byte in the middle of a file."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)

    return flip
