"""Checkpoints as users have them: which weights are read out of what is around them."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_asmlp
from weights import STATE, full_state, prefixed

from mlpdeploy.errors import CheckpointError
from mlpdeploy.models.checkpoint import load_checkpoint, read_checkpoint
from mlpdeploy.models.create import create_model


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE, "epoch": 300},
        {"state_dict": prefixed("module.")},
        {"state_dict": prefixed("backbone.") | {"bbox_head.fc.weight": torch.zeros(2)}},
        {"state_dict": {name: -tensor for name, tensor in STATE.items()}, "state_dict_ema": STATE},
        {"model": STATE, "model_ema": {name: -tensor for name, tensor in STATE.items()}},
        {"state_dict": prefixed("_orig_mod.module.")},
        {"state_dict": {name: -tensor for name, tensor in prefixed("model.").items()} | prefixed("ema_model.")},
        {"state_dict": {name: -tensor for name, tensor in prefixed("module.").items()} | prefixed("ema_model.module.")},
        {"model": {"arch": "asmlp_t"}, "state_dict": STATE},
        {"model": STATE, "ema": {"decay": 0.9, "shadow_params": list(STATE.values())}},
    ],
    ids=[
        "plain",
        "model",
        "module",
        "backbone beside a head",
        "timm's EMA",
        "DeiT's EMA",
        "two prefixes",
        "EMA prefix",
        "and nested",
        "options under model",
        "EMA without names",
    ],
)
def test_wrappers_and_prefixes(tmp_path: Path, content: dict) -> None:
    torch.save(content, tmp_path / "c.pth")
    state = read_checkpoint(tmp_path / "c.pth")[0]
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_the_source_says_which_weights_were_taken(tmp_path: Path) -> None:
    state = create_model("asmlp_digits").state_dict()
    for content, source in (
        ({"model": state}, "c.pth"),
        ({"state_dict": state, "state_dict_ema": state}, "c.pth (state_dict_ema)"),
        (
            {f"{prefix}.{name}": t for prefix in ("model", "ema_model") for name, t in state.items()},
            "c.pth (ema_model)",
        ),
    ):
        torch.save(content, tmp_path / "c.pth")
        assert create_model("asmlp_digits", checkpoint=tmp_path / "c.pth").source == f"checkpoint {source}"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"model": STATE, "model_ema": {name: -tensor for name, tensor in STATE.items()}}, "model_ema"),
        ({"state_dict_ema": STATE, "state_dict": {name: -tensor for name, tensor in STATE.items()}}, "state_dict"),
        (prefixed("ema_model.") | {f"model.{name}": -tensor for name, tensor in STATE.items()}, "model"),
    ],
)
def test_the_weights_that_are_named_are_taken(tmp_path: Path, content: dict, key: str) -> None:
    torch.save(content, tmp_path / "c.pth")
    state, source = read_checkpoint(tmp_path / "c.pth", key)
    assert all(torch.equal(state[name], -STATE[name]) for name in STATE)
    assert source == key
    with pytest.raises(CheckpointError, match=f"c.pth has no weights called 'ema2'; wanted .*{key}"):
        read_checkpoint(tmp_path / "c.pth", "ema2")


@pytest.mark.parametrize(
    "content",
    [
        {"epoch": 3, "model_state_dict": STATE, "optimizer_state_dict": {"state": {}}, "loss": torch.zeros(1)},
        {"net": prefixed("module."), "acc": 99.0},
        {"state_dict": prefixed("net.")},
        {"checkpoint": {"weights": prefixed("student.")}},
    ],
    ids=["PyTorch's tutorial", "net", "a prefix of one's own", "nested"],
)
def test_weights_under_other_names_are_found(tmp_path: Path, content: dict) -> None:
    torch.save(content, tmp_path / "c.pth")
    state, source = read_checkpoint(tmp_path / "c.pth")
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert source == ""


@pytest.mark.parametrize(
    "content",
    [
        {"student": STATE, "teacher": {name: -tensor for name, tensor in STATE.items()}},
        prefixed("student.") | {f"teacher.{name}": -tensor for name, tensor in STATE.items()},
    ],
    ids=["keys", "prefixes"],
)
def test_of_several_weights_one_has_to_be_named(tmp_path: Path, content: dict) -> None:
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="several sets of weights: student, teacher; wanted one; name it"):
        read_checkpoint(tmp_path / "c.pth")
    state, source = read_checkpoint(tmp_path / "c.pth", "teacher")
    assert all(torch.equal(state[name], -STATE[name]) for name in STATE)
    assert source == "teacher"


def test_a_metric_as_numpy_gave_it_is_skipped(tmp_path: Path) -> None:
    content = {"state_dict": STATE, "best": np.float64(99.1), "epoch": np.int64(3)}
    torch.save(content, tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth")[0].keys() == STATE.keys()
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "old.pth").read_bytes().replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    (tmp_path / "old.pth").write_bytes(data)  # by numpy 1
    assert read_checkpoint(tmp_path / "old.pth")[0].keys() == STATE.keys()


def test_configurations_of_known_training_code_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official checkpoints hold a yacs node, timm's an argparse namespace."""
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")

    class CfgNode(dict):
        def __init__(self, values: dict) -> None:
            super().__init__(values)
            self.__dict__["frozen"] = True

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module.CfgNode = CfgNode
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", package)
        patch.setitem(sys.modules, "yacs.config", module)
        config = CfgNode({"MODEL": CfgNode({"TYPE": "asmlp"})})
        saved = {"model": STATE, "config": config, "args": argparse.Namespace(lr=0.1, out=Path("x")), "epoch": 3}
        torch.save(saved, tmp_path / "c.pth")
    assert "yacs" not in sys.modules
    assert read_checkpoint(tmp_path / "c.pth")[0].keys() == STATE.keys()
    assert "yacs" not in sys.modules


def test_safetensors(tmp_path: Path) -> None:
    save_file(dict(STATE), tmp_path / "c.safetensors")
    assert read_checkpoint(tmp_path / "c.safetensors")[0].keys() == STATE.keys()


def test_float8_weights_become_float32(tmp_path: Path) -> None:
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in full_state("asmlp_digits").items()}
    torch.save(state, tmp_path / "c.pth")
    weights = create_model("asmlp_digits", checkpoint=tmp_path / "c.pth").state_dict()
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in weights.items())


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    model = tiny_asmlp()
    load_checkpoint(model, {name: tensor.half() for name, tensor in STATE.items()}, tmp_path / "c.pth", "asmlp_t")
    assert model.head.weight.dtype == torch.float32
