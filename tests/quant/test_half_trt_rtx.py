"""TensorRT-RTX parses and builds the typed models, strongly typed, for two GPU generations, without a GPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from half_models import half_proto, lowered
from tiny import tiny_asmlp, tiny_vip
from trt_rtx import build, require_trt_rtx

from mlpdeploy.export.passes.lower_axial_shift import ShiftForm
from mlpdeploy.quant.recipe import Recipe

TYPES = {"fp16": "HALF", "bf16": "BF16"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize(("family", "shift"), [("asmlp", "conv"), ("asmlp", "slice"), ("vip", "conv")])
def test_a_typed_model_becomes_an_engine(family: str, shift: ShiftForm, precision: str, tmp_path: Path) -> None:
    require_trt_rtx()
    model = tiny_vip() if family == "vip" else tiny_asmlp()
    proto, _ = half_proto(lowered(model, "tensorrt", shift), Recipe(precision), "tensorrt")  # type: ignore[arg-type]
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    result = build(path)
    assert result["built"], result["messages"]
    assert result["engine_bytes"] > 0
    # Float32 products are the classifier and, in a Vision Permutator, the means.
    assert TYPES[precision] in result["types"]
    assert set(result["types"]) <= {TYPES[precision], "FLOAT"}
