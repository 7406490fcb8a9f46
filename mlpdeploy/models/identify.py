"""Which model a checkpoint is of: its names and shapes say it, also for sizes that are not registered."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import torch

from mlpdeploy.errors import CheckpointError, UsageError
from mlpdeploy.models.asmlp import AsMlpConfig
from mlpdeploy.models.build import model_from_config
from mlpdeploy.models.cyclemlp import CycleMlpConfig
from mlpdeploy.models.registry import DEMO_MODELS, MODELS, Config, ModelEntry, entry_of
from mlpdeploy.models.vip import VipConfig

Shapes = dict[str, tuple[int, ...]]

STEM = "patch_embed.proj.weight"  # (embed_dim, in_chans, patch, patch) in every model
OFFSET = ".offset"  # the end of the names of buffers that say how a CycleMLP moves channels
_STEM_DIMENSIONS = 4
_SIDE = 224  # pixels that a model with sizes of its own is taken to be for


def identify(state: dict[str, torch.Tensor], path: Path) -> tuple[ModelEntry, dict[str, Any]]:
    """Return the model whose weights these are, and the options for `create_model` that they imply.

    It is a registered one, or one whose sizes are read from the weights' names and shapes: `asmlp_custom`,
    `cyclemlp_custom`, or `vip_custom` for 224x224 pixels. The options are `in_chans` and `num_classes`, or, for an
    AS-MLP or a CycleMLP without a head, `features`. What leaves no trace in weights, such as the shift size, is as
    published.

    Args:
        state: as `read_checkpoint` returns it.
        path: the file, for the error's text.

    Raises:
        CheckpointError: they are none of an AS-MLP, a Vision Permutator or a CycleMLP.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    entry = registered(shapes) or custom(shapes)
    if entry is None:
        raise CheckpointError(
            f"{path.name} fits no model that mlpdeploy knows",
            "weights of an AS-MLP, a weighted Vision Permutator or a CycleMLP (mlpdeploy models)",
            "name the model that is nearest with --model to see what differs",
        )
    implied: dict[str, Any] = {"in_chans": state[STEM].shape[1]}
    if "head.weight" in state:
        implied["num_classes"] = next(iter(state["head.weight"].shape), None)
    elif hasattr(entry.config, "features"):
        implied["features"] = True
    return entry, implied


def registered(shapes: Shapes) -> ModelEntry | None:
    """Return the registered model with these tensors, whatever its head, its last norms and its channels are."""
    if len(shapes.get(STEM, ())) != _STEM_DIMENSIONS:
        return None
    return next((entry for entry in (*MODELS, *DEMO_MODELS) if _has_body(entry.config, shapes)), None)


def _has_body(config: Config, shapes: Shapes) -> bool:
    """Whether these are the tensors of such a model, whatever its head, its last norms and its channels are."""
    own = model_from_config(dataclasses.replace(config, in_chans=shapes[STEM][1]), "meta").state_dict()
    return body(shapes) == body({name: tuple(tensor.shape) for name, tensor in own.items()})


def custom(shapes: Shapes) -> ModelEntry | None:
    """Return a model whose sizes are read from the tensors; None if these are not those of such a model."""
    try:
        config = _asmlp_config(shapes) or _vip_config(shapes) or _cyclemlp_config(shapes)
        if config is None or not _has_body(config, shapes):
            return None
    except (KeyError, ValueError, IndexError, ZeroDivisionError, UsageError):  # a part is missing or makes no sense
        return None
    return entry_of(f"{config.family}_custom", config)


def _asmlp_config(shapes: Shapes) -> AsMlpConfig | None:
    depths = _depths(shapes, "layers.{}.blocks.{}.mlp.fc1.weight")
    if not depths:
        return None
    embed_dim, _, patch_size, _ = shapes[STEM]
    hidden = shapes["layers.0.blocks.0.mlp.fc1.weight"][0]
    divisor = patch_size << (len(depths) - 1)
    side = max(divisor, round(_SIDE / divisor) * divisor)
    return AsMlpConfig(embed_dim, depths, patch_size, hidden // embed_dim, image_size=(side, side))


def _cyclemlp_config(shapes: Shapes) -> CycleMlpConfig | None:
    """Read a CycleMLP: `network` has stages, with a convolution between each two."""
    depths = _depths(_without_odd_modules(shapes), "network.{}.{}.attn.sfc_h.weight")
    if not depths:
        return None
    hidden, widths = zip(
        *(shapes[f"network.{2 * stage}.0.mlp.fc1.weight"] for stage in range(len(depths))), strict=True
    )
    ratios = tuple(units // width for units, width in zip(hidden, widths, strict=True))
    return CycleMlpConfig(depths, widths, ratios)


def _without_odd_modules(shapes: Shapes) -> Shapes:
    """Return the tensors of every other module of `network`, numbered one after the other."""
    found = {}
    for name, shape in shapes.items():
        parts = name.split(".", 2)
        if parts[0] == "network" and int(parts[1]) % 2 == 0:
            found[f"network.{int(parts[1]) // 2}.{parts[2]}"] = shape
    return found


def _vip_config(shapes: Shapes) -> VipConfig | None:
    """Read a Vision Permutator: `network` has stages, and convolutions behind some of them."""
    if "network.0.0.attn.mlp_h.weight" not in shapes:
        return None
    depths: list[int] = []
    widths: list[int] = []
    downsample: list[bool] = []
    for index in itertools.count():
        if f"network.{index}.proj.weight" in shapes:
            downsample[-1] = True
            continue
        depth = _count(shapes, f"network.{index}.{{}}.attn.mlp_c.weight")
        if not depth:
            break
        depths.append(depth)
        widths.append(shapes[f"network.{index}.0.attn.mlp_c.weight"][0])
        downsample.append(False)
    if not depths:
        return None
    ratio = shapes["network.0.0.mlp.fc1.weight"][0] // widths[0]
    config = VipConfig(tuple(depths), tuple(widths), tuple(downsample), shapes[STEM][2], ratio)
    grid = config.grid
    for width, halved in zip(widths, downsample, strict=True):
        if width % grid:  # the segments that are mixed along an axis
            return None
        grid //= 2 if halved else 1
    return config


def _depths(shapes: Shapes, name: str) -> tuple[int, ...]:
    """Return how many blocks each stage has; `name` is a tensor of stage {} and block {}."""
    counts = (_count(shapes, name.replace("{}", str(stage), 1)) for stage in itertools.count())
    return tuple(itertools.takewhile(bool, counts))


def _count(shapes: Shapes, name: str) -> int:
    return next(index for index in itertools.count() if name.format(index) not in shapes)


def body(shapes: Shapes) -> Shapes:
    """Return the tensors that the weights of a body are.

    Left out are those of the head and of the norms before it, which a backbone has otherwise, and CycleMLP's offsets.
    """
    return {
        name: shape
        for name, shape in shapes.items()
        if not name.startswith(("head.", "norm")) and not name.endswith(OFFSET)
    }
