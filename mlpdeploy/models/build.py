"""Modules from an architecture alone: without a name, a checkpoint or options."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mlpdeploy.models.asmlp import AsMlp, AsMlpConfig
from mlpdeploy.models.cyclemlp import CycleMlp, CycleMlpConfig
from mlpdeploy.models.registry import Config
from mlpdeploy.models.vip import VipConfig, VisionPermutator
from mlpdeploy.ops.axial_shift import ShiftSpec

Model = AsMlp | VisionPermutator | CycleMlp

# Of each family: a new one begins here and in `registry.py`.
MODULES: dict[type[Config], Callable[[Any], Model]] = {
    AsMlpConfig: AsMlp,
    VipConfig: VisionPermutator,
    CycleMlpConfig: CycleMlp,
}
_CONFIGS: dict[str, type[Config]] = {kind.family: kind for kind in MODULES}


def config_from_dict(family: str, values: dict[str, Any]) -> Config:
    """Return the architecture that `dataclasses.asdict` turned into JSON data."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if "shift" in values:
        values["shift"] = ShiftSpec(**values["shift"])
    return _CONFIGS[family](**values)


def model_from_config(config: Config, device: str = "cpu") -> Model:
    """Return the float32 module with storage but without meaningful weights (without storage on the device `meta`)."""
    with torch.device("meta"):  # no time is spent on an initialization that would be overwritten
        model = MODULES[type(config)](config).float()
    return model if device == "meta" else model.to_empty(device=device)


def random_weights(model: torch.nn.Module, seed: int) -> None:
    """Fill every tensor from its own generator, so that the weights depend on the seed and on nothing else.

    Matrices are N(0, 1 / fan_in). Vectors are N(0, 0.01), plus one for the scales of norms: a scale of exactly one
    would hide a norm that was folded wrongly.
    """
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
            values = generator.standard_normal(tuple(tensor.shape), dtype=np.float32)
            if tensor.ndim == 1:
                values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
            else:
                values /= np.sqrt(np.prod(tensor.shape[1:]))
            tensor.copy_(torch.from_numpy(values))
