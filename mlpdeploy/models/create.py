"""Build a model from its name, options and weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mlpdeploy.errors import UsageError
from mlpdeploy.models.asmlp import AsMlpConfig, Branches
from mlpdeploy.models.build import Model, model_from_config, random_weights
from mlpdeploy.models.checkpoint import StateDict, load_checkpoint, read_checkpoint
from mlpdeploy.models.identify import identify
from mlpdeploy.models.registry import Config, resolve_model
from mlpdeploy.ops.axial_shift import Padding

_WHY_NOT = {
    "vip": "a Vision Permutator has no axial shift, no feature maps and one grid",
    "cyclemlp": "a CycleMLP's channels always move the same way, and it takes any size",
}


def create_model(
    name: str | None = None,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    shift_size: int | None = None,
    dilation: int | None = None,
    padding: Padding | None = None,
    branches: Branches | None = None,
    features: bool = False,
    pad_odd_sizes: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    seed: int = 0,
) -> Model:
    """Return a model in eval mode, with the checkpoint's weights or with random ones made from `seed`.

    `None` means the registered model's value. The model's `source` attribute says where its weights come from.

    Args:
        name: `asmlp_s`, `vip_s7`, ... or an alias; see `mlpdeploy.models.MODELS` and `DEMO_MODELS`. None means the
            model that the checkpoint is of, with its classes and channels, or with `features` where it has no head.
        num_classes: logits.
        image_size: pixels, one number or (height, width).
        in_chans: channels of the input image.
        shift_size, dilation, padding, branches: AS-MLP only, see `AsMlpConfig`.
        features: AS-MLP and CycleMLP: one feature map per stage instead of logits.
        pad_odd_sizes: AS-MLP only: take any size, padded as the detection code does.
        checkpoint: a `.pth`, `.pt` or `.safetensors` file.
        checkpoint_key: which weights of a file that has several: `model_ema`, `state_dict`, ...; None means those that
            the training code that writes such files evaluates. The model's `source` names them.
        seed: of the random weights; not used with a checkpoint.

    Raises:
        UsageError: unknown name, neither a name nor a checkpoint, impossible option.
        CheckpointError: the file cannot be read or does not fit.
    """
    if name is None and checkpoint is None:
        raise UsageError("neither a model nor a checkpoint", "a name (mlpdeploy models), a checkpoint, or both")
    entry = resolve_model(name) if name is not None else None
    state, chosen = read_checkpoint(checkpoint, checkpoint_key) if checkpoint is not None else (None, "")
    implied: dict[str, Any] = {}
    if entry is None:
        assert state is not None
        entry, implied = identify(state, Path(str(checkpoint)))
        in_chans = implied["in_chans"] if in_chans is None else in_chans
        features = features or implied.get("features", False)
    if features and num_classes is not None:
        has_none = ", or give a checkpoint that has a head" if "features" in implied else ""
        raise UsageError(
            f"{num_classes} classes for feature maps", fix=f"leave --num-classes or --features out{has_none}"
        )
    num_classes = implied.get("num_classes") if num_classes is None else num_classes
    changes: dict[str, Any] = {}
    if num_classes is not None:
        if num_classes < 1:
            raise UsageError(f"num_classes is {num_classes}", "at least 1")
        changes["num_classes"] = num_classes
    if in_chans is not None:
        if in_chans < 1:
            raise UsageError(f"in_chans is {in_chans}", "at least 1")
        changes["in_chans"] = in_chans
    if image_size is not None:
        changes["image_size"] = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    of_some: dict[str, Any] = {
        "shift_size": shift_size,
        "dilation": dilation,
        "padding": padding,
        "branches": branches,
        "features": features or None,
        "pad_odd_sizes": pad_odd_sizes or None,
    }
    given = {key: value for key, value in of_some.items() if value is not None}
    if isinstance(entry.config, AsMlpConfig):
        shift = {key: given.pop(key) for key in ("shift_size", "dilation", "padding") if key in given}
        if shift:
            changes["shift"] = dataclasses.replace(entry.config.shift, **shift)
    known = {field.name for field in dataclasses.fields(entry.config)}
    foreign = [key for key in given if key not in known]
    if foreign:
        able = "an AS-MLP or a CycleMLP" if foreign == ["features"] else "an AS-MLP"
        raise UsageError(f"{', '.join(foreign)} for {entry.name}", able, _WHY_NOT[entry.family])
    changes |= given
    if features and state is not None:
        changes |= _feature_norms(state, known)
    config: Config = dataclasses.replace(entry.config, **changes)
    model = model_from_config(config)
    if state is None:
        random_weights(model, seed)
        model.source = f"random weights, seed {seed}"
    else:
        load_checkpoint(model, state, Path(str(checkpoint)), entry.name)
        model.source = f"checkpoint {Path(str(checkpoint)).name}" + (f" ({chosen})" if chosen else "")
    model.name = entry.name
    return model.eval()


def _feature_norms(state: StateDict, known: set[str]) -> dict[str, bool]:
    """Return the options of a backbone that its norms imply."""
    if "norm0.weight" in state:
        return {"feature_norms": True}
    # Without the authors' first norm, the second one has the index of its stage's module.
    if "norm2.weight" in state and "fork_last3" in known:
        return {"feature_norms": True, "fork_last3": True}
    return {}
