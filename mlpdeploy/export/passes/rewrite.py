"""What every pass needs: its report, constants in and out of the graph, and replacing nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

_FACTORS = "mlpdeploy.factors"  # key in a formed block's meta


@dataclass
class PassReport:
    """What one pass did.

    Attributes:
        name: of the pass.
        changed: names of the nodes that were rewritten.
        refused: {node name: why it was left as it is}.
    """

    name: str
    changed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data: counts, and each refusal's reason with its nodes."""
        reasons: dict[str, list[str]] = {}
        for node, reason in self.refused.items():
            reasons.setdefault(reason, []).append(node)
        return {"name": self.name, "changed": len(self.changed), "refused": reasons}


@dataclass(frozen=True)
class Factor:
    """What a matrix of a formed block is multiplied with.

    Attributes:
        product: name of the node that the product was.
        tensor: name of its input where it was computed, before any shift.
    """

    product: str
    tensor: str


def note_factors(block: ir.Node, factors: Mapping[str, tuple[ir.Node, ir.Value | str | None]]) -> None:
    """Keep with a block, while it is in memory, what its matrices are multiplied with: {input: (product, tensor)}."""
    block.meta[_FACTORS] = {
        name: Factor(str(product.name), tensor if isinstance(tensor, str) else str(tensor.name))
        for name, (product, tensor) in factors.items()
        if tensor is not None
    }


def factors_of(block: ir.Node) -> dict[str, Factor]:
    """Return what `note_factors` kept."""
    found: dict[str, Factor] = block.meta[_FACTORS]
    return found


def opset_of(model: ir.Model) -> int:
    """Return the version of the standard operators that the model is written in."""
    return model.graph.opset_imports[""]


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """Return the array behind an initializer, or None for a value that is computed."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """Return an initializer with this content; one of the same name must hold the same array."""
    known = model.graph.initializers.get(name)
    if known is not None:
        found = array_of(known)
        assert found is not None and found.dtype == array.dtype and np.array_equal(found, array), name
        return known
    tensor = ir.tensor(np.array(array, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def shape_constant(model: ir.Model, sizes: tuple[int, ...]) -> ir.Value:
    """Return an initializer for Reshape, shared between all nodes that want the same shape."""
    name = "shape_" + "x".join("any" if size == -1 else "same" if size == 0 else str(size) for size in sizes)
    return constant(model, name, np.array(sizes, np.int64))


def replace(model: ir.Model, old: list[ir.Node], new: list[ir.Node], outputs: list[ir.Value]) -> None:
    """Put `new` where the last of `old` stands; `outputs` take over the names and users of that node's outputs."""
    last = old[-1]
    ir.convenience.replace_nodes_and_values(model.graph, last, old, new, list(last.outputs), outputs)


def like(node: ir.Node, source: ir.Value) -> ir.Value:
    """Return the node's first output, after giving it the type and shape of `source`."""
    output = node.outputs[0]
    output.type, output.shape = source.type, source.shape
    if output.name is None:
        output.name = f"{node.name}:0"
    return output


def remove_unused(model: ir.Model) -> None:
    """Remove nodes, initializers and functions that nothing uses any more."""
    graph = model.graph
    for node in reversed(list(graph)):
        if all(not out.uses() and not out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)
    used = {node.op_identifier() for node in graph}
    for identifier in list(model.functions):
        if identifier not in used:
            del model.functions[identifier]
    if not any(domain == "mlpdeploy" for domain, _, _ in used):  # a node without a function stays ours: a plugin's
        graph.opset_imports.pop("mlpdeploy", None)
