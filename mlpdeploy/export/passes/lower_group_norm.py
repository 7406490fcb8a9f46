"""`mlpdeploy::GroupNorm1` in the form that a target runs best; the same numbers, other operators.

- `instance`: Reshape to one channel per sample, InstanceNormalization, Reshape back: the fastest on ONNX Runtime's CPU
  provider and the slowest on OpenVINO, which changes the layout around every Reshape.
- `layer`: LayerNormalization over the axes 1 to 3: one layer in TensorRT and OpenVINO. (Never GroupNormalization with
  one group, which TensorRT imports as a norm per channel.)

An affine part that is not ones and zeros becomes a depthwise 1x1 convolution in the first form (ONNX Runtime keeps
that in its blocked layout, which it would leave for Mul and Add with (C, 1, 1) constants), and the
LayerNormalization's scale and bias in the second.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from mlpdeploy.errors import UsageError
from mlpdeploy.export.passes.fold_norm_affine import is_plain
from mlpdeploy.export.passes.rewrite import PassReport, array_of, constant, like, replace, shape_constant
from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.group_norm import EPSILON, NAME

NormForm = Literal["instance", "layer"]
NORM_FORMS: tuple[str, ...] = get_args(NormForm)


def lower_group_norm(model: ir.Model, form: NormForm) -> PassReport:
    """Lower every GroupNorm1 of the model.

    Raises:
        UsageError: an unknown form.
    """
    if form not in NORM_FORMS:
        raise UsageError(f"norm lowering {form!r}", f"one of {', '.join(NORM_FORMS)}")
    report = PassReport(f"lower_group_norm({form})")
    for node in [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, NAME)]:
        new = (_instance if form == "instance" else _layer)(model, node)
        replace(model, [node], new, [new[-1].outputs[0]])
        report.changed.append(str(node.name))
    return report


def _instance(model: ir.Model, node: ir.Node) -> list[ir.Node]:
    x = node.inputs[0]
    assert x is not None and x.dtype is not None and x.shape is not None
    dtype = x.dtype.numpy()
    one, zero = constant(model, "ones_1", np.ones(1, dtype)), constant(model, "zeros_1", np.zeros(1, dtype))
    epsilon = node.attributes.get_float("epsilon", EPSILON)
    flat = ir.node("Reshape", [x, shape_constant(model, (0, 1, -1))], name=f"{node.name}/flatten")
    normal = ir.node(
        "InstanceNormalization", [flat.outputs[0], one, zero], {"epsilon": epsilon}, name=f"{node.name}/instance"
    )
    new = [flat, normal]
    sizes = list(x.shape)[1:]
    if all(isinstance(size, int) for size in sizes):
        shape = shape_constant(model, (0, *(int(size) for size in sizes)))  # type: ignore[arg-type]
    else:
        new.append(ir.node("Shape", [x], name=f"{node.name}/Shape"))
        shape = new[-1].outputs[0]
    new.append(ir.node("Reshape", [normal.outputs[0], shape], name=f"{node.name}/unflatten"))
    if not is_plain(node):
        scale, bias = node.inputs[1], node.inputs[2]
        array = array_of(scale)
        assert array is not None and scale is not None
        kernel = constant(model, f"{scale.name}.depthwise", array.reshape(-1, 1, 1, 1))
        attributes: dict[str, int | list[int]] = {"group": len(array), "kernel_shape": [1, 1]}
        new.append(ir.node("Conv", [like(new[-1], x), kernel, bias], attributes, name=f"{node.name}/affine"))
    return new


def _layer(model: ir.Model, node: ir.Node) -> list[ir.Node]:
    x = node.inputs[0]
    columns = []
    for value in node.inputs[1:3]:
        array = array_of(value)
        assert array is not None and value is not None
        columns.append(constant(model, f"{value.name}.column", array.reshape(-1, 1, 1)))
    attributes = {"axis": 1, "epsilon": node.attributes.get_float("epsilon", EPSILON)}
    return [ir.node("LayerNormalization", [x, *columns], attributes, name=node.name)]
