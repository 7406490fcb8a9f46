"""Reading an engine's file and loading it: what is damaged, what TensorRT or the driver refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.machine import Machine

from mlpdeploy.errors import ArtifactError
from mlpdeploy.runtime.gpu import Gpu
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.tensorrt_api import EngineError


def test_a_truncated_plan(machine: Machine, own: Path, flip_byte: Any) -> None:
    (plan,) = (own / "engines").glob("*.plan")
    data = plan.read_bytes()
    plan.write_bytes(data[:1000])
    with pytest.raises(
        ArtifactError, match=r"is cut off: it has 1000 bytes; wanted \d+; run: mlpdeploy build .*--force"
    ):
        load(own, backend="tensorrt")
    plan.write_bytes(data)
    flip_byte(plan)
    with pytest.raises(ArtifactError, match="was changed: its checksum differs"):
        load(own, backend="tensorrt")
    plan.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        load(own, backend="tensorrt")


def test_tensorrt_returns_none(machine: Machine, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, plan: bytes) -> None:
        self._logger.log(machine.module.ILogger.Severity.ERROR, "magicTag failed")

    monkeypatch.setattr(machine.module.Runtime, "deserialize_cuda_engine", refuse)
    with pytest.raises(EngineError, match=r"cannot load .*\.plan: magicTag failed; run: mlpdeploy doctor"):
        load(own, backend="tensorrt")


def test_tensorrt_without_a_working_cuda(machine: Machine, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, logger: Any) -> None:
        logger.log(machine.module.ILogger.Severity.WARNING, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(machine.module.Runtime, "__init__", fail)
    with pytest.raises(EngineError, match="CUDA initialization failure with error: 35"):
        load(own, backend="tensorrt")


def test_a_driver_that_is_too_old(machine: Machine, own: Path) -> None:
    machine.use_gpu(Gpu("NVIDIA L4", "8.9", "550.54", "12.4"))
    with pytest.raises(EngineError, match=r"550\.54 serves CUDA 12\.4, .* is for CUDA 13; update .*tensorrt-cu12"):
        load(own, backend="tensorrt")
