"""Which nodes of a lowered model compute in half precision, which stay in float32, and why.

Six kinds of nodes:

- *pinned*: the recipe keeps them, their weights are beyond the type's range, or calibration saw a value that is too
  near to it. They stay in float32, whatever they compute.
- *statistics*: norms, softmax and reductions. They sum over hundreds to hundred thousands of values, or divide by such
  a sum; in half precision the sum would lose what its last terms add. They stay in float32.
- *one kernel in several operators*: a Gelu that is written as five, and a norm's scale and bias that are a convolution
  of their own. Rounding between their steps would make several errors of one, and a cast between them keeps runtimes
  from fusing them. They stay in float32.
- *the classifier*: the product between the mean over the image and the output. It is a part in some thousand of the
  work, between two tensors in float32, and its rounding would be the largest single error of a logit.
- *movement*: Reshape, Transpose, Slice, the axial shift. They compute nothing and take the type of their surroundings.
- everything else computes in half precision: products, GELU, sums of two branches.

A convolution or product adds up its terms in an accumulator. Every runtime here accumulates halves in float32, so only
the sum has to fit; where one does not, partial sums may be larger than the sum. `FP16_MARGIN` covers that, and images
that are brighter than those of the calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from mlpdeploy.export.passes.rewrite import array_of
from mlpdeploy.ops import axial_shift
from mlpdeploy.quant.products import is_shift_convolution
from mlpdeploy.quant.recipe import Recipe

FP16_MAX = 65504.0
FP16_MARGIN = 4.0

NORMS = frozenset({"InstanceNormalization", "LayerNormalization", "GroupNormalization", "MeanVarianceNormalization"})
# Sum adds the three means of the gates of models on tokens.
STATISTICS = NORMS | {"Softmax", "ReduceMean", "ReduceSum", "GlobalAveragePool", "Sum"}
MOVEMENT = frozenset({"Reshape", "Transpose", "Slice", "Pad", "Concat", "Split", "Identity", "Flatten", "Squeeze"})
_NOT_LARGER = frozenset({"Gelu", "QuantizeLinear", "DequantizeLinear"})  # than what they read
NO_NUMBERS = frozenset({"Shape"})  # integers out of any type

RANGE = {"fp16": FP16_MAX, "bf16": float(np.finfo(np.float32).max)}


@dataclass
class Plan:
    """The decision.

    Attributes:
        float32: the nodes that stay in float32.
        pinned: {node name: why it must}, without those that move data only.
        by_design: number of nodes in float32 that are so in every half model.
        unmeasured: names of nodes in half precision of which no magnitude is known, where magnitudes were given.
    """

    float32: set[ir.Node] = field(default_factory=set)
    pinned: dict[str, str] = field(default_factory=dict)
    by_design: int = 0
    unmeasured: list[str] = field(default_factory=list)


def plan_half(model: ir.Model, recipe: Recipe, magnitudes: Mapping[str, float] | None) -> Plan:
    """Return which nodes stay in float32. See `half_types` for the arguments."""
    plan = Plan()
    nodes = [node for node in model.graph if node.op_type not in NO_NUMBERS]
    by_design = float32_by_design(model)
    known = _magnitudes(nodes, magnitudes if recipe.precision == "fp16" else None)
    for node in nodes:
        reason = "the recipe keeps it" if recipe.keeps(str(node.name)) else ""
        if not reason and node not in by_design:
            reason = _out_of_range(node, recipe, known)
        if reason:
            plan.float32.add(node)
            if not is_movement(node):
                plan.pinned[str(node.name)] = reason
        elif node in by_design:
            plan.float32.add(node)
            plan.by_design += 1
        elif known is not None and not _is_measured(node, known):
            plan.unmeasured.append(str(node.name))
    for node in [node for node in nodes if _is_weight_of_float32(node, plan.float32)]:
        plan.float32.add(node)
        plan.pinned[str(node.name)] = "the int8 weight of a node in float32"
    plan.float32 |= _moving_float32(model, nodes, plan.float32, recipe)
    return plan


def _is_measured(node: ir.Node, known: dict[ir.Value, float]) -> bool:
    """Return whether the magnitudes of what a node computes are known, or follow from its weights."""
    weight = node.op_type == "DequantizeLinear" and array_of(node.inputs[0]) is not None
    return weight or is_movement(node) or all(value in known for value in node.outputs)


def _is_weight_of_float32(node: ir.Node, float32: set[ir.Node]) -> bool:
    """Return whether a node makes an int8 weight of a product in float32: a Cast between them would hide the weight."""
    users = [use.node for value in node.outputs for use in value.uses()]
    return node.op_type == "DequantizeLinear" and array_of(node.inputs[0]) is not None and set(users) <= float32


def is_movement(node: ir.Node) -> bool:
    """Return whether a node only moves data."""
    return node.op_type in MOVEMENT or (node.domain, node.op_type) == (axial_shift.DOMAIN, axial_shift.NAME)


def _is_shift(node: ir.Node) -> bool:
    """Return whether a node is a convolution that moves values, also with weights in 8 bits."""
    weight = node.inputs[1].producer() if node.op_type == "Conv" and node.inputs[1] is not None else None
    return is_shift_convolution(node, weight.inputs[0] if weight is not None else None)


def float32_by_design(model: ir.Model) -> set[ir.Node]:
    """Return the nodes that compute in float32 in every half model."""
    found: set[ir.Node] = set()
    for node in model.graph:
        if _is_statistics(node) or _is_affine(node) or _is_classifier(node):
            found.add(node)
        elif node.op_type == "Erf":
            found.update(_gelu_around(node))
    return found


def _is_statistics(node: ir.Node) -> bool:
    """Return whether a node sums over many values, or is a norm or softmax."""
    if node.op_type in STATISTICS:
        return True
    row = array_of(node.inputs[0]) if node.op_type == "MatMul" else None
    return row is not None and row.ndim == 2 and len(row) == 1 and bool((row == row[0, 0]).all())


def _is_affine(node: ir.Node) -> bool:
    """Return whether a node is the scale and bias of a norm as a depthwise convolution."""
    if node.op_type != "Conv" or node.attributes.get_int("group", 1) == 1:
        return False
    producer, weight = _computed_by(node.inputs[0]), array_of(node.inputs[1])
    return producer is not None and producer.op_type in NORMS and weight is not None and weight.shape[1:] == (1, 1, 1)


def _is_classifier(node: ir.Node) -> bool:
    """Return whether a node is the linear layer from the mean over the image to an output."""
    if node.op_type != "Gemm":
        return False
    users = [use.node for use in node.outputs[0].uses()]
    typed = len(users) == 1 and users[0].op_type == "Cast" and users[0].outputs[0].is_graph_output()
    if not typed and not node.outputs[0].is_graph_output():
        return False
    producer = _computed_by(node.inputs[0])
    return producer is not None and _is_statistics(producer)


def _computed_by(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computed a value, before it was moved."""
    producer = value.producer() if value is not None else None
    while producer is not None and is_movement(producer):
        source = producer.inputs[0]
        producer = source.producer() if source is not None else None
    return producer


