"""Values against the float64 reference, rows against rows, classes against classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpdeploy.runtime.session import Session
from mlpdeploy.verify.inputs import Pool
from mlpdeploy.verify.tolerance import allowed_error, row_identity, spread

BATCHES = (1, 2, 3, 8)

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Reference:
    """What PyTorch computes on a pool: in float64 (the truth) and in the artifact's precision (the yardstick)."""

    exact: Outputs
    framework: Outputs


def value_checks(session: Session, pool: Pool, reference: Reference, precision: str) -> Iterator[dict[str, Any]]:
    """Yield one result per check; each has `check`, `passed` and the figures that decided it."""
    size = "x".join(map(str, pool.height_width))
    name = session.inputs[0].name
    results = {batch: session.run({name: pool.images[:batch]}) for batch in BATCHES}
    for batch, outputs in results.items():
        for output, array in outputs.items():
            exact, framework = reference.exact[output][:batch], reference.framework[output][:batch]
            yield {
                "check": f"values of {output}, batch {batch}, {size}",
                **_compare(array, exact, framework, precision),
            }
    largest = results[max(BATCHES)]
    alone = [session.run({name: pool.images[row : row + 1]}) for row in range(max(BATCHES))]
    equal = session.run({name: np.repeat(pool.images[:1], max(BATCHES), 0)})
    for output, array in largest.items():
        scale = spread(reference.exact[output])
        limit = row_identity(precision, session.backend)
        apart = max(float(np.abs(array[row] - one[output][0]).max()) for row, one in enumerate(alone)) / scale
        yield {"check": f"row alone equals row in a batch, {output}, {size}", **_bounded(apart, limit)}
        same = float(np.abs(equal[output] - equal[output][:1]).max()) / scale
        yield {"check": f"equal rows give equal results, {output}, {size}", **_bounded(same, limit)}
        if array.ndim == 2:
            yield {"check": f"top-1 agreement, {size}", **_top1(array, reference.exact[output])}


def _compare(array: np.ndarray, exact: np.ndarray, framework: np.ndarray, precision: str) -> dict[str, Any]:
    if array.shape != exact.shape:
        return {"passed": False, "reason": f"shape {array.shape}, wanted {exact.shape}"}
    if not bool(np.isfinite(array).all()):
        return {"passed": False, "reason": "NaN or infinite values"}
    error = float(np.abs(array - exact).max())
    own = float(np.abs(framework - exact).max())
    limit = allowed_error(precision, exact, own)
    return {
        "passed": error <= limit,
        "max_error": error,
        "allowed": limit,
        "pytorch_error": own,
        "relative_error": error / spread(exact),
    }


def _bounded(value: float, limit: float) -> dict[str, Any]:
    return {"passed": value <= limit, "relative_error": value, "allowed": limit}


def _top1(array: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    agree = int((array.argmax(1) == exact.argmax(1)).sum())
    return {"passed": agree == len(exact), "agree": agree, "rows": len(exact)}
