"""Options that contradict each other are refused; a kept name covers what lies below it."""

from __future__ import annotations

from typing import Any

import pytest

from mlpdeploy.errors import UsageError
from mlpdeploy.quant.recipe import Recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "unknown precision 'int4'"),
        ({"precision": "fp16", "calibrator": "entropy"}, "a calibrator for precision fp16"),
        ({"precision": "int8", "calibrator": "max"}, "unknown calibrator"),
        ({"precision": "int8", "io": "fp16"}, "inputs and outputs in fp16 for precision int8"),
        ({"precision": "fp16", "io": "bf16"}, "unknown type 'bf16'"),
        ({"precision": "int8", "rest": "int8"}, "unknown type 'int8' for the rest"),
        ({"precision": "fp16", "rest": "fp16"}, "a type for the rest in precision fp16"),
        ({"precision": "int8", "weight_bits": 6}, "weights of 6 bits; wanted 8 or 7"),
        ({"precision": "fp16", "weight_bits": 7}, "weights of 7 bits for precision fp16"),
        ({"precision": "int8", "images": 0}, "0 calibration images"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**options)


def test_a_kept_name_covers_what_lies_below() -> None:
    recipe = Recipe("int8", keep=("layers.0.blocks.1", "head/Gemm"))
    assert recipe.keeps("layers.0.blocks.1.mlp.fc1/Conv")
    assert recipe.keeps("layers.0.blocks.1/Add")
    assert recipe.keeps("head/Gemm")
    assert not recipe.keeps("layers.0.blocks.10.mlp.fc1/Conv")
    assert not recipe.keeps("head")
