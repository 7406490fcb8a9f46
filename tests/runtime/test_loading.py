"""Loading a model: what is asked for, what is missing, and a file that is replaced while a session has it."""

from __future__ import annotations

import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cpu_runs import CPU_BACKENDS
from tiny import tiny_asmlp

import mlpdeploy
from mlpdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import read_manifest
from mlpdeploy.runtime.loading import load


def test_the_public_api() -> None:
    for name in mlpdeploy.__all__:
        assert getattr(mlpdeploy, name) is not None
    with pytest.raises(AttributeError):
        _ = mlpdeploy.nothing


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"backend": "onnxruntme"}, "did you mean onnxruntime"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"threads": 0}, "threads is 0"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"role": "tensorrt"}, "no model for 'tensorrt'"),
    ],
)
def test_impossible_options(exported: Path, options: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        load(exported, **options)


def test_cuda_without_a_gpu_says_what_to_type(exported: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for backend in CPU_BACKENDS:
        with pytest.raises(UsageError, match=r"(?i)cuda"):
            load(exported, backend, "cuda")


def test_a_missing_package_names_the_extra(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(MissingDependencyError, match=r"pip install 'mlpdeploy\[cpu\]'"):
        load(exported)


def test_a_foreign_onnx_file_under_the_right_checksum(artifact: Path) -> None:
    """Somebody replaced the model and wrote a matching manifest: the loader still says so in one sentence."""
    import dataclasses

    from mlpdeploy.artifact import write_manifest
    from mlpdeploy.manifest import file_entry

    manifest = read_manifest(artifact)
    (artifact / "model.cpu.onnx").write_bytes(b"not a model at all")
    entry = file_entry(artifact / "model.cpu.onnx", "cpu", "conv")
    write_manifest(artifact, dataclasses.replace(manifest, files={**manifest.files, "model.cpu.onnx": entry}))
    with pytest.raises(ArtifactError, match="cannot load"):
        mlpdeploy.load(artifact)


@pytest.mark.parametrize("how", ["replaced", "removed", "written"])
def test_a_session_keeps_the_model_that_it_has_read(exported: Path, tmp_path: Path, how: str) -> None:
    """Its streams are loaded when the first batch comes, which may be after a redeployment."""
    place = tmp_path / "model"
    shutil.copytree(exported, place)
    with load(exported, "onnxruntime", threads=2) as other:
        feeds = other.random_feeds(5)
        wanted = other.run(feeds)["logits"]
    with load(place, "onnxruntime", threads=2) as session:
        first = session.run({"input": feeds["input"][:1]})["logits"]
        if how == "replaced":
            export_model(tiny_asmlp(embed_dim=24), place, force=True, verify=False)
        elif how == "removed":
            shutil.rmtree(place)
        else:
            time.sleep(0.01)
            (place / session.file).write_bytes(b"")
        with pytest.warns(UserWarning, match="model was replaced since it was loaded"):
            assert np.array_equal(session.run(feeds)["logits"], wanted)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is said once
            assert np.array_equal(session.run(feeds)["logits"], wanted)
        assert np.array_equal(first, wanted[:1])


def test_a_session_finds_its_file_from_another_folder(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported.parent)
    with load(exported.name, "onnxruntime", threads=2) as session, warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.chdir(tmp_path)
        session.run(session.random_feeds(4))
