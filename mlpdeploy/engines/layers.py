"""What an engine says about itself, against what was asked for: types, plugins, and copies that nobody asked for.

The text is that of TensorRT's engine inspector with detailed profiling verbosity; no version promises its form. Layers
are fused and renamed in an engine, tensors between them keep their names: so types are compared tensor by tensor.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from mlpdeploy.runtime.tensorrt_api import EngineError

_TYPES = {
    "FP32": "FLOAT", "FLOAT": "FLOAT", "FP16": "HALF", "HALF": "HALF", "BF16": "BF16", "BFLOAT16": "BF16",
    "INT8": "INT8", "INT32": "INT32", "INT64": "INT64", "BOOL": "BOOL", "FP8": "FP8",
}  # fmt: skip
_TYPE = re.compile(rf"\b({'|'.join(_TYPES)})\b", re.IGNORECASE)
_TYPE_KEYS = ("Format/Datatype", "Datatype", "Format")


class UnexpectedEngineError(EngineError):
    """An engine was read, and is not what was asked for."""


def read_engine(
    text: str, asked: dict[str, str], plugins: list[str], warnings: list[str] | None = None
) -> dict[str, Any]:
    """Return {layers, types, plugins, reformats, each} of an engine: counts, `types` and `layers` by name.

    `each` has one {name, kind, types, tactic} for every layer in its order, with the types of its outputs.

    Args:
        text: the inspector's JSON.
        asked: {tensor name: type} of the network that was parsed, with `DataType`'s names.
        plugins: the names of the network's plugin layers.
        warnings: of a strongly typed network, whose types TensorRT guarantees: takes what the text says against them.

    Raises:
        UnexpectedEngineError: a plugin layer is not there; or, without `warnings`, a tensor that was asked to be half
            or INT8 is fp32.
        ValueError, KeyError, AttributeError, TypeError: the text has another form.
    """
    # Not strict: 8.6 and 10 part the entries of "Metadata" by control characters as they are.
    layers = [layer for layer in json.loads(text, strict=False)["Layers"] if isinstance(layer, dict)]
    kinds: Counter[str] = Counter(str(layer.get("LayerType", "unknown")) for layer in layers)
    types = Counter(_type_of(tensor) for layer in layers for tensor in layer.get("Outputs", []))
    _check_types(layers, asked, warnings)
    _check_plugins(layers, plugins)
    return {
        "layers": dict(sorted(kinds.items())),
        "types": dict(sorted(types.items())),
        "plugins": sum(_is_plugin(layer) for layer in layers),
        "reformats": sum(_is_reformat(layer) for layer in layers),
        "each": [
            {
                "name": str(layer.get("Name", "")),
                "kind": str(layer.get("LayerType", "unknown")),
                "types": [_type_of(tensor) for tensor in layer.get("Outputs", [])],
                "tactic": str(layer.get("TacticName", "")),
            }
            for layer in layers
        ],
    }


def _type_of(tensor: dict[str, Any]) -> str:
    for key in _TYPE_KEYS:
        found = _TYPE.search(str(tensor.get(key, "")))
        if found:
            return _TYPES[found.group(1).upper()]
    return "unknown"


def _is_plugin(layer: dict[str, Any]) -> bool:
    return "plugin" in str(layer.get("LayerType", "")).lower()


def _is_reformat(layer: dict[str, Any]) -> bool:
    text = f"{layer.get('LayerType', '')} {layer.get('Name', '')}".lower()
    return "reformat" in text or "copynode" in text


def _check_types(layers: list[dict[str, Any]], asked: dict[str, str], warnings: list[str] | None) -> None:
    """Warn of a tensor that is fp32 and was asked to be less; raise UnexpectedEngineError without `warnings`."""
    wider = [
        (f"the engine's layer {layer.get('Name')!r} gives {tensor.get('Name')!r} as fp32", wanted)
        for layer in layers
        for tensor in layer.get("Outputs", [])
        if (wanted := asked.get(str(tensor.get("Name")))) in ("HALF", "BF16", "INT8") and _type_of(tensor) == "FLOAT"
    ]
    if not wider:
        return
    told, wanted = wider[0]
    if warnings is None:
        raise UnexpectedEngineError(
            told,
            f"{wanted}, as the graph says",
            "this build is not kept; try another --optimization-level or version of TensorRT, and report it",
        )
    more = f", and {len(wider) - 1} more are so" if len(wider) > 1 else ""
    warnings.append(f"{told}, where the graph says {wanted}{more}: verify and measure it")


def _check_plugins(layers: list[dict[str, Any]], wanted: list[str]) -> None:
    """Raise UnexpectedEngineError for a plugin layer that no layer of the engine names.

    Fused, or with code that the engine carries, it may be called something else than a plugin, and only the metadata
    may have its name. What reformats for it is not it.
    """
    names = " ".join(f"{layer.get('Name')} {layer.get('Metadata', '')}" for layer in layers if not _is_reformat(layer))
    lost = [name for name in wanted if name not in names]
    if lost:
        raise UnexpectedEngineError(
            f"the engine has no plugin layer {lost[0]!r}: {len(wanted) - len(lost)} of {len(wanted)} are there",
            "the AxialShift plugin for every shift",
            "build with --shift native, or another version of TensorRT",
        )
