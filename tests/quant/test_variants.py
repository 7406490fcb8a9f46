"""What a variant is said to cost, for logits that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from calibration_inputs import IMAGES

from mlpdeploy.quant.quantize import calibration_for
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.quant.source import open_source
from mlpdeploy.quant.variants import Variants

LOGITS = np.eye(5)  # five images, each of its own class
AFTER = np.eye(5)[[0, 1, 2, 4, 3]]  # the last two change theirs
NOTHING = frozenset[str]()


class Known(Variants):
    """Variants that are not run: the first model gives `LOGITS`, every other one `AFTER`."""

    def _run(self, model: ir.Model) -> np.ndarray:
        in_int8 = {str(node.name) for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")}
        self.ran = [*getattr(self, "ran", []), model]
        assert in_int8
        return LOGITS if len(self.ran) == 1 else AFTER


def known(exported: Path, tmp_path: Path, recipe: Recipe, labels: np.ndarray | None = None) -> Known:
    source, path = open_source(exported), tmp_path / "images.npy"
    np.save(path, IMAGES)
    calibration = calibration_for(source, recipe, path, None, 1, False, lambda text: None, None)
    assert calibration is not None
    return Known(source, recipe, calibration, [IMAGES[:5]], 5, labels, threads=1)


@pytest.mark.parametrize(
    ("labels", "drop"),
    [
        (None, 40),  # two of five change their class
        ([0, 1, 2, 3, 4], 40),  # all were right, three are left
        ([0, 1, 2, 4, 3], -40),  # three were right, all are now
        ([0, 1, 2, 3, 3], 0),  # one is lost, another won
        ([1, 0, 2, 3, 0], 20),
    ],
)
def test_the_drop(labels: list[int] | None, drop: int, exported: Path, tmp_path: Path) -> None:
    variants = known(exported, tmp_path, Recipe("int8"), None if labels is None else np.array(labels))
    assert variants(NOTHING).drop == pytest.approx(drop)


def test_the_noise(exported: Path, tmp_path: Path) -> None:
    # The signal's power is 5/25, the noise's 4/25.
    assert known(exported, tmp_path, Recipe("int8"))(NOTHING).sqnr_db == pytest.approx(10 * np.log10(5 / 4))


def test_what_the_recipe_keeps_stays_kept(exported: Path, tmp_path: Path) -> None:
    variants = known(exported, tmp_path, Recipe("int8", keep=("head",)))
    assert "head" not in variants.macs
    variants(frozenset({"layers.0.blocks.0"}))
    operators = {str(node.name): node.op_type for node in variants.ran[-1].graph}
    assert operators["layers.0.blocks.0/Add_2/block"] == "AxialShiftBlock"
    assert operators["layers.1.blocks.0/Add_2/block"] == "AxialShiftBlockInt8"
    (head,) = (node for node in variants.ran[-1].graph if str(node.name).startswith("head/"))
    assert head.inputs[1] is not None and head.inputs[1].producer() is None
