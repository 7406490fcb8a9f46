"""Shifts and image sizes for blocks of every number of channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlpdeploy.errors import UsageError
from mlpdeploy.ops.axial_shift import PADDINGS, ShiftSpec


def shift_cases(count: int) -> Iterator[tuple[int, int, ShiftSpec, tuple[int, int, int]]]:
    """Yield (channels, hidden channels, shift, (samples, height, width)) for 1 to `count` channels."""
    rng = np.random.default_rng(1)
    for channels in range(1, count + 1):
        while True:
            spec = ShiftSpec(int(rng.choice([1, 3, 5, 7])), int(rng.choice([1, 1, 2])), str(rng.choice(PADDINGS)))
            height, width = (int(rng.choice([1, 2, 3, 5, 7, 9, 13, 17, 24])) for _ in range(2))
            try:
                spec.check_size(height, width)
            except UsageError:
                continue
            break
        hidden = int(rng.integers(1, 70))
        yield channels, hidden, spec, (int(rng.integers(1, 4)), height, width)
