"""Read a user's checkpoint, and say exactly why it does not fit when it does not."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlpdeploy.env import require
from mlpdeploy.errors import CheckpointError
from mlpdeploy.models.cyclemlp import CycleMlpConfig
from mlpdeploy.models.identify import OFFSET, STEM, body, custom, registered
from mlpdeploy.ops.cycle_mlp import offsets

StateDict = dict[str, torch.Tensor]

# Where training code puts the weights inside of a checkpoint, in the order of preference: what was evaluated. timm and
# others evaluate EMA weights, but code that is derived from DeiT, which saves `model` and `model_ema`, the former. A
# file that has several says in `source` which one was taken.
_WRAPPERS = ("state_dict_ema", "ema_state_dict", "ema", "model", "model_ema", "state_dict", "module")
_PREFIXES = ("ema_model.", "model_ema.", "ema.", "module.", "_orig_mod.", "model.", "backbone.", "encoder.")
_IGNORED = ("relative_position_index", "attn_mask", "num_batches_tracked", "total_ops", "total_params")


def read_checkpoint(path: str | Path, key: str | None = None) -> tuple[StateDict, str]:
    """Return {official tensor name: tensor} of a `.pth`, `.pt`, `.bin` or `.safetensors` file, and what they are.

    The latter is the weights' key or prefix where the file has several, else empty.

    No code is ever run from the file. Wrappers (`model`, `state_dict`, EMA) and prefixes (`module.`, `backbone.`, ...)
    are removed.

    Args:
        path: the file.
        key: which weights to take of a file that has several: a wrapper's key or a prefix without its dot.

    Raises:
        CheckpointError: no such file, not a checkpoint, truncated, contains code, holds no tensors, or none of that
            key.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}", "a .pth or .safetensors file")
    kind = _other_kind(path)
    if kind:
        raise CheckpointError(
            f"{path.name} is {kind}", "a state dict", "where it was made: torch.save(model.state_dict(), 'weights.pth')"
        )
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state, wrapper, wrappers = _unwrap(loaded, key)
    if not state:
        keys = f", only {_few([str(key) for key in loaded])}" if isinstance(loaded, dict) and loaded else ""
        raise CheckpointError(f"{path.name} holds no tensors{keys}", "a state dict, or a dict with one under model")
    state, prefix, prefixes = _strip_prefixes(state, key)
    if key is not None and key not in (*wrappers, *prefixes):
        known = ", ".join((*wrappers, *prefixes)) or "one set of weights"
        raise CheckpointError(f"{path.name} has no weights called {key!r}", known, "leave the key out, or name another")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise CheckpointError(f"{name} in {path.name} is a tensor without plain values", "dense tensors on the CPU")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.to(torch.float32)).all()):
            raise CheckpointError(
                f"{name} in {path.name} has NaN or infinite values", "finite weights", "choose an earlier checkpoint"
            )
    return state, ", ".join(filter(None, (wrapper, prefix)))


def _read_safetensors(path: Path) -> StateDict:
    require("safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} is not a whole safetensors file ({error})", fix="copy it again") from error


class _Inert:
    """Stands in for an object that training code saves beside the weights; it does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# The official AS-MLP code saves a yacs node and timm an argparse namespace; others save an accuracy as numpy gave it.
# Their classes are never imported.
_STAND_INS = {
    "argparse.Namespace": _Inert,
    "pathlib.PosixPath": _Inert,
    "pathlib.WindowsPath": _Inert,
    "yacs.config.CfgNode": OrderedDict,
    "numpy.dtype": _Inert,
    "numpy.core.multiarray.scalar": _Inert,
    "numpy._core.multiarray.scalar": _Inert,
}


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([(kind, name) for name, kind in _STAND_INS.items()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = str(error).partition("GLOBAL ")[2].split()[:1]
        if blocked:
            raise CheckpointError(
                f"{path.name} contains code or objects ({blocked[0]}), which is never run",
                "tensors only",
                "where it was trained: torch.save(model.state_dict(), 'weights.pth')",
            ) from error
        raise CheckpointError(
            f"{path.name} is not a PyTorch checkpoint", fix="copy it again, or check its name"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path.name} is truncated or is not a PyTorch checkpoint", fix="copy it again, or check its name"
        ) from error


def _other_kind(path: Path) -> str:
    """Return what a file is that is often taken for a checkpoint, or an empty string, also where it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return ""
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, without the file that it points to (git lfs pull)"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page: the download failed or needs a login"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return ""
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program"
    if any(name.endswith(("/models/model.json", "serialized_exported_program.json")) for name in names):
        return "a program of torch.export"
    return "an archive of numpy arrays" if names and all(name.endswith(".npy") for name in names) else ""


def _unwrap(loaded: Any, wanted: str | None) -> tuple[StateDict, str, list[str]]:
    """Return the innermost dict of tensors, its key where there were others to take, and all keys that there were.

    Raises:
        CheckpointError: under several keys of nobody's convention are weights, and none of them is wanted.
    """
    if not isinstance(loaded, dict):
        return {}, "", []
    # Below such a key there may be options, or an average of weights without names: nothing to take.
    inner = {key: found for key in _WRAPPERS if (found := _unwrap(loaded.get(key), wanted))[0]}
    if not inner:
        others = {str(key): _unwrap(value, wanted) for key, value in loaded.items() if isinstance(value, dict)}
        inner = {key: found for key, found in others.items() if any(map(_is_stem, found[0]))}
        _check_choice(list(inner), wanted)
    if not inner:
        return {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}, "", []
    key = wanted if wanted in inner else next(iter(inner))
    state, chosen, below = inner[key]
    return state, chosen or (key if len(inner) > 1 else ""), [*inner, *below]


