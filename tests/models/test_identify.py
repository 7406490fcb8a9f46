"""Which model a checkpoint is of, by its names and shapes alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from weights import STATE, full_state

from mlpdeploy.errors import CheckpointError, UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.models.asmlp import AsMlpConfig
from mlpdeploy.models.build import model_from_config, random_weights
from mlpdeploy.models.create import create_model
from mlpdeploy.models.cyclemlp import CycleMlpConfig
from mlpdeploy.models.registry import Config
from mlpdeploy.models.vip import VipConfig


@pytest.mark.parametrize("name", ["asmlp_t", "vip_s14", "cyclemlp_b2", "asmlp_digits", "vip_digits", "cyclemlp_digits"])
def test_a_checkpoint_says_which_model_it_is_of(tmp_path: Path, name: str) -> None:
    state = full_state(name, num_classes=7)
    torch.save({"model": {f"module.{key}": tensor for key, tensor in state.items()}}, tmp_path / "mine.pth")
    model = create_model(checkpoint=tmp_path / "mine.pth")
    assert (model.name, model.config.num_classes) == (name, 7)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_a_checkpoint_says_its_channels_and_whether_it_is_a_backbone(tmp_path: Path) -> None:
    state = {k: v for k, v in full_state("asmlp_t", in_chans=5).items() if not k.startswith(("head", "norm."))}
    torch.save(state, tmp_path / "c.pth")
    config = create_model(checkpoint=tmp_path / "c.pth").config
    assert isinstance(config, AsMlpConfig)
    assert (config.in_chans, config.features, config.feature_norms) == (5, True, False)


@pytest.mark.parametrize(
    "config",
    [
        AsMlpConfig(24, (1, 2, 1), patch_size=7, mlp_ratio=2, num_classes=5, in_chans=1, image_size=(224, 224)),
        AsMlpConfig(40, (3,), patch_size=16, num_classes=5),
        VipConfig((2, 1, 1), (32, 64, 64), (True, False, False), 7, mlp_ratio=2, num_classes=5),
        VipConfig((1,), (28,), (False,), 16, num_classes=5, in_chans=4),
        CycleMlpConfig((1, 2, 1), (24, 32, 40), (2, 3, 4), num_classes=5, in_chans=2),
        CycleMlpConfig((2,), (20,), (4,), features=True, feature_norms=True),
        CycleMlpConfig((1, 1), (20, 24), (4, 2), features=True, feature_norms=True, fork_last3=True),
    ],
    ids=["asmlp", "one stage", "vip", "one grid", "cyclemlp", "cyclemlp backbone", "cyclemlp for RetinaNet"],
)
def test_sizes_of_its_own_are_read_from_a_checkpoint(tmp_path: Path, config: Config) -> None:
    module = model_from_config(config)
    random_weights(module, 3)
    torch.save(module.state_dict(), tmp_path / "c.pth")
    model = create_model(checkpoint=tmp_path / "c.pth")
    assert model.config == config
    assert model.name == f"{config.family}_custom"
    x = torch.randn(1, config.in_chans, *config.image_size)
    with torch.inference_mode():
        assert all(map(torch.equal, model(x), module.eval()(x)))
    with pytest.raises(CheckpointError, match="leave --model out"):
        create_model("asmlp_t", checkpoint=tmp_path / "c.pth")


def test_a_model_with_sizes_of_its_own_is_exported_as_any_other(tmp_path: Path) -> None:
    module = model_from_config(AsMlpConfig(16, (1, 1), num_classes=5))
    random_weights(module, 3)
    torch.save(module.state_dict(), tmp_path / "c.pth")
    model = create_model(checkpoint=tmp_path / "c.pth", image_size=(32, 64))
    manifest = export_model(model, tmp_path / "out")
    assert (manifest.model["name"], manifest.verification["passed"]) == ("asmlp_custom", True)
    assert manifest.preprocessing is not None and manifest.preprocessing.height_width == (32, 64)
    assert manifest.labels == tuple(f"class {index}" for index in range(5))


def test_what_is_said_of_a_checkpoint_is_not_passed_over(tmp_path: Path) -> None:
    torch.save(full_state("asmlp_t", num_classes=7), tmp_path / "c.pth")
    assert create_model(checkpoint=tmp_path / "c.pth", shift_size=3).config.shift.shift_size == 3
    with pytest.raises(CheckpointError, match="its head has 7 classes"):
        create_model(checkpoint=tmp_path / "c.pth", num_classes=8)
    with pytest.raises(UsageError, match="neither a model nor a checkpoint"):
        create_model()


@pytest.mark.parametrize(
    "state",
    [
        {"conv1.weight": torch.zeros(3)},
        {"patch_embed.proj.weight": torch.zeros(96, 3)},
        {"patch_embed.proj.weight": torch.zeros(96, 3, 4, 4)},
        {
            "patch_embed.proj.weight": torch.zeros(0, 3, 0, 0),
            "layers.0.blocks.0.mlp.fc1.weight": torch.zeros(4, 0, 1, 1),
        },
        {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4), "network.0.proj.weight": torch.zeros(8, 8, 2, 2)},
        {name: tensor for name, tensor in STATE.items() if name != "layers.1.blocks.0.norm2.bias"},
        # Nine channels cannot be cut into segments for a grid of 14 by 14.
        {
            name: torch.zeros_like(tensor)
            for name, tensor in model_from_config(VipConfig((1,), (9,), (False,), 16)).state_dict().items()
        },
    ],
    ids=["foreign", "dimensions", "body", "nothing", "no stage", "a part", "segments"],
)
def test_a_checkpoint_of_no_known_model(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"c\.pth fits no model .*mlpdeploy models"):
        create_model(checkpoint=tmp_path / "c.pth")
