"""Batches for the small AS-MLP on the CPU's backends, and what it gives for them in float64."""

from __future__ import annotations

import numpy as np
import torch
from tiny import tiny_asmlp

from mlpdeploy.runtime.backends import BACKENDS, GPU_BACKENDS

CPU_BACKENDS = [name for name in BACKENDS if name not in GPU_BACKENDS]
TOLERANCE = 1e-5


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 3, 32, 32)).astype(np.float32)


def reference(array: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return tiny_asmlp().double()(torch.from_numpy(array).double()).numpy()
