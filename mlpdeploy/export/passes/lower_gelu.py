"""Gelu as the five operators that ONNX Runtime fuses into its own kernel, in the order that its fusion knows.

    Gelu(x) = x * (erf(x / sqrt(2)) + 1) * 0.5

The exact (erf) form only; the same function, not an approximation.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mlpdeploy.export.passes.rewrite import PassReport, constant, like, replace

GELU_OPSET = 20  # the first opset with a Gelu operator


def lower_gelu(model: ir.Model) -> PassReport:
    """Rewrite every exact Gelu of the model."""
    report = PassReport("lower_gelu")
    for node in [node for node in model.graph if node.op_type == "Gelu"]:
        x = node.inputs[0]
        assert x is not None and x.dtype is not None
        if node.attributes.get_string("approximate", "none") != "none":
            report.refused[str(node.name)] = "it is the tanh approximation"
            continue
        new = expanded_gelu(model, x, str(node.name))
        replace(model, [node], new, [new[-1].outputs[0]])
        report.changed.append(str(node.name))
    return report


def expanded_gelu(model: ir.Model, x: ir.Value, name: str) -> list[ir.Node]:
    """Return the five nodes that compute Gelu(x), in order; their names begin with `name`."""
    assert x.dtype is not None
    dtype = x.dtype.numpy()
    root, one, half = (
        constant(model, f"gelu_{key}", np.array(value, dtype))
        for key, value in (("sqrt2", np.sqrt(2)), ("one", 1), ("half", 0.5))
    )
    divided = ir.node("Div", [x, root], name=f"{name}/Div")
    erf = ir.node("Erf", [like(divided, x)], name=f"{name}/Erf")
    added = ir.node("Add", [like(erf, x), one], name=f"{name}/Add")
    product = ir.node("Mul", [x, like(added, x)], name=f"{name}/Mul")
    return [divided, erf, added, product, ir.node("Mul", [like(product, x), half], name=f"{name}/half")]
