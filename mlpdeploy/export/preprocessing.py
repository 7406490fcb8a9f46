"""How an exported model wants its images: the registry's way, or what a fine-tuned model's user says."""

from __future__ import annotations

import dataclasses
from typing import Any

from mlpdeploy.errors import UsageError
from mlpdeploy.images import COLOR_ORDERS, check_preprocessing
from mlpdeploy.manifest import Preprocessing
from mlpdeploy.models.build import Model
from mlpdeploy.models.registry import entry_of


def preprocessing_for(
    model: Model,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
) -> Preprocessing | None:
    """Return the registry's preprocessing for this model with the given values in it; see `Preprocessing`.

    Where the model takes another number of channels than the registry's, their average mean and std stand for each.
    The result is None for a model whose images are neither grey nor RGB: it gets arrays, and no value can be given.

    Raises:
        UsageError: a value is impossible, or there is no preprocessing to change.
    """
    given: dict[str, Any] = {"mean": mean, "std": std, "crop_pct": crop_pct, "interpolation": interpolation}
    changes = {key: value for key, value in given.items() if value is not None}
    default = _default(model)
    if default is None:
        if changes:
            raise UsageError(
                f"{', '.join(changes)} for a model of {model.config.in_chans} channels",
                "1 (grey) or 3 (RGB)",
                "its inputs are arrays: leave the options out",
            )
        return None
    preprocessing = dataclasses.replace(default, **changes)
    check_preprocessing(preprocessing)
    return preprocessing


def check_fits(preprocessing: Preprocessing, model: Model) -> None:
    """Raise UsageError unless the preprocessing is possible and makes what this model takes."""
    check_preprocessing(preprocessing)
    config = model.config
    if preprocessing.height_width != config.image_size or COLOR_ORDERS[preprocessing.color_order] != config.in_chans:
        height, width = preprocessing.height_width
        raise UsageError(
            f"preprocessing to {height}x{width} pixels, {preprocessing.color_order}",
            f"{config.image_size[0]}x{config.image_size[1]} pixels of {config.in_chans} channels, as the model takes",
            "start from preprocessing_for(model)",
        )


def _default(model: Model) -> Preprocessing | None:
    config = model.config
    color_order = {count: name for name, count in COLOR_ORDERS.items()}.get(config.in_chans)
    if color_order is None:
        return None
    default = entry_of(model.name, config).preprocessing
    mean, std = default.mean, default.std
    if len(mean) != config.in_chans:
        mean, std = (((round(sum(values) / len(values), 3),) * config.in_chans) for values in (mean, std))
    return dataclasses.replace(default, height_width=config.image_size, mean=mean, std=std, color_order=color_order)
