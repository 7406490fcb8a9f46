"""Checkpoints as users have them, and as they should not be."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_asmlp, tiny_cyclemlp

from mlpdeploy.errors import CheckpointError, UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.models.asmlp import AsMlpConfig
from mlpdeploy.models.build import model_from_config, random_weights
from mlpdeploy.models.checkpoint import load_checkpoint, read_checkpoint
from mlpdeploy.models.create import create_model
from mlpdeploy.models.cyclemlp import CycleMlpConfig
from mlpdeploy.models.registry import Config, resolve_model
from mlpdeploy.models.vip import VipConfig
from mlpdeploy.ops.cycle_mlp import offsets

STATE = tiny_asmlp().state_dict()


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


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


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_is_taken_for_a_checkpoint_is_called_by_its_name(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "program.pt2")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(2))
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    shutil.copyfile(tmp_path / "lfs.pth", tmp_path / "lfs.safetensors")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html></html>")
    for name, words in (
        ("script.pt", "a TorchScript program; wanted a state dict"),
        ("program.pt2", "a program of torch.export"),
        ("arrays.npz", "an archive of numpy arrays"),
        ("lfs.pth", "a pointer of Git LFS"),
        ("lfs.safetensors", "a pointer of Git LFS"),
        ("page.pth", "a web page"),
    ):
        with pytest.raises(CheckpointError, match=f"{name} is {words}"):
            read_checkpoint(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="holds no tensors, only epoch"):
        read_checkpoint(tmp_path / "c.pth")


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(STATE, tmp_path / "c.pth")

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(CheckpointError, match=r"c\.pth is truncated or is not a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "c.pth")


def test_a_head_of_several_layers_is_named(tmp_path: Path) -> None:
    state = full_state("asmlp_t", num_classes=7)
    state["head.1.weight"], state["head.1.bias"] = state.pop("head.weight"), state.pop("head.bias")
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="its head is not one linear layer"):
        create_model(checkpoint=tmp_path / "c.pth")


def test_a_metric_as_numpy_gave_it_is_skipped(tmp_path: Path) -> None:
    content = {"state_dict": STATE, "best": np.float64(99.1), "epoch": np.int64(3)}
    torch.save(content, tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth")[0].keys() == STATE.keys()
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "old.pth").read_bytes().replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    (tmp_path / "old.pth").write_bytes(data)  # by numpy 1
    assert read_checkpoint(tmp_path / "old.pth")[0].keys() == STATE.keys()


def test_safetensors(tmp_path: Path) -> None:
    save_file(dict(STATE), tmp_path / "c.safetensors")
    assert read_checkpoint(tmp_path / "c.safetensors")[0].keys() == STATE.keys()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda weight: weight.to(torch.int8), "of no real type (head.weight is int8)"),
        (lambda weight: weight.to(torch.complex64), "of no real type (head.weight is complex64)"),
        (lambda weight: weight.to_sparse(), "head.weight in c.pth is a tensor without plain values"),
        (lambda weight: weight.to("meta"), "head.weight in c.pth is a tensor without plain values"),
        (lambda weight: weight.double() * 1e300, "head.weight in c.pth has NaN or infinite values"),
        (lambda weight: weight.sum(), "head.weight is a scalar, wanted 10x64"),
    ],
    ids=["int8", "complex", "sparse", "meta", "too large", "scalar"],
)
@pytest.mark.parametrize("name", ["asmlp_digits", None])
def test_what_is_no_float_weight_is_named(tmp_path: Path, change, text: str, name: str | None) -> None:
    state = full_state("asmlp_digits")
    torch.save(state | {"head.weight": change(state["head.weight"])}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError) as error:
        create_model(name, checkpoint=tmp_path / "c.pth")
    assert text in str(error.value)


def test_float8_weights_become_float32(tmp_path: Path) -> None:
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in full_state("asmlp_digits").items()}
    torch.save(state, tmp_path / "c.pth")
    weights = create_model("asmlp_digits", checkpoint=tmp_path / "c.pth").state_dict()
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in weights.items())


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    model = tiny_asmlp()
    load_checkpoint(model, {name: tensor.half() for name, tensor in STATE.items()}, tmp_path / "c.pth", "asmlp_t")
    assert model.head.weight.dtype == torch.float32


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "owned"),))

    content = {"model": Evil(), "best": np.float64(1.0)}
    for name, protocol in (("zip.pth", None), ("legacy.pth", 2)):
        if protocol is None:
            torch.save(content, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "owned").exists()


class Unknown:
    """Some class of the user's training code."""


