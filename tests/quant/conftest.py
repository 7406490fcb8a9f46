"""Tiny lowered models, calibrated once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibration_inputs import IMAGES, SPEC
from tiny import tiny

from mlpdeploy.export.lower import TARGETS, Target, lower
from mlpdeploy.export.passes.lower_axial_shift import ShiftForm
from mlpdeploy.export.trace import ExportShape, onnx_from_model
from mlpdeploy.quant.calibration import Calibration, calibrate
from mlpdeploy.quant.data import calibration_images
from mlpdeploy.quant.products import quantized_tensors

OPENVINO = Target("openvino", "conv", "layer", expand_gelu=False)


@pytest.fixture(scope="session")
def canonical_models() -> dict[str, bytes]:
    """All families, traced once: {family: bytes of the canonical model}."""
    models = {family: tiny(family) for family in ("asmlp", "vip", "cyclemlp")}
    return {
        name: ir.to_proto(onnx_from_model(model, ExportShape())).SerializeToString() for name, model in models.items()
    }


@pytest.fixture(scope="session")
def lowered(canonical_models: dict[str, bytes]) -> Callable[..., ir.Model]:
    """Return a fresh lowered model, with Gelu as one operator."""

    def make(family: str, target: str = "cpu", shift: ShiftForm | None = None, *, blocks: bool = False) -> ir.Model:
        model = ir.from_proto(onnx.load_from_string(canonical_models[family]))
        chosen = OPENVINO if target == "openvino" else dataclasses.replace(TARGETS[target], expand_gelu=False)
        lower(model, chosen, shift or chosen.shift, blocks=blocks)
        return model

    return make


@pytest.fixture(scope="session")
def calibrations(
    lowered: Callable[..., ir.Model], canonical_models: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Calibration]:
    """{family: statistics of the tiny model on `IMAGES`}; do not change them."""
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, IMAGES)
    data = calibration_images(path, None, SPEC, 512)
    found = {}
    for family in canonical_models:
        model = lowered(family)
        found[family] = calibrate(model, quantized_tensors(model), data, "model", threads=1)
    return found


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str, np.ndarray], Path]:
    """Save an array and return its path."""

    def save(name: str, array: np.ndarray) -> Path:
        path = tmp_path / name
        if path.suffix == ".npz":
            np.savez_compressed(path, images=array)
        else:
            np.save(path, array)
        return path

    return save
