"""The switch between computing an operator of ours and leaving it as one node in the exported graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_leave_nodes: ContextVar[bool] = ContextVar("mlpdeploy_leave_nodes", default=False)


def leave_nodes() -> bool:
    """Return whether a canonical export is being traced in this context; never in torch.compile, which cannot ask."""
    import torch

    if torch.compiler.is_dynamo_compiling():
        return False
    return _leave_nodes.get()


@contextmanager
def canonical_tracing() -> Iterator[None]:
    """Within this block the operators of `ops/` leave `mlpdeploy::` nodes instead of computing."""
    token = _leave_nodes.set(True)
    try:
        yield
    finally:
        _leave_nodes.reset(token)
