"""Blocks: the parts of a model that get a precision of their own, found from the names of its nodes."""

from __future__ import annotations

from collections.abc import Iterable


def block_names(nodes: Iterable[str]) -> list[str]:
    """Return the blocks of the given nodes, in the nodes' order.

    A node's name begins with the path of its torch module. A block is that path up to its last number
    (`layers.0.blocks.1`, `network.0.3`) or its first part where there is no number (`patch_embed`, `head`). Where that
    would cover other blocks, one more part is taken: `layers.0.downsample`.

    Args:
        nodes: names as in a lowered model, e.g. `layers.0.blocks.1.mlp.fc1/Conv`.
    """
    paths = [name.partition("/")[0].split(".") for name in nodes]
    short = {".".join(path[: _depth(path)]) for path in paths}
    covering = {name for name in short if any(other.startswith(f"{name}.") for other in short)}
    found: dict[str, None] = {}
    for path in paths:
        name = ".".join(path[: _depth(path)])
        if name in covering:
            name = ".".join(path[: _depth(path) + 1])
        found[name] = None
    return list(found)


def _depth(path: list[str]) -> int:
    """Return how many parts of a path name its block."""
    numbers = [index for index, part in enumerate(path) if part.isdigit()]
    return numbers[-1] + 1 if numbers else 1
