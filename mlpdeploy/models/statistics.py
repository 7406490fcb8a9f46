"""Parameters and multiply-adds of a model, counted without computing anything."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from mlpdeploy.models.build import model_from_config
from mlpdeploy.models.registry import DEMO_MODELS, MODELS


@dataclass(frozen=True)
class ModelStatistics:
    """Size of a model.

    Attributes:
        parameters: number of trained values.
        macs: multiply-adds of the convolutions and linear layers for one image.
    """

    parameters: int
    macs: int


def model_statistics(model: nn.Module, image_size: tuple[int, int], in_chans: int) -> ModelStatistics:
    """Return the counts for one image of `image_size` (height, width) pixels."""
    shadow = copy.deepcopy(model).to("meta")
    counted = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution: _convolution})
    with torch.no_grad(), counted as counter:
        shadow(torch.empty(1, in_chans, *image_size, dtype=torch.float32, device="meta"))
    return ModelStatistics(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def _convolution(x_shape: list[int], weight_shape: list[int], *_: Any, out_shape: list[int], **__: Any) -> int:
    """Return the operations of a convolution; a depthwise one, of one-hot kernels in these models, moves data only."""
    return 0 if weight_shape[1] == 1 < x_shape[1] else conv_flop_count(x_shape, weight_shape, out_shape)


def model_table() -> list[dict[str, Any]]:
    """Return the registry's models with their counts at their own image size, as JSON data.

    A row whose `top1_percent` is None is a demo model of our own.
    """
    rows = []
    for entry in (*MODELS, *DEMO_MODELS):
        config = entry.config
        counts = model_statistics(model_from_config(config, "meta"), config.image_size, config.in_chans)
        rows.append(
            {
                "name": entry.name,
                "family": entry.family,
                "aliases": list(entry.aliases),
                "parameters": counts.parameters,
                "macs": counts.macs,
                "image_size": list(config.image_size),
                "classes": config.num_classes,
                "top1_percent": entry.top1_percent,
            }
        )
    return rows
