from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir import AttrInt64s

from mlpdeploy.export.passes.fold_norm_affine import fold_norm_affine, is_plain
from mlpdeploy.ops.group_norm import NAME


def norms(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == NAME]


def test_folds_in_front_of_1x1_convolutions_only(canonical: ir.Model, same_result: Callable) -> None:
    report = fold_norm_affine(canonical)
    # per block: norm1, axial_shift.norm2 and norm2 fold, axial_shift.norm1 feeds a GELU; and the patch merging folds
    assert len(report.changed) == 2 * 3 + 1
    assert sum(is_plain(node) for node in norms(canonical)) == 7
    assert report.refused["layers.0.blocks.0.axial_shift.norm1/GroupNorm1"].startswith("its result goes to Gelu")
    assert report.refused["norm/GroupNorm1"].startswith("its result goes to ReduceMean")
    same_result(canonical)


def test_folding_twice_changes_nothing_more(canonical: ir.Model) -> None:
    fold_norm_affine(canonical)
    assert fold_norm_affine(canonical).changed == []


def test_a_convolution_that_pads_is_refused(canonical: ir.Model) -> None:
    """Folding there would be wrong at the border: the padding would miss the norm's bias."""
    norm = next(node for node in norms(canonical) if node.name == "layers.0.blocks.0.norm2/GroupNorm1")
    conv = next(iter(norm.outputs[0].uses())).node
    conv.attributes["pads"] = AttrInt64s("pads", [1, 1, 1, 1])
    report = fold_norm_affine(canonical)
    assert report.refused[norm.name] == "its result goes to a convolution that pads"
