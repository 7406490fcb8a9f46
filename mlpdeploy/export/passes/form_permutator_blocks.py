"""A block of Vision Permutator as one `mlpdeploy::PermutatorBlock`, for a runtime that may have a kernel for it.

Before: LayerNormalization, WeightedPermuteMlp, MatMul and Add (the projection), Add with the block's input,
LayerNormalization, MatMul and Add, Gelu, MatMul and Add (the MLP), Add. The norms are over the last axis, with one
epsilon.

After: one node with the same weights, and a function with the nodes that the other passes would have made. Exact: a
runtime folds what the function computes from the weights, and what remains is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from mlpdeploy.export.passes.lower_permute_mlp import mixed_tensor, moves_segments
from mlpdeploy.export.passes.matching import NoMatchError, expect, producer_of, user_of
from mlpdeploy.export.passes.rewrite import PassReport, array_of, like, note_factors, opset_of, replace
from mlpdeploy.ops import permute_mlp
from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.permutator_block import BRANCHES, NAME, permutator_block_function, width_attributes

_SIZES = ("segments", "height", "width", "channels")
_EPSILON = 1e-5  # ONNX's default


def form_permutator_blocks(model: ir.Model) -> PassReport:
    """Form every block of the model that is the published one; exact."""
    report = PassReport("form_permutator_blocks")
    for node in [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, permute_mlp.NAME)]:
        try:
            nodes, inputs = _match(node)
        except NoMatchError as reason:
            report.refused[str(node.name)] = str(reason)
            continue
        _form(model, node, nodes, inputs)
        report.changed.append(str(nodes[-1].name))
    if report.changed:
        function = ir.serde.deserialize_function(permutator_block_function(opset_of(model)))
        model.functions[function.identifier()] = function
        model.graph.opset_imports.setdefault(DOMAIN, 1)
    return report


def _match(mixer: ir.Node) -> tuple[list[ir.Node], list[ir.Value]]:
    """Return a block's nodes, the last one last, and the node's inputs X to b_2."""
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
    if norm1.attributes.get_float("epsilon", _EPSILON) != norm2.attributes.get_float("epsilon", _EPSILON):
        raise NoMatchError("its norms differ in epsilon")
    segments, *grid = (mixer.attributes.get_int(name, 0) for name in _SIZES[:3])
    if grid != [segments, segments]:
        raise NoMatchError("its grid has not as many rows and columns as it has segments")
    mixing = _constants(mixer.inputs[1:])
    nodes = [norm1, mixer, *proj, residual1, norm2, *fc1, gelu, *fc2, residual2]
    return nodes, [x, *affine1, *mixing, *weights_proj, *affine2, *weights1, *weights2]


def _form(model: ir.Model, mixer: ir.Node, nodes: list[ir.Node], inputs: list[ir.Value]) -> None:
    last = nodes[-1]
    sizes = {name: mixer.attributes.get_int(name, 0) for name in _SIZES}
    epsilon = nodes[0].attributes.get_float("epsilon", _EPSILON)
    wide = moves_segments(sizes["channels"] // sizes["segments"], sizes["height"])
    attributes = {**sizes, "epsilon": epsilon, **width_attributes(wide)}
    block = ir.node(NAME, inputs, attributes, domain=DOMAIN, name=f"{last.name}/block")
    _, mixer, proj, _, _, _, fc1, _, _, fc2, _, _ = nodes
    factors = dict.fromkeys(BRANCHES, (mixer, mixer.inputs[0]))
    factors |= {name: (node, node.inputs[0]) for name, node in (("W_1", fc1), ("W_2", fc2))}
    note_factors(block, factors | {"W_p": (proj, mixed_tensor(mixer))})
    replace(model, nodes, [block], [like(block, last.outputs[0])])


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
