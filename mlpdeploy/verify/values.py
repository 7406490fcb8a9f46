"""Values against the float64 reference, rows against rows, classes against classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpdeploy.runtime.session import Session
from mlpdeploy.verify.inputs import Pool
from mlpdeploy.verify.tolerance import SAME_CLASSES, allowed_error, allowed_rms, rms, row_identity, spread

BATCHES = (1, 2, 3, 8)
NOT_FINITE = "NaN or infinite values"

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Reference:
    """What PyTorch computes on a pool: in float64 (the truth) and in the artifact's precision (the yardstick).

    Attributes:
        exact: {output name: float64 array}.
        own_error: {output name: PyTorch's largest absolute error in the artifact's precision, over all images}.
        own_rms: {output name: the root mean square of those errors}.
    """

    exact: Outputs
    own_error: dict[str, float]
    own_rms: dict[str, float]


def value_checks(session: Session, pool: Pool, reference: Reference, precision: str) -> Iterator[dict[str, Any]]:
    """Yield one result per check; each has `check`, `passed` and the figures that decided it."""
    size = "x".join(map(str, pool.height_width))
    name = session.inputs[0].name
    images = pool.images.astype(session.inputs[0].dtype)
    results = {batch: session.run({name: images[:batch]}) for batch in BATCHES}
    for batch, outputs in results.items():
        yield from _values(outputs, batch, reference, precision, size)
    largest = results[max(BATCHES)]
    alone = [session.run({name: images[row : row + 1]}) for row in range(max(BATCHES))]
    equal = session.run({name: np.repeat(images[:1], max(BATCHES), 0)})
    for output, result in largest.items():
        array = result.astype(np.float64)
        scale = spread(reference.exact[output])
        bound = allowed_rms(precision, reference.exact[output], reference.own_rms[output])
        if bound is not None and array.shape == reference.exact[output].shape:
            found = rms(array - reference.exact[output])
            yield {
                "check": f"root mean square of the errors of {output}, {size}",
                **_bounded(found / scale, bound / scale),
                "pytorch": reference.own_rms[output] / scale,
            }
        limit = row_identity(precision, session.backend, session.device)
        apart = float(np.abs(array - np.concatenate([one[output][:1] for one in alone])).max()) / scale
        yield {"check": f"row alone equals row in a batch, {output}, {size}", **_bounded(apart, limit)}
        same = float(np.abs(equal[output] - equal[output][:1]).max()) / scale
        yield {"check": f"equal rows give equal results, {output}, {size}", **_bounded(same, limit)}
        if array.ndim == 2:
            yield {"check": f"top-1 agreement, {size}", **_top1(array, reference.exact[output], precision)}


def values_without_kernels(
    session: Session, pool: Pool, reference: Reference, precision: str
) -> Iterator[dict[str, Any]]:
    """Yield the checks of the values that a machine without our CPU kernels computes, of two rows."""
    size = "x".join(map(str, pool.height_width))
    spec = session.inputs[0]
    outputs = session.run({spec.name: pool.images[:2].astype(spec.dtype)})
    yield from _values(outputs, 2, reference, precision, f"{size}, without the CPU kernels")


def _values(outputs: Outputs, batch: int, reference: Reference, precision: str, which: str) -> Iterator[dict[str, Any]]:
    for output, array in outputs.items():
        yield {
            "check": f"values of {output}, batch {batch}, {which}",
            **_compare(array, reference.exact[output], reference.own_error[output], precision, batch),
        }


def _compare(array: np.ndarray, exact: np.ndarray, own: float, precision: str, batch: int) -> dict[str, Any]:
    """Compare the first rows; the spread is that of all, because a row of few classes has hardly any of its own."""
    wanted = exact[:batch]
    if array.shape != wanted.shape:
        return {"passed": False, "reason": f"shape {array.shape}, wanted {wanted.shape}"}
    if not bool(np.isfinite(array).all()):
        return {"passed": False, "reason": NOT_FINITE}
    error = float(np.abs(array - wanted).max())
    limit = allowed_error(precision, exact, own)
    return {
        "passed": error <= limit,
        "max_error": error,
        "allowed": limit,
        "pytorch_error": own,
        "relative_error": error / spread(exact),
    }


def _bounded(value: float, limit: float) -> dict[str, Any]:
    if not math.isfinite(value):
        return {"passed": False, "reason": NOT_FINITE}
    return {"passed": value <= limit, "relative_error": value, "allowed": limit}


def _top1(array: np.ndarray, exact: np.ndarray, precision: str) -> dict[str, Any]:
    agree = int((array.argmax(1) == exact.argmax(1)).sum())
    return {"passed": agree == len(exact) or precision not in SAME_CLASSES, "agree": agree, "rows": len(exact)}
