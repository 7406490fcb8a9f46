"""A model that is made with a checkpoint: what has to fit, and the cause that is guessed where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_asmlp, tiny_cyclemlp
from weights import STATE, full_state

from mlpdeploy.errors import CheckpointError, UsageError
from mlpdeploy.models.build import model_from_config, random_weights
from mlpdeploy.models.checkpoint import load_checkpoint
from mlpdeploy.models.create import create_model
from mlpdeploy.models.cyclemlp import CycleMlpConfig
from mlpdeploy.ops.cycle_mlp import offsets


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (lambda: full_state("asmlp_s"), "it is a checkpoint of asmlp_s: pass --model asmlp_s"),
        (lambda: full_state("asmlp_t", num_classes=10), "its head has 10 classes: pass --num-classes 10"),
        (lambda: full_state("asmlp_t", in_chans=1), "its images have 1 channels: pass --in-chans 1"),
        (lambda: {"conv1.weight": torch.zeros(3)}, "no tensor name is the same"),
        (
            lambda: {k: v for k, v in full_state("asmlp_t").items() if not k.startswith(("head", "norm."))},
            "export it with --features",
        ),
    ],
    ids=["variant", "classes", "channels", "foreign", "backbone"],
)
def test_a_mismatch_guesses_the_cause(tmp_path: Path, content, cause: str) -> None:
    torch.save(content(), tmp_path / "c.pth")
    with pytest.raises(CheckpointError) as error:
        create_model("asmlp_t", checkpoint=tmp_path / "c.pth")
    assert cause in str(error.value)


def test_a_mismatch_lists_what_differs_and_changes_nothing(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    del state["norm.weight"]
    state["extra"] = torch.zeros(1)
    state["head.bias"] = torch.zeros(9)
    model = tiny_asmlp()
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(model, state, tmp_path / "c.pth", "asmlp_t")
    for part in ("1 missing (norm.weight)", "1 unexpected (extra)", "1 misshapen (head.bias is 9, wanted 7)"):
        assert part in str(error.value)
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in model.state_dict().items())


def test_a_first_convolution_without_sides_is_a_mismatch_like_others(tmp_path: Path) -> None:
    torch.save(full_state("asmlp_t") | {"patch_embed.proj.weight": torch.zeros(3)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight is 3, wanted 96x3x4x4"):
        create_model("asmlp_t", checkpoint=tmp_path / "c.pth")


def test_a_head_of_several_layers_is_named(tmp_path: Path) -> None:
    state = full_state("asmlp_t", num_classes=7)
    state["head.1.weight"], state["head.1.bias"] = state.pop("head.weight"), state.pop("head.bias")
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="its head is not one linear layer"):
        create_model(checkpoint=tmp_path / "c.pth")


def test_a_vision_permutator_without_a_head_is_not_called_a_backbone(tmp_path: Path) -> None:
    state = full_state("vip_digits")
    torch.save({name: state[name] for name in state if not name.startswith("head")}, tmp_path / "c.pth")
    for name in ("vip_digits", None):
        with pytest.raises(CheckpointError, match="a Vision Permutator has no other outputs"):
            create_model(name, checkpoint=tmp_path / "c.pth")


def test_classes_for_feature_maps_are_refused(tmp_path: Path) -> None:
    state = full_state("asmlp_digits")
    torch.save(state, tmp_path / "c.pth")
    assert create_model(checkpoint=tmp_path / "c.pth", features=True).config.features
    with pytest.raises(UsageError, match=r"5 classes for feature maps; leave --num-classes or --features out$"):
        create_model("asmlp_digits", features=True, num_classes=5)
    torch.save({name: state[name] for name in state if not name.startswith("head")}, tmp_path / "c.pth")
    with pytest.raises(UsageError, match="give a checkpoint that has a head"):
        create_model(checkpoint=tmp_path / "c.pth", num_classes=5)


def test_a_classifier_checkpoint_becomes_a_backbone(tmp_path: Path) -> None:
    torch.save(full_state("asmlp_t"), tmp_path / "c.pth")
    model = create_model("asmlp_t", features=True, checkpoint=tmp_path / "c.pth")
    assert not model.config.feature_norms
    assert model.source == "checkpoint c.pth"


def test_a_detection_checkpoint_brings_its_norms(tmp_path: Path) -> None:
    state = {k: v for k, v in full_state("asmlp_t").items() if not k.startswith(("head", "norm."))}
    for stage, width in enumerate((96, 192, 384, 768)):
        state |= {f"norm{stage}.weight": torch.full((width,), 2.0), f"norm{stage}.bias": torch.zeros(width)}
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in state.items()}}, tmp_path / "det.pth")
    model = create_model("asmlp_t", features=True, checkpoint=tmp_path / "det.pth")
    assert model.config.feature_norms
    assert model.norm3.weight[0] == 2.0
    del state["norm0.weight"], state["norm0.bias"]  # which an AS-MLP always has
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in state.items()}}, tmp_path / "det.pth")
    with pytest.raises(CheckpointError, match=r"6 unexpected \(norm1"):
        create_model("asmlp_t", features=True, checkpoint=tmp_path / "det.pth")


def test_a_backbone_that_lacks_a_norm_is_not_told_to_leave_out_what_is_not_there(tmp_path: Path) -> None:
    config = CycleMlpConfig((1, 1), (20, 24), (4, 2), features=True, feature_norms=True)
    module = model_from_config(config)
    random_weights(module, 0)
    state = module.state_dict()
    del state["norm2.weight"], state["norm2.bias"]
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"2 missing .*changed variant"):
        create_model(checkpoint=tmp_path / "c.pth")


def test_a_cyclemlp_checkpoint_has_offsets_that_must_be_the_published_ones(tmp_path: Path) -> None:
    state = dict(tiny_cyclemlp().state_dict())
    for block, channels in (("network.0.0", 20), ("network.2.0", 44)):
        steps = torch.tensor(offsets(channels), dtype=torch.float32)
        for layer, pairs in (("sfc_h", (0 * steps, steps)), ("sfc_w", (steps, 0 * steps))):
            state[f"{block}.attn.{layer}.offset"] = torch.stack(pairs, 1).reshape(1, -1, 1, 1)
    torch.save(state, tmp_path / "c.pth")
    assert create_model(checkpoint=tmp_path / "c.pth").name == "cyclemlp_custom"
    state["network.2.0.attn.sfc_w.offset"] = 2 * state["network.2.0.attn.sfc_w.offset"]
    torch.save(state, tmp_path / "wider.pth")
    with pytest.raises(CheckpointError, match=r"network\.2\.0\.attn\.sfc_w\.offset in wider\.pth moves channels"):
        create_model(checkpoint=tmp_path / "wider.pth")
    state["network.2.0.attn.sfc_w.offset"] = torch.zeros(1, 0, 1, 1)
    torch.save(state, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"sfc_w\.offset in none\.pth moves channels"):
        create_model(checkpoint=tmp_path / "none.pth")
    del state["network.2.0.attn.sfc_w.offset"]
    torch.save(state | {"network.2.0.attn.mlp_c.offset": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(network\.2\.0\.attn\.mlp_c\.offset\)"):
        create_model(checkpoint=tmp_path / "more.pth")


def test_options_of_other_families_are_refused_with_the_reason() -> None:
    for name, options, text in (
        ("cyclemlp_b1", {"shift_size": 3}, "shift_size for cyclemlp_b1.*always move the same way"),
        ("vip_s7", {"features": True}, "features for vip_s7; wanted an AS-MLP or a CycleMLP; .*no feature maps"),
    ):
        with pytest.raises(UsageError, match=text):
            create_model(name, **options)
