"""Blocks: the parts of a model that get a precision of their own, found from the names of its nodes."""

from __future__ import annotations

from collections.abc import Iterable


def blocks_of(nodes: Iterable[str]) -> dict[str, str]:
    """Return {node name: its block}, in the nodes' order.

    A node's name begins with the path of its torch module. A block is that path up to its last number
    (`layers.0.blocks.1`, `network.0.3`) or its first part where there is no number (`patch_embed`, `head`). Where that
    name would cover other blocks, one more part is taken: `layers.0.downsample`.

    Args:
        nodes: names as in a lowered model, e.g. `layers.0.blocks.1.mlp.fc1/Conv`.
    """
    paths = {name: name.partition("/")[0].split(".") for name in nodes}
    short = {".".join(path[: _depth(path)]) for path in paths.values()}
    covering = {name for name in short if any(other.startswith(f"{name}.") for other in short)}
    found = {}
    for node, path in paths.items():
        name = ".".join(path[: _depth(path)])
        found[node] = ".".join(path[: _depth(path) + 1]) if name in covering else name
    return found


def _depth(path: list[str]) -> int:
    """Return how many parts of a path name its block."""
    numbers = [index for index, part in enumerate(path) if part.isdigit()]
    return numbers[-1] + 1 if numbers else 1
