"""Names, axes, dtypes and shapes: compared before any value, each difference collected."""

from __future__ import annotations

from mlpdeploy.manifest import TensorSpec


def interface_failures(kind: str, wanted: tuple[TensorSpec, ...], found: list[TensorSpec]) -> list[str]:
    """Return one sentence per difference between the manifest's tensors and the file's own.

    Args:
        kind: `input` or `output`, for the sentences.
    """
    failures = []
    names, found_names = [spec.name for spec in wanted], [spec.name for spec in found]
    if names != found_names:
        failures.append(f"{kind}s are named {found_names}, the manifest says {names}")
    by_name = {spec.name: spec for spec in found}
    for spec in wanted:
        other = by_name.get(spec.name)
        if other is None:
            continue
        if other.dtype != spec.dtype:
            failures.append(f"{kind} {spec.name} is {other.dtype}, the manifest says {spec.dtype}")
        if len(other.shape) != len(spec.shape):
            failures.append(f"{kind} {spec.name} has {len(other.shape)} axes, the manifest says {len(spec.shape)}")
            continue
        for axis, (mine, theirs) in enumerate(zip(spec.shape, other.shape, strict=True)):
            if isinstance(mine, int) != isinstance(theirs, int):
                kinds = ["open" if not isinstance(size, int) else f"fixed to {size}" for size in (theirs, mine)]
                failures.append(f"axis {axis} of {kind} {spec.name} is {kinds[0]}, the manifest says {kinds[1]}")
            elif isinstance(mine, int) and mine != theirs:
                failures.append(f"axis {axis} of {kind} {spec.name} is {theirs}, the manifest says {mine}")
    return failures
