"""Each lowering of the shift, the norm and the GELU computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx_ir as ir
import pytest

from mlpdeploy.errors import UsageError
from mlpdeploy.export.lower import TARGETS, lower, resolve_targets
from mlpdeploy.export.passes.lower_axial_shift import lower_axial_shift
from mlpdeploy.export.passes.lower_gelu import lower_gelu
from mlpdeploy.export.passes.lower_group_norm import lower_group_norm


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(("form", "gone", "there"), [("conv", 0, {"Conv": 4}), ("slice", 0, {"Pad": 4, "Concat": 4})])
def test_axial_shift(canonical: ir.Model, same_result: Callable, form: str, gone: int, there: dict) -> None:
    before = operators(canonical)
    report = lower_axial_shift(canonical, form)
    after = operators(canonical)
    assert len(report.changed) == 2
    assert after["AxialShift"] == gone
    assert {name: after[name] - before[name] for name in there} == there
    same_result(canonical)


def test_axial_shift_as_plugin_keeps_nodes_without_a_function(canonical: ir.Model) -> None:
    lower_axial_shift(canonical, "plugin")
    assert operators(canonical)["AxialShift"] == 2
    assert [key[1] for key in canonical.functions] == ["GroupNorm1"]


@pytest.mark.parametrize("form", ["instance", "layer"])
def test_group_norm(canonical: ir.Model, same_result: Callable, form: str) -> None:
    lower_group_norm(canonical, form)
    after = operators(canonical)
    assert after["GroupNorm1"] == after["GroupNormalization"] == 0
    same_result(canonical)


def test_gelu(canonical: ir.Model, same_result: Callable) -> None:
    lower_gelu(canonical)
    assert operators(canonical)["Gelu"] == 0
    same_result(canonical)


def test_the_tanh_approximation_is_refused(canonical: ir.Model) -> None:
    node = next(node for node in canonical.graph if node.op_type == "Gelu")
    node.attributes["approximate"] = ir.AttrString("approximate", "tanh")
    assert lower_gelu(canonical).refused == {node.name: "it is the tanh approximation"}


@pytest.mark.parametrize("form", ["conv", "slice"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_target(canonical: ir.Model, same_result: Callable, target: str, form: str) -> None:
    lower(canonical, TARGETS[target], form)
    assert not canonical.functions
    assert not [node for node in canonical.graph if node.domain]
    same_result(canonical)


def test_defaults_of_target_and_shift() -> None:
    assert resolve_targets(None) == [(TARGETS["cpu"], "conv")]
    assert resolve_targets((), "plugin") == [(TARGETS["tensorrt"], "plugin")]
    assert resolve_targets("tensorrt", "slice") == [(TARGETS["tensorrt"], "slice")]
    # In one order, whatever order they are asked for in: the same request gives the same bytes.
    both = [(TARGETS["cpu"], "conv"), (TARGETS["openvino"], "conv")]
    assert resolve_targets(("openvino", "cpu", "openvino")) == both
    with pytest.raises(UsageError, match="no plugins"):
        resolve_targets("cpu", "plugin")
