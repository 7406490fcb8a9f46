"""The engine that the tests of TensorRT's runtime build, and how its rows are compared."""

from __future__ import annotations

import dataclasses

import numpy as np
from fakes.machine import RTX

from mlpdeploy.engines.options import BuildOptions

PROFILES = BuildOptions(batches=((1, 1, 1), (2, 4, 8)))


def options_for(version: str) -> BuildOptions:
    """Return what is built with a version: the same engine everywhere."""
    rtx = {"target": "tensorrt-rtx", "compute_capabilities": ("8.9",)} if version == RTX else {}
    return dataclasses.replace(PROFILES, **rtx)


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(found - wanted).max() < 1e-4)
