"""A block becomes one node where it is the published one, and stays as it is everywhere else."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
from tiny import tiny_asmlp

from mlpdeploy.export.lower import TARGETS, lower
from mlpdeploy.export.passes.fold_norm_affine import fold_norm_affine
from mlpdeploy.export.passes.form_axial_shift_blocks import form_axial_shift_blocks
from mlpdeploy.export.trace import ExportShape, onnx_from_model
from mlpdeploy.ops import axial_shift
from mlpdeploy.ops.axial_shift import ShiftSpec
from mlpdeploy.ops.axial_shift_block import NAME


def blocks_of(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == NAME]


def test_blocks_are_formed(canonical: ir.Model, same_result: Callable) -> None:
    fold_norm_affine(canonical)
    report = form_axial_shift_blocks(canonical)
    assert len(report.changed) == len(blocks_of(canonical)) == 2
    assert not report.refused
    assert [key[1] for key in canonical.functions if key[1] == NAME] == [NAME]
    same_result(canonical)


def test_without_folded_norms_nothing_is_formed(canonical: ir.Model) -> None:
    report = form_axial_shift_blocks(canonical)
    assert not report.changed
    assert set(report.refused.values()) == {"the affine part of a norm could not be folded"}


@pytest.mark.parametrize("padding", ["circular", "reflect", "replicate"])
def test_paddings_and_open_sizes(padding: str) -> None:
    model = onnx_from_model(tiny_asmlp(shift=ShiftSpec(3, 2, padding)), ExportShape(None, True))
    reports = {report.name: report for report in lower(model, TARGETS["cpu"], "conv", blocks=True)}
    assert len(reports["form_axial_shift_blocks"].changed) == 2
    assert {node.attributes.get_string("padding", "") for node in blocks_of(model)} == {padding}
    assert all(node.inputs[-1].producer().op_type == "Shape" for node in blocks_of(model))


def test_serial_branches_are_refused() -> None:
    model = onnx_from_model(tiny_asmlp(branches="serial"), ExportShape())
    reports = {report.name: report for report in lower(model, TARGETS["cpu"], "conv", blocks=True)}
    assert not reports["form_axial_shift_blocks"].changed
    assert reports["form_axial_shift_blocks"].refused
    assert not blocks_of(model)


def named(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def other_epsilon(model: ir.Model) -> None:
    norm = named(model, "layers.0.blocks.0.norm2/GroupNorm1/normalize")
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-6)


def no_residual(model: ir.Model) -> None:
    bias = model.graph.initializers["layers.0.blocks.0.mlp.fc2.bias"]
    named(model, "layers.0.blocks.0/Add").replace_input_with(0, bias)


def no_second_residual(model: ir.Model) -> None:
    bias = model.graph.initializers["layers.0.blocks.0.mlp.fc2.bias"]
    named(model, "layers.0.blocks.0/Add_2").replace_input_with(0, bias)
    model.graph.append(ir.node("Identity", [named(model, "layers.0.blocks.0/Add").outputs[0]], name="another user"))


def value_inside_is_an_output(model: ir.Model) -> None:
    model.graph.outputs.append(named(model, "layers.0.blocks.0.mlp/Gelu").outputs[0])


def other_shift(model: ir.Model) -> None:
    shifts = [node for node in model.graph if node.op_type == axial_shift.NAME]
    shifts[1].attributes["dilation"] = ir.AttrInt64("dilation", 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_epsilon, "its norms differ in epsilon"),
        (no_residual, "the block's input is not added to its result"),
        (no_second_residual, "no residual is added to its MLP"),
        (value_inside_is_an_output, "a value inside of the block is used elsewhere"),
        (other_shift, "it shifts unlike the blocks before it"),
    ],
)
def test_what_is_unlike_is_refused(canonical: ir.Model, change: Callable[[ir.Model], None], reason: str) -> None:
    fold_norm_affine(canonical)
    change(canonical)
    report = form_axial_shift_blocks(canonical)
    assert list(report.refused.values()) == [reason]
    assert len(report.changed) == len(blocks_of(canonical)) == 1


def test_features_between_blocks_stay_outputs() -> None:
    model = onnx_from_model(tiny_asmlp(features=True), ExportShape())
    names = [value.name for value in model.graph.outputs]
    lower(model, TARGETS["cpu"], "conv", blocks=True)
    assert len(blocks_of(model)) == 2
    assert [value.name for value in model.graph.outputs] == names


@pytest.mark.parametrize(("target", "shift"), [("cpu", "slice"), ("openvino", "conv"), ("tensorrt", "plugin")])
def test_only_for_the_cpu_and_its_own_shift(canonical: ir.Model, target: str, shift: str) -> None:
    names = [report.name for report in lower(canonical, TARGETS[target], shift, blocks=True)]
    assert "form_axial_shift_blocks" not in names
    assert not blocks_of(canonical)
