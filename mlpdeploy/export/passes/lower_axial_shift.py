"""`mlpdeploy::AxialShift` in the form that a target runs best.

- `plugin`: keep the node, drop its function: the target has a kernel for it.
- `conv`: one depthwise convolution with one-hot kernels per direction. Channel c of group g has its one at tap
  (shift_size - 1 - g), taps `dilation` apart: exact, because every product is with 0 or 1 and every sum has one term.
- `slice`: Pad, one Slice per group, Concat per direction; the padded tensor is shared by the groups.

`reflect` and `replicate` pad first, then convolve without padding; `circular` likewise, with Slice and Concat for Pad.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from mlpdeploy.errors import UsageError
from mlpdeploy.export.passes.rewrite import PassReport, constant, like, replace
from mlpdeploy.ops.axial_shift import DOMAIN, NAME, ONNX_PAD_MODE, ShiftSpec

ShiftForm = Literal["plugin", "conv", "slice"]
SHIFT_FORMS: tuple[str, ...] = get_args(ShiftForm)
_AXES = {"w": 3, "h": 2}


def lower_axial_shift(model: ir.Model, form: ShiftForm) -> PassReport:
    """Lower every AxialShift of the model; exact.

    Raises:
        UsageError: an unknown form.
    """
    if form not in SHIFT_FORMS:
        raise UsageError(f"shift lowering {form!r}", f"one of {', '.join(SHIFT_FORMS)}")
    report = PassReport(f"lower_axial_shift({form})")
    for node in [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, NAME)]:
        if form != "plugin":
            _lower(model, node, form)
        report.changed.append(str(node.name))
    if form == "plugin":
        for identifier in [key for key in model.functions if key[:2] == (DOMAIN, NAME)]:
            del model.functions[identifier]
    return report


def shift_spec_of(node: ir.Node) -> ShiftSpec:
    """Return the attributes of an AxialShift node."""
    attributes = node.attributes
    return ShiftSpec(
        attributes.get_int("shift_size", 0),
        attributes.get_int("dilation", 0),
        attributes.get_string("padding", ""),  # type: ignore[arg-type]
    )


def one_hot_kernel(model: ir.Model, spec: ShiftSpec, channels: int, axis: str, dtype: np.dtype) -> ir.Value:
    """Return the kernel (C, 1, h, w) of the depthwise convolution that shifts along one axis, `w` or `h`."""
    size = spec.shift_size
    kernel = np.zeros((channels, size), dtype)
    group_size = -(-channels // size)
    kernel[np.arange(channels), size - 1 - np.arange(channels) // group_size] = 1
    shape = (1, size) if axis == "w" else (size, 1)
    return constant(model, f"axial_shift_{axis}_{channels}x{size}", kernel.reshape(channels, 1, *shape))


def _lower(model: ir.Model, node: ir.Node, form: ShiftForm) -> None:
    spec, channels = shift_spec_of(node), node.attributes.get_int("channels", 0)
    new: list[ir.Node] = []
    outputs: list[ir.Value] = []
    for axis, old in zip(_AXES, node.outputs, strict=True):
        if not old.uses() and not old.is_graph_output():
            outputs.append(ir.Value(name=f"{old.name}.unused"))
            continue
        nodes = (_conv if form == "conv" else _slices)(model, node, spec, channels, axis)
        new += nodes
        outputs.append(like(nodes[-1], old))
    replace(model, [node], new, outputs)


def _conv(model: ir.Model, node: ir.Node, spec: ShiftSpec, channels: int, axis: str) -> list[ir.Node]:
    source = node.inputs[0]
    assert source is not None and source.dtype is not None
    weight = one_hot_kernel(model, spec, channels, axis, source.dtype.numpy())
    along = _AXES[axis] - 2
    kernel_shape = [1, 1]
    kernel_shape[along] = spec.shift_size
    nodes: list[ir.Node] = []
    pads = [0, 0, 0, 0]
    if spec.padding == "zero":
        pads[along] = pads[along + 2] = spec.reach
    elif spec.reach:
        nodes += _continued(model, node, spec, axis)
        source = nodes[-1].outputs[0]
    dilations = [1, 1]
    dilations[along] = spec.dilation
    attributes: dict[str, int | list[int]] = {
        "group": channels,
        "kernel_shape": kernel_shape,
        "pads": pads,
        "dilations": dilations,
    }
    nodes.append(ir.node("Conv", [source, weight], attributes, name=f"{node.name}/{axis}"))
    return nodes


def _slices(model: ir.Model, node: ir.Node, spec: ShiftSpec, channels: int, axis: str) -> list[ir.Node]:
    source = node.inputs[0]
    assert source is not None
    if spec.reach == 0:
        return [ir.node("Identity", [source], name=f"{node.name}/{axis}")]
    nodes = _continued(model, node, spec, axis)
    padded, parts, first = nodes[-1], [], 0
    axes = constant(model, f"axes_channel_{axis}", np.array([1, _AXES[axis]], np.int64))
    for group, count in enumerate(spec.group_sizes(channels)):
        if count == 0:
            break
        begin = spec.reach - (group - spec.shift_size // 2) * spec.dilation
        # The end counts from behind, so that the size along the axis may stay open.
        behind = begin - 2 * spec.reach
        starts = np.array([first, begin], np.int64)
        ends = np.array([first + count, behind if behind < 0 else np.iinfo(np.int64).max], np.int64)
        piece = ir.node(
            "Slice",
            [
                padded.outputs[0],
                constant(model, "at_" + "_".join(map(str, starts)), starts),
                constant(model, "to_" + "_".join(str(e) if e < 1 << 40 else "end" for e in ends), ends),
                axes,
            ],
            name=f"{node.name}/{axis}{group}",
        )
        nodes.append(piece)
        piece.outputs[0].type = source.type
        parts.append(piece.outputs[0])
        first += count
    nodes.append(ir.node("Concat", parts, {"axis": 1}, name=f"{node.name}/{axis}"))
    return nodes


def _continued(model: ir.Model, node: ir.Node, spec: ShiftSpec, axis: str) -> list[ir.Node]:
    """Return the nodes that continue the image along one axis, `w` or `h`; the last one gives the larger image."""
    source = node.inputs[0]
    assert source is not None
    if spec.padding == "circular":
        return _wrapped(model, node, source, spec.reach, axis)
    amounts = np.zeros(8, np.int64)
    amounts[_AXES[axis]] = amounts[_AXES[axis] + 4] = spec.reach
    pads = constant(model, f"pads_{axis}_{spec.reach}", amounts)
    padded = ir.node("Pad", [source, pads], {"mode": ONNX_PAD_MODE[spec.padding]}, name=f"{node.name}/{axis}/Pad")
    return [_typed(padded, source)]


def _wrapped(model: ir.Model, node: ir.Node, source: ir.Value, reach: int, axis: str) -> list[ir.Node]:
    """Return the nodes of a circular continuation; as a mode of Pad, OpenVINO does not know it."""
    axes = constant(model, f"axis_{axis}", np.array([_AXES[axis]], np.int64))
    ends = [
        ir.node(
            "Slice",
            [
                source,
                constant(model, f"from_{first}", np.array([first], np.int64)),
                constant(model, f"until_{name}", np.array([stop], np.int64)),
                axes,
            ],
            name=f"{node.name}/{axis}/{name}",
        )
        for name, first, stop in (("end", -reach, np.iinfo(np.int64).max), (f"first_{reach}", 0, reach))
    ]
    last, first = (_typed(piece, source).outputs[0] for piece in ends)
    joined = ir.node("Concat", [last, source, first], {"axis": _AXES[axis]}, name=f"{node.name}/{axis}/Wrap")
    return [*ends, _typed(joined, source)]


def _typed(node: ir.Node, source: ir.Value) -> ir.Node:
    """Return the node, after giving its output a name and the type of `source`."""
    node.outputs[0].type, node.outputs[0].name = source.type, f"{node.name}:0"
    return node
