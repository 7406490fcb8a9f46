"""Channels-last tokens (N, H, W, C) as rows (N*H*W, C) wherever only the last axis matters.

Linear layers, norms over the last axis, GELUs and residual sums do not look at the grid. As matrices, runtimes fuse a
product with its bias (MatMul + Add becomes Gemm) and need not collapse axes themselves. Reshape moves no data. Exact.
"""

from __future__ import annotations

import onnx_ir as ir

from mlpdeploy.export.passes.rewrite import PassReport, array_of, like, shape_constant

# Linear layers and norms tell that a tensor holds tokens; the others follow where one of their inputs does.
_TELLING = ("MatMul", "LayerNormalization")
_FOLLOWING = ("Add", "Mul", "Div", "Gelu", "Erf")


def flatten_tokens(model: ir.Model) -> PassReport:
    """Flatten every run of such operators on four-dimensional tokens."""
    report = PassReport("flatten_tokens")
    flat: dict[ir.Value, ir.Value] = {}  # four-dimensional value -> the same data as a matrix
    for node in list(model.graph):
        if node.domain or node.op_type not in _TELLING + _FOLLOWING or len(node.outputs) != 1:
            continue
        tokens = [value for value in node.inputs if _is_tokens(value)]
        if not tokens or not _is_tokens(node.outputs[0]):
            continue
        if node.op_type in _FOLLOWING and not any(value in flat for value in tokens):
            continue
        reason = _why_not(node)
        if reason:
            report.refused[str(node.name)] = reason
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and _is_tokens(value):
                node.replace_input_with(index, _flat(model, node, value, flat))
        _unflatten_output(model, node, flat)
        if node.op_type == "LayerNormalization":
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
        report.changed.append(str(node.name))
    return report


def _is_tokens(value: ir.Value | None) -> bool:
    """Return whether a value is (N, H, W, C) and computed."""
    return value is not None and value.shape is not None and len(value.shape) == 4 and value.const_value is None


def _why_not(node: ir.Node) -> str:
    """Return why a node must keep its four axes, or an empty string."""
    if node.op_type == "LayerNormalization" and node.attributes.get_int("axis", -1) not in (-1, 3):
        return "it normalizes over more than the last axis"
    if sum(not isinstance(size, int) for size in node.outputs[0].shape or ()) > 1:
        return "its grid is open, so one Reshape could not give the four axes back"
    for value in node.inputs:
        array = array_of(value)
        if array is not None and array.ndim > (2 if node.op_type == "MatMul" else 1):
            return "a constant of it has more than one axis"
        if array is None and value is not None and not _is_tokens(value):
            return "it mixes tokens with a value of another shape"
    return ""


def _flat(model: ir.Model, user: ir.Node, value: ir.Value, flat: dict[ir.Value, ir.Value]) -> ir.Value:
    """Return the matrix of `value`, through a new Reshape in front of `user` where there is none yet."""
    if value not in flat:
        assert value.shape is not None
        channels = value.shape[3]
        assert isinstance(channels, int)
        producer = value.producer()
        # A Reshape of a Reshape is one Reshape.
        source = producer.inputs[0] if producer is not None and producer.op_type == "Reshape" else value
        node = ir.node("Reshape", [source, shape_constant(model, (-1, channels))], name=f"{value.name}/flat")
        flat[value] = _matrix(node, value)
        model.graph.insert_before(user, node)
    return flat[value]


def _unflatten_output(model: ir.Model, node: ir.Node, flat: dict[ir.Value, ir.Value]) -> None:
    """Let users that know the flat form find it, and give all others the four axes back."""
    old = node.outputs[0]
    assert old.shape is not None
    sizes = [size if isinstance(size, int) else -1 for size in old.shape]
    back = ir.node("Reshape", [old, shape_constant(model, (-1, *sizes[1:]))], name=f"{node.name}/grid")
    model.graph.insert_after(node, back)
    tokens = back.outputs[0]
    like(back, old)
    ir.convenience.replace_all_uses_with(old, tokens, replace_graph_outputs=True)
    back.replace_input_with(0, old)
    old.shape = ir.Shape([None, sizes[3]])
    tokens.name = f"{back.name}:0"
    flat[tokens] = old


def _matrix(node: ir.Node, source: ir.Value) -> ir.Value:
    output = like(node, source)
    assert source.shape is not None
    output.shape = ir.Shape([None, source.shape[3]])
    return output