def _gelu_around(erf: ir.Node) -> list[ir.Node]:
    """Return the operators of the Gelu that an Erf belongs to: x * (erf(x / sqrt(2)) + 1) * 0.5."""
    group = [erf]
    before = erf.inputs[0].producer() if erf.inputs[0] is not None else None
    if before is not None and before.op_type == "Div":
        group.append(before)
    last = erf
    for op in ("Add", "Mul", "Mul"):
        users = {use.node for use in last.outputs[0].uses()}
        last = next(iter(users)) if len(users) == 1 else erf
        if last.op_type != op:
            break
        group.append(last)
    return group


def is_float(value: ir.Value | None) -> bool:
    """Return whether a value is a tensor of floating-point numbers, the only ones that are converted."""
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def _magnitudes(nodes: list[ir.Node], measured: Mapping[str, float] | None) -> dict[ir.Value, float] | None:
    """Return the largest absolute value of each computed value, as measured or as it follows from its inputs."""
    if measured is None:
        return None
    known: dict[ir.Value, float] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.producer() is None and str(value.name) in measured:
                known[value] = measured[str(value.name)]
        inputs = [known[value] for value in node.inputs if value in known]
        for value in node.outputs:
            if str(value.name) in measured:
                known[value] = measured[str(value.name)]
            elif inputs and (is_movement(node) or _is_shift(node) or node.op_type in _NOT_LARGER):
                known[value] = max(inputs)
    return known


def _out_of_range(node: ir.Node, recipe: Recipe, known: dict[ir.Value, float] | None) -> str:
    """Return why a node cannot compute in the recipe's type, or an empty string."""
    for value in node.inputs:
        array = array_of(value) if is_float(value) else None
        if array is not None and array.size and not float(np.abs(array).max()) <= RANGE[recipe.precision]:
            return f"its constant {value.name} is beyond the range of {recipe.precision}"  # type: ignore[union-attr]
    for value in [*node.inputs, *node.outputs] if known else []:
        if value is None or value not in known:  # type: ignore[operator]
            continue
        # x * (erf(x) + 1), inside of a Gelu that is one operator, is twice its result.
        magnitude = known[value] * (2 if node.op_type == "Gelu" else 1)  # type: ignore[index]
        if not magnitude * FP16_MARGIN <= FP16_MAX:
            which = "input" if value in node.inputs else "output"
            return f"its {which} reaches more than 1/{FP16_MARGIN:.0f} of fp16's largest number on calibration images"
    return ""


def _moving_float32(model: ir.Model, nodes: list[ir.Node], fixed: set[ir.Node], recipe: Recipe) -> set[ir.Node]:
    """Return the movements between float32 nodes: a cast before them would only be taken back behind them."""
    moving = {node for node in nodes if is_movement(node)} - fixed
    inputs = set(model.graph.inputs) if recipe.io == "fp32" else set()
    float32: set[ir.Node] = set()
    for node in nodes:  # those that are fed with float32 only
        values = [value for value in node.inputs if is_float(value) and array_of(value) is None]
        if node in moving and all(v in inputs or v.producer() in fixed | float32 for v in values):  # type: ignore[union-attr, operator]
            float32.add(node)
    wanted = set(fixed)
    for node in reversed(nodes):  # of which something in float32 follows
        outputs = recipe.io == "fp32" and any(value.is_graph_output() for value in node.outputs)
        followed = outputs or any(use.node in wanted for value in node.outputs for use in value.uses())
        if node in float32 and followed:
            wanted.add(node)
    return (wanted & float32) - fixed
