"""Multiply-adds per node, so that a precision's share of the work can be told."""

from __future__ import annotations

import re
from math import prod

import onnx_ir as ir

from mlpdeploy.export.passes.rewrite import array_of
from mlpdeploy.ops import axial_shift_block, cycle_block, permutator_block
from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.quant.products import is_shift_convolution

PRODUCTS = ("Conv", "Gemm", "MatMul")
# Whole blocks: where among their inputs the matrices are.
_MATRICES = {
    kind.NAME: [kind.INPUTS.index(name) for name in kind.MATRICES]
    for kind in (axial_shift_block, permutator_block, cycle_block)
}


def macs_of(model: ir.Model) -> dict[str, int]:
    """Return {node name: multiply-adds for one image} of every product with constant weights, in the graph's order.

    The axial shift as a convolution counts for nothing: it moves data. An open height or width counts as its smallest
    size, where the shares are those of any size.
    """
    elements: dict[ir.Value, int] = {}  # values of one image
    macs: dict[str, int] = {}
    for node in model.graph:
        for output in node.outputs:
            elements[output] = _elements(node, output, elements)
        if node.domain == DOMAIN and node.op_type in _MATRICES:
            macs[str(node.name)] = _block_macs(node, elements[node.outputs[0]])
        weight = _weight(node)
        if weight is None or is_shift_convolution(node):
            continue
        # One output value is one sum over the weight's other axes than that of the outputs.
        macs[str(node.name)] = elements[node.outputs[0]] * (prod(weight) // _outputs(node, weight))
    return macs


def _block_macs(node: ir.Node, elements: int) -> int:
    """Return the multiply-adds of a block's matrices, each of which every pixel goes through once."""
    arrays = [array_of(node.inputs[index]) for index in _MATRICES[node.op_type]]
    return elements // node.attributes.get_int("channels", 1) * sum(array.size for array in arrays if array is not None)


def _weight(node: ir.Node) -> tuple[int, ...] | None:
    if node.op_type not in PRODUCTS:
        return None
    arrays = [array_of(value) for value in node.inputs[:2]]
    found = [array for array in arrays if array is not None]
    return tuple(found[0].shape) if found else None


def _outputs(node: ir.Node, weight: tuple[int, ...]) -> int:
    """Return how many of an output's values share each input value: channels, columns, or rows of a left factor."""
    if node.op_type == "Conv" or array_of(node.inputs[0]) is not None:
        return weight[0]
    return weight[0] if node.attributes.get_int("transB", 0) else weight[-1]


def _elements(node: ir.Node, output: ir.Value, elements: dict[ir.Value, int]) -> int:
    """Return the number of values of an output for one image: by its shape, else by the node's first computed input."""
    if output.shape is not None and not _open_rows(output.shape):
        return prod(_size(size) for size in list(output.shape)[1:])
    computed = next((elements[value] for value in node.inputs if value in elements), 0)
    if node.op_type == "Split":
        return computed // len(node.outputs)
    weight = _weight(node)
    if weight is None:
        return computed
    return computed * _outputs(node, weight) * _outputs(node, weight) // prod(weight)


def _open_rows(shape: ir.Shape) -> bool:
    """Return whether the first axis is not the batch but any number of rows."""
    first = shape[0] if len(shape) else 1
    return not isinstance(first, int) and first.value is None


def _size(size: int | ir.SymbolicDim) -> int:
    """Return a size; `8*height` counts as 8."""
    found = re.match(r"\d+", str(size.value)) if isinstance(size, ir.SymbolicDim) else None
    return size if isinstance(size, int) else int(found[0]) if found else 1
