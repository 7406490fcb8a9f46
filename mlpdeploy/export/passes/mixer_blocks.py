"""A block of Vision Permutator or CycleMLP as one node, for a runtime that may have a kernel for it.

Before: LayerNormalization, the token mixer, MatMul and Add (the projection), Add with the block's input,
LayerNormalization, MatMul and Add, Gelu, MatMul and Add (the MLP), Add. The norms are over the last axis, with one
epsilon.

After: one node with the same weights, and a function with the nodes that the other passes would have made. Exact: a
runtime folds what the function computes from the weights, and what remains is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from mlpdeploy.export.passes.building import mixed_tensor
from mlpdeploy.export.passes.matching import NoMatchError, expect, producer_of, user_of
from mlpdeploy.export.passes.rewrite import PassReport, array_of, like, note_factors, opset_of, replace
from mlpdeploy.ops.axial_shift import DOMAIN

_EPSILON = 1e-5  # ONNX's default


@dataclass(frozen=True)
class BlockKind:
    """What one family's blocks become.

    Attributes:
        mixer: name of the operator that mixes tokens.
        name: of the operator for a whole block.
        branches: those of its inputs that are multiplied with the normalized tokens.
        attributes: returns its attributes for a mixer and an epsilon; raises NoMatchError where it is not the published
            one.
        function: returns its function for an opset.
    """

    mixer: str
    name: str
    branches: tuple[str, ...]
    attributes: Callable[[ir.Node, float], Mapping[str, object]]
    function: Callable[[int], onnx.FunctionProto]


@dataclass(frozen=True)
class _Block:
    """A block around a mixer.

    Attributes:
        nodes: all of them, the last one last.
        inputs: the block's input and all weights, in the order of the computation.
        products: of the linear layers, by their weights' names in the block.
        epsilon: of the norms.
    """

    nodes: list[ir.Node]
    inputs: list[ir.Value]
    products: dict[str, ir.Node]
    epsilon: float


def form_mixer_blocks(model: ir.Model, kind: BlockKind, name: str) -> PassReport:
    """Form every block of a kind that is the published one; exact. Return the report of the pass called `name`."""
    report = PassReport(name)
    for mixer in [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, kind.mixer)]:
        try:
            block = _match(mixer)
            attributes = kind.attributes(mixer, block.epsilon)
        except NoMatchError as reason:
            report.refused[str(mixer.name)] = str(reason)
            continue
        last = block.nodes[-1]
        node = ir.node(kind.name, block.inputs, attributes, domain=DOMAIN, name=f"{last.name}/block")  # type: ignore[arg-type]
        factors: dict[str, tuple[ir.Node, ir.Value | str | None]] = {
            **dict.fromkeys(kind.branches, (mixer, mixer.inputs[0])),
            **{weight: (product, product.inputs[0]) for weight, product in block.products.items()},
        }
        factors["W_p"] = (block.products["W_p"], mixed_tensor(mixer))  # where it is computed, on tokens or planes
        note_factors(node, factors)
        replace(model, block.nodes, [node], [like(node, last.outputs[0])])
        report.changed.append(str(last.name))
    if report.changed:
        function = ir.serde.deserialize_function(kind.function(opset_of(model)))
        model.functions[function.identifier()] = function
        model.graph.opset_imports.setdefault(DOMAIN, 1)
    return report


def _match(mixer: ir.Node) -> _Block:
    """Return the block around a mixer."""
    norm1, affine1 = _norm(producer_of(mixer.inputs[0], "LayerNormalization"))
    x = norm1.inputs[0]
    assert x is not None
    proj, weights_proj = _linear(user_of(mixer.outputs[0]))
    residual1 = _residual(proj[-1], x)
    users = [use.node for use in residual1.outputs[0].uses()]
    norms = [node for node in users if node.op_type == "LayerNormalization"]
    if len(users) != 2 or len(norms) != 1 or residual1.outputs[0].is_graph_output():
        raise NoMatchError("no norm and MLP follow it")
    norm2, affine2 = _norm(norms[0])
    fc1, weights1 = _linear(user_of(norm2.outputs[0]))
    gelu = expect(user_of(fc1[-1].outputs[0]), "Gelu")
    fc2, weights2 = _linear(user_of(gelu.outputs[0]))
    residual2 = _residual(fc2[-1], residual1.outputs[0])
    epsilon = norm1.attributes.get_float("epsilon", _EPSILON)
    if epsilon != norm2.attributes.get_float("epsilon", _EPSILON):
        raise NoMatchError("its norms differ in epsilon")
    nodes = [norm1, mixer, *proj, residual1, norm2, *fc1, gelu, *fc2, residual2]
    inputs = [x, *affine1, *_constants(mixer.inputs[1:]), *weights_proj, *affine2, *weights1, *weights2]
    return _Block(nodes, inputs, {"W_p": proj[0], "W_1": fc1[0], "W_2": fc2[0]}, epsilon)


def _norm(node: ir.Node) -> tuple[ir.Node, list[ir.Value]]:
    """Return a norm over the last axis, and its scale and bias."""
    expect(node, "LayerNormalization")
    if node.attributes.get_int("axis", -1) not in (-1, 3):
        raise NoMatchError("a norm of it is over more than the last axis")
    if len(node.inputs) != 3:
        raise NoMatchError("a norm of it has no bias")
    return node, _constants(node.inputs[1:])


def _linear(product: ir.Node) -> tuple[list[ir.Node], list[ir.Value]]:
    """Return a product and the addition of its bias, and both weights."""
    expect(product, "MatMul")
    added = expect(user_of(product.outputs[0]), "Add")
    bias = next((value for value in added.inputs if value is not product.outputs[0]), None)
    weights = _constants([product.inputs[1], bias])
    if [len(value.shape or ()) for value in weights] != [2, 1]:
        raise NoMatchError("a linear layer of it has weights of other shapes")
    return [product, added], weights


def _residual(branch: ir.Node, x: ir.Value) -> ir.Node:
    """Return the node that adds a branch's result to x."""
    added = expect(user_of(branch.outputs[0]), "Add")
    if x not in added.inputs:
        raise NoMatchError("the input of a part of it is not added to its result")
    return added


def _constants(values: Sequence[ir.Value | None]) -> list[ir.Value]:
    found = []
    for value in values:
        array = array_of(value)
        if value is None or array is None or array.dtype != np.float32:
            raise NoMatchError("its weights are not constant float32")
        found.append(value)
    return found