def test_what_contains_code_is_named(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": Unknown()}, tmp_path / "args.pth")
    with pytest.raises(
        CheckpointError, match=r"contains code or objects \(.*Unknown\), which is never run.*state_dict"
    ):
        read_checkpoint(tmp_path / "args.pth")


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


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"c{suffix}"
    torch.save(STATE, path) if suffix == ".pth" else save_file(dict(STATE), path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(CheckpointError, match="copy it again"):
        read_checkpoint(path)


def test_text_and_empty_and_missing(tmp_path: Path) -> None:
    (tmp_path / "c.pth").write_text("hello, I am a text")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    for name in ("c.pth", "empty.pth", "none.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name)


def test_nan_weights_are_named(tmp_path: Path) -> None:
    broken = {name: tensor.clone() for name, tensor in STATE.items()}
    broken["layers.0.blocks.0.mlp.fc1.weight"][0, 0] = float("nan")
    torch.save(broken, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"layers\.0\.blocks\.0\.mlp\.fc1\.weight .*NaN"):
        read_checkpoint(tmp_path / "c.pth")


def full_state(name: str, **changes: int) -> dict[str, torch.Tensor]:
    import dataclasses

    model = model_from_config(dataclasses.replace(resolve_model(name).config, **changes))
    random_weights(model, 0)
    return model.state_dict()


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


def test_a_first_convolution_without_sides_is_a_mismatch_like_others(tmp_path: Path) -> None:
    torch.save(full_state("asmlp_t") | {"patch_embed.proj.weight": torch.zeros(3)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight is 3, wanted 96x3x4x4"):
        create_model("asmlp_t", checkpoint=tmp_path / "c.pth")


def test_a_backbone_that_lacks_a_norm_is_not_told_to_leave_out_what_is_not_there(tmp_path: Path) -> None:
    config = CycleMlpConfig((1, 1), (20, 24), (4, 2), features=True, feature_norms=True)
    module = model_from_config(config)
    random_weights(module, 0)
    state = module.state_dict()
    del state["norm2.weight"], state["norm2.bias"]
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"2 missing .*changed variant"):
        create_model(checkpoint=tmp_path / "c.pth")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depths": ()}, "depths are"),
        ({"depths": (1, 0)}, "depths are"),
        ({"widths": (20, 24, 28)}, "2 each"),
        ({"mlp_ratios": (4,)}, "2 each"),
        ({"widths": (20, 3)}, "at least 4 channels"),
        ({"mlp_ratios": (4, 0)}, "ratio of 1"),
        ({"feature_norms": True}, "feature_norms without features"),
        ({"features": True, "fork_last3": True}, "fork_last3 without feature_norms"),
    ],
)
def test_impossible_sizes_of_a_cyclemlp_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CycleMlpConfig(**{"depths": (1, 1), "widths": (20, 24), "mlp_ratios": (4, 4)} | options)


def test_a_classifier_checkpoint_becomes_a_backbone(tmp_path: Path) -> None:
    torch.save(full_state("asmlp_t"), tmp_path / "c.pth")
    model = create_model("asmlp_t", features=True, checkpoint=tmp_path / "c.pth")
    assert not model.config.feature_norms
    assert model.source == "checkpoint c.pth"


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
