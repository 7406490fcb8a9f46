"""The same graph in an older opset, for a parser that knows no newer one (TensorRT 8.6: 17).

| operator | what the older opset has |
|---|---|
| Gelu (20) | five operators, see `lower_gelu` |
| ReduceMean and the like (18) | axes as an attribute; as an input they would be overlooked, and all axes reduced |
| Split (18) | no `num_outputs`; without sizes the parts are equal anyway |
| Cast (19), QuantizeLinear, DequantizeLinear (21) | no `saturate`, `output_dtype`, ...: left out if the defaults |

What differs in the types that it takes alone (Reshape, Transpose, ...) stays as it is.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mlpdeploy.export.passes.lower_gelu import lower_gelu
from mlpdeploy.export.passes.rewrite import PassReport, array_of, opset_of, remove_unused

_REDUCTIONS = {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"}
_QUANTIZING = {"QuantizeLinear", "DequantizeLinear"}
# Attributes that the older opset lacks: {operator: {attribute: its default}}; None goes whatever it is.
_NEWER_ATTRIBUTES: dict[str, dict[str, int | None]] = {
    "Split": {"num_outputs": None},
    "Cast": {"saturate": 1},
    **{kind: {"noop_with_empty_axes": 0} for kind in _REDUCTIONS},
    **{kind: {"saturate": 1, "output_dtype": 0, "block_size": 0, "precision": 0} for kind in _QUANTIZING},
}
# Newer versions of these take more types, and compute the same.
_ONLY_TYPES = {
    "Constant", "ConstantOfShape", "Conv", "Flatten", "GlobalAveragePool", "Identity", "InstanceNormalization",
    "Reshape", "Shape", "Size", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
_IR_VERSION = 8  # of the years of opset 15 to 18


def lower_opset(model: ir.Model, opset: int) -> PassReport:
    """Rewrite the model for an opset of 13 to 17; it stays as it is where `refused` names a node that cannot be."""
    report = PassReport("lower_opset")
    if opset_of(model) <= opset:
        return report
    report.refused.update(_without_a_form(model, opset))
    if report.refused:
        return report
    report.changed += lower_gelu(model).changed
    for node in model.graph:
        changed = node.op_type in _REDUCTIONS and _axes_as_attribute(node)
        for name in _NEWER_ATTRIBUTES.get(node.op_type, {}):
            changed = node.attributes.pop(name, None) is not None or changed
        if changed:
            report.changed.append(str(node.name))
    remove_unused(model)
    model.graph.opset_imports[""] = opset
    model.ir_version = _IR_VERSION
    return report


def _without_a_form(model: ir.Model, opset: int) -> dict[str, str]:
    """Return {node name: why the older opset cannot say it}."""
    import onnx

    found = {}
    for node in model.graph:
        if node.domain:
            continue
        kind = node.op_type
        if kind == "Gelu" and node.attributes.get_string("approximate", "none") != "none":
            found[str(node.name)] = "a Gelu by tanh"
        elif kind in _REDUCTIONS and len(node.inputs) > 1 and array_of(node.inputs[1]) is None:
            found[str(node.name)] = "axes that are computed"
        elif kind in _QUANTIZING and node.inputs[1] is not None and node.inputs[1].dtype != ir.DataType.FLOAT:
            found[str(node.name)] = "a scale that is not float32"
        elif any(
            default is not None and node.attributes.get_int(name, default) != default
            for name, default in _NEWER_ATTRIBUTES.get(kind, {}).items()
        ):
            found[str(node.name)] = f"an attribute of a newer {kind}"
        elif kind not in {"Gelu", *_NEWER_ATTRIBUTES, *_ONLY_TYPES}:
            since = onnx.defs.get_schema(kind, opset_of(model), "").since_version
            if since > opset:
                found[str(node.name)] = f"{kind} of opset {since}"
    return found


def _axes_as_attribute(node: ir.Node) -> bool:
    """Move the axes of a reduction from its second input to an attribute."""
    if len(node.inputs) < 2:
        return False
    axes = array_of(node.inputs[1])
    assert axes is not None
    node.resize_inputs(1)
    node.attributes["axes"] = ir.AttrInt64s("axes", np.atleast_1d(axes).tolist())
    return True
