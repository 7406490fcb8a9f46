"""Walking from a node to its neighbours, for passes that take several nodes for one; whatever is unlike says why."""

from __future__ import annotations

import onnx_ir as ir


class NoMatchError(Exception):
    """Why nodes stay as they are."""


def producer_of(value: ir.Value | None, kind: str) -> ir.Node:
    """Return the node of this kind that makes a value which nothing else uses."""
    node = None if value is None else value.producer()
    if node is None:
        raise NoMatchError(f"there is no {kind} in front of it")
    if len(node.outputs[0].uses()) > 1:
        raise NoMatchError("a value inside of the block is used elsewhere")
    return expect(node, kind)


def user_of(value: ir.Value) -> ir.Node:
    """Return the only node that uses a value."""
    users = [use.node for use in value.uses()]
    if len(users) != 1 or value.is_graph_output():
        raise NoMatchError("a value inside of the block is used elsewhere")
    return users[0]


def expect(node: ir.Node, kind: str) -> ir.Node:
    """Return the node, which must be of this kind; a Gelu must be the exact one."""
    if node.op_type != kind:
        raise NoMatchError(f"it has {node.op_type} where the published block has {kind}")
    if kind == "Gelu" and node.attributes.get_string("approximate", "none") != "none":
        raise NoMatchError("its GELU is the tanh approximation")
    return node