def _is_stem(name: str) -> bool:
    return name == STEM or name.endswith(f".{STEM}")


def _check_choice(found: list[str], wanted: str | None) -> None:
    """Raise CheckpointError if there are several sets of weights, and nothing says which."""
    if len(found) > 1 and wanted not in found:
        raise CheckpointError(
            f"the checkpoint has several sets of weights: {', '.join(found)}",
            "one",
            "name it with --checkpoint-key (checkpoint_key=)",
        )


def _strip_prefixes(state: StateDict, wanted: str | None) -> tuple[StateDict, str, list[str]]:
    """Remove wrapper prefixes; where only some tensors have one (`backbone.` beside heads), keep those that do.

    Also returns the prefix where there were others to take, and all that there were, without their dots.

    Raises:
        CheckpointError: there are several of nobody's convention, and none of them is wanted.
    """
    chosen = ""
    seen: list[str] = []
    while True:
        found = [p for p in _PREFIXES if any(name.startswith(p) for name in state)]
        if not found and STEM not in state:
            found = list(dict.fromkeys(name.removesuffix(STEM) for name in state if _is_stem(name)))
            _check_choice([prefix.rstrip(".") for prefix in found], wanted)
        if not found:
            return {name: t for name, t in state.items() if not name.endswith(_IGNORED)}, chosen, seen
        seen += [prefix.rstrip(".") for prefix in found]
        prefix = f"{wanted}." if f"{wanted}." in found else found[0]
        if len(found) > 1:
            chosen = prefix.rstrip(".")
        state = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def load_checkpoint(model: nn.Module, state: StateDict, path: Path, model_name: str) -> None:
    """Put the weights into the model, all of them or none.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshapen; the message lists them and guesses the cause.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if isinstance(model.config, CycleMlpConfig):
        state = _without_offsets(state, path)
    if getattr(model.config, "features", False):
        # A classifier's own norm and head have no place in a backbone.
        state = {n: t for n, t in state.items() if n not in ("norm.weight", "norm.bias", "head.weight", "head.bias")}
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    misshapen = [
        f"{name} is {_shape(state[name].shape)}, wanted {_shape(shape)}"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    integers = [
        f"{name} is {str(state[name].dtype).removeprefix('torch.')}"
        for name in wanted
        if name in state and not state[name].is_floating_point()
    ]
    if missing or unexpected or misshapen or integers:
        found = [
            f"{len(items)} {kind} ({_few(items)})"
            for kind, items in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("misshapen", misshapen),
                ("of no real type", integers),
            )
            if items
        ]
        raise CheckpointError(
            f"{path.name} does not fit {model_name}: {'; '.join(found)}", fix=_likely_cause(state, wanted, model_name)
        )
    model.load_state_dict({name: state[name].to(torch.float32) for name in wanted})


def _without_offsets(state: StateDict, path: Path) -> StateDict:
    """Return a CycleMLP's tensors without the buffers that say how channels move: they must say what the model does.

    Raises:
        CheckpointError: they say something else, as with another `kernel_size`.
    """
    rest = dict(state)
    for name, weight in state.items():
        module, _, layer = name.removesuffix(".weight").rpartition(".")
        offset = f"{module}.{layer}{OFFSET}"
        if layer not in ("sfc_h", "sfc_w") or weight.ndim < 2 or offset not in state:
            continue
        moves = torch.tensor(offsets(weight.shape[1]), dtype=torch.float64)
        still = torch.zeros_like(moves)
        wanted = torch.stack((still, moves) if layer == "sfc_h" else (moves, still), 1)  # (dy, dx) of each channel
        found = rest.pop(offset)
        if found.numel() != wanted.numel() or not bool((found.reshape(wanted.shape) == wanted).all()):
            raise CheckpointError(
                f"{offset} in {path.name} moves channels in another way than the published models",
                "channels that are read one pixel before, at, and behind each pixel in turns",
                "it is a changed variant of the architecture",
            )
    return rest


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _few(items: list[str], shown: int = 3) -> str:
    return ", ".join(items[:shown]) + (f" and {len(items) - shown} more" if len(items) > shown else "")


def _likely_cause(state: StateDict, wanted: dict[str, tuple[int, ...]], model_name: str) -> str:
    """Return the most likely reason for a mismatch, in one sentence."""
    have = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if body(have) == body(wanted) and "head.weight" in wanted:
        head = have.get("head.weight")
        if head is None:
            if any(name.endswith(".mlp_h.weight") for name in wanted):
                return "it has no classifier, and a Vision Permutator has no other outputs: choose one with a head"
            return "it is a backbone without a classifier: export it with --features"
        if head and head[0] != wanted["head.weight"][0]:
            return f"its head has {head[0]} classes: pass --num-classes {head[0]}"
    entry = registered(have)
    if any(name.startswith("head.") and name not in ("head.weight", "head.bias") for name in have):
        return "its head is not one linear layer: save the last one as head.weight and head.bias, without the others"
    own = custom(have) if entry is None else None
    if own is not None and own.name != model_name:
        return "it is a model with sizes of its own: leave --model out, they are read from it"
    if entry is not None and entry.name != model_name:
        return f"it is a checkpoint of {entry.name}: pass --model {entry.name}"
    first = have.get(STEM)
    if first is not None and len(first) == len(wanted[STEM]) and wanted[STEM][1] != first[1]:
        return f"its images have {first[1]} channels: pass --in-chans {first[1]}"
    if not set(have) & set(wanted):
        return "no tensor name is the same: it is not a checkpoint of this family"
    return "it is a changed variant of the architecture"
