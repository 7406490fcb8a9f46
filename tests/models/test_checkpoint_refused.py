"""Checkpoints as they should not be: other files, damaged ones, code, and tensors that are no weights."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from weights import STATE, full_state

from mlpdeploy.errors import CheckpointError
from mlpdeploy.models.checkpoint import read_checkpoint
from mlpdeploy.models.create import create_model


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


def test_nan_weights_are_named(tmp_path: Path) -> None:
    broken = {name: tensor.clone() for name, tensor in STATE.items()}
    broken["layers.0.blocks.0.mlp.fc1.weight"][0, 0] = float("nan")
    torch.save(broken, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"layers\.0\.blocks\.0\.mlp\.fc1\.weight .*NaN"):
        read_checkpoint(tmp_path / "c.pth")
