"""Weights as checkpoints hold them."""

from __future__ import annotations

import dataclasses

import torch
from tiny import tiny_asmlp

from mlpdeploy.models.build import model_from_config, random_weights
from mlpdeploy.models.registry import resolve_model

STATE = tiny_asmlp().state_dict()


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


def full_state(name: str, **changes: int) -> dict[str, torch.Tensor]:
    model = model_from_config(dataclasses.replace(resolve_model(name).config, **changes))
    random_weights(model, 0)
    return model.state_dict()
