"""What of a lowered graph is quantized: its products with constant weights, and the tensors whose ranges that needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mlpdeploy.export.passes.rewrite import array_of
from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.axial_shift import NAME as AXIAL_SHIFT

# Operators that move values without changing them; the value that they move is their first input (all of Concat's).
_MOVEMENT = ("Reshape", "Transpose", "Slice", "Concat", "Pad", "Identity", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Product:
    """A dense Conv, Gemm or MatMul with constant weights.

    Attributes:
        node: the operator; its input 0 is computed, its input 1 is the weight.
        channel_axis: the weight's axis of output channels.
    """

    node: ir.Node
    channel_axis: int

    @property
    def name(self) -> str:
        """The node's name, which begins with that of the module it comes from."""
        return str(self.node.name)

    @property
    def source(self) -> ir.Value:
        """The computed input."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def weight(self) -> np.ndarray:
        """The constant weight: (D, C, R, S) of a Conv, (D, C) or (C, D) of the others."""
        array = array_of(self.node.inputs[1])
        assert array is not None
        return array

    @property
    def is_reshaped(self) -> bool:
        """Whether the result itself, without a bias or anything else in between, is reshaped."""
        return any(use.node.op_type == "Reshape" and use.idx == 0 for use in self.node.outputs[0].uses())


def products_of(model: ir.Model) -> list[Product]:
    """Return the graph's products in order."""
    return [product for node in model.graph if (product := _product(node)) is not None]


def _product(node: ir.Node) -> Product | None:
    if node.domain or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    weight = array_of(node.inputs[1])
    if weight is None or node.inputs[0] is None or array_of(node.inputs[0]) is not None:
        return None
    if node.op_type == "Conv":
        return Product(node, 0) if node.attributes.get_int("group", 1) == 1 else None
    if weight.ndim != 2 or node.attributes.get_int("transA", 0) != 0:
        return None
    return Product(node, 0 if node.attributes.get_int("transB", 0) != 0 else 1)


def moved_values(node: ir.Node | None) -> list[ir.Value]:
    """Return the inputs whose values a node moves unchanged, or an empty list for a node that computes."""
    if node is None:
        return []
    if (node.domain == "" and node.op_type in _MOVEMENT) or (node.domain, node.op_type) == (DOMAIN, AXIAL_SHIFT):
        inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    elif is_shift_convolution(node):
        inputs = node.inputs[:1]
    else:
        return []
    values = [value for value in inputs if value is not None and array_of(value) is None]
    if any(_is_instance_norm(value.producer()) for value in values):
        return []  # the Reshape behind is a part of the norm, and its result has a name in every lowering
    return values if len(values) == len(inputs) else []


def _is_instance_norm(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "InstanceNormalization"


def is_shift_convolution(node: ir.Node, weight_value: ir.Value | None = None) -> bool:
    """Return whether a node is a depthwise convolution whose every kernel is one 1 among zeros.

    `weight_value`: the constant that the node's weight is made of, if it is not one itself.
    """
    if node.domain or node.op_type != "Conv" or len(node.inputs) > 2:
        return False
    weight = array_of(node.inputs[1] if weight_value is None else weight_value)
    if weight is None or weight.shape[1] != 1 or node.attributes.get_int("group", 1) != weight.shape[0]:
        return False
    taps = weight.reshape(len(weight), -1)
    return bool(((taps == 0) | (taps == 1)).all() and (taps.sum(1) == 1).all())


def origin_of(value: ir.Value) -> ir.Value:
    """Return the tensor that was computed: `value` followed back through operators that only move."""
    while sources := moved_values(value.producer()):
        origins = {origin_of(source) for source in sources}
        if len(origins) > 1:
            return value
        value = origins.pop()
    return value


def residual_inputs(model: ir.Model) -> list[tuple[ir.Node, int]]:
    """Return (Add, index of its skipping input) for every sum of a product's result with an older tensor."""
    found = []
    for node in model.graph:
        if node.domain or node.op_type != "Add" or any(v is None or array_of(v) is not None for v in node.inputs):
            continue
        fresh = [
            i for i, v in enumerate(node.inputs) if v is not None and len(v.uses()) == 1 and _comes_from_product(v)
        ]
        if len(fresh) == 1:
            found.append((node, 1 - fresh[0]))
    return found


def _comes_from_product(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Add" and array_of(producer.inputs[1]) is not None:
        producer = producer.inputs[0].producer() if producer.inputs[0] is not None else None  # MatMul + bias
    return producer is not None and _product(producer) is not None


def quantized_tensors(model: ir.Model) -> list[str]:
    """Return the tensors to calibrate for any target: what products read and convolutions write, and residual sums."""
    found = [origin_of(product.source) for product in products_of(model)]
    found += [product.node.outputs[0] for product in products_of(model) if product.node.op_type == "Conv"]
    found += [node.inputs[index] for node, index in residual_inputs(model)]  # type: ignore[misc]
    return list(dict.fromkeys(str(value.name) for value in found))
