"""Which engine is taken; where none fits, one sentence says what came, what was wanted, and what to type."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from fakes.machine import L4, NEWEST, Machine

from mlpdeploy.engines.build import build_artifact
from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.engines.sidecar import engines_of
from mlpdeploy.manifest import read_manifest
from mlpdeploy.runtime.gpu import Gpu
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.tensorrt_api import EngineError
from mlpdeploy.runtime.trt.choice import Machine as Target
from mlpdeploy.runtime.trt.choice import differences_of


def test_no_engine_yet(machine: Machine, exported: Path) -> None:
    with pytest.raises(EngineError, match=r"has no engine for tensorrt yet; run: mlpdeploy build .*tiny$"):
        load(exported, backend="tensorrt")


def test_another_version(machine: Machine, own: Path) -> None:
    machine.use("10.16.1.11")
    with pytest.raises(EngineError, match=r"TensorRT 11\.4\.0\.106, here is 10\.16\.1\.11; run: mlpdeploy build") as e:
        load(own, backend="tensorrt")
    assert str(e.value).endswith("--profile 1:1:1 --profile 2:4:8")


def test_another_gpu(machine: Machine, own: Path) -> None:
    machine.use_gpu(Gpu("NVIDIA H100 80GB HBM3", "9.0", "580.65.06", "13.0"))
    with pytest.raises(
        EngineError, match=r"it is for NVIDIA L4 \(8\.9\), here is NVIDIA H100 .*; run: mlpdeploy build"
    ):
        load(own, backend="tensorrt")


def test_another_gpu_beside_the_first(machine: Machine, own: Path, exported: Path, monkeypatch: Any) -> None:
    """A build is for the first GPU that it sees."""
    machine.use_gpu(Gpu("NVIDIA H100 80GB HBM3", "9.0", "580.65.06", "13.0"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for directory in (own, exported):
        with pytest.raises(EngineError, match="; run: CUDA_VISIBLE_DEVICES=1 mlpdeploy build "):
            load(directory, backend="tensorrt", device="cuda:1")
        with pytest.raises(EngineError, match="; run: mlpdeploy build "):
            load(directory, backend="tensorrt", device="cuda:0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8932f937")
    with pytest.raises(EngineError, match="; run: CUDA_VISIBLE_DEVICES=GPU-8932f937 mlpdeploy build "):
        load(own, backend="tensorrt", device="cuda:1")


def test_compatible_engines(machine: Machine, own: Path) -> None:
    from mlpdeploy.engines.tensorrt_builder import EngineFlags

    flags = EngineFlags(hardware_compatible=True, version_compatible=True)
    build_artifact(own, BuildOptions(batches=((1, 2, 4),), flags=flags))
    machine.use_gpu(Gpu("NVIDIA H100 80GB HBM3", "9.0", "580.65.06", "13.0"))
    with load(own, backend="tensorrt") as session:
        assert session.max_batch == 4
    machine.use_gpu(Gpu("NVIDIA T4", "7.5", "580.65.06", "13.0"))
    with pytest.raises(EngineError, match="Ampere and later, NVIDIA T4 is older"):
        load(own, backend="tensorrt")


def test_another_model(machine: Machine, own: Path) -> None:
    manifest = read_manifest(own)
    entry = dataclasses.replace(manifest.files["model.onnx"], sha256="0" * 64)
    other = dataclasses.replace(manifest, files={**manifest.files, "model.onnx": entry})
    found = differences_of(engines_of(own)[0].fingerprint, other, Target("tensorrt", NEWEST, L4))
    assert found == ["it was built from another model than the artifact holds now"]


def test_an_engine_without_weights(machine: Machine, exported: Path, tmp_path: Path) -> None:
    from mlpdeploy.engines.tensorrt_builder import EngineFlags

    own = machine.built(exported, tmp_path / "b", BuildOptions(flags=EngineFlags(strip=True)))
    with pytest.raises(EngineError, match=r"without weights \(--strip\)"):
        load(own, backend="tensorrt")
