"""What an engine says about itself, against what was asked for: types, plugins, and copies that nobody asked for.

The text is that of TensorRT's engine inspector with detailed profiling verbosity. Layers are fused and renamed in an
engine, tensors between them keep their names: so types are compared tensor by tensor.
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


def read_engine(text: str, asked: dict[str, str], plugins: list[str], embedded: bool = False) -> dict[str, Any]:
    """Return {layers, types, plugins, reformats, each} of an engine: counts, `types` and `layers` by name.

    `each` has one {name, kind, types, tactic} for every layer in its order, with the types of its outputs.

    Args:
        text: the inspector's JSON.
        asked: {tensor name: type} of the network that was parsed, with `DataType`'s names.
        plugins: the names of the network's plugin layers.
        embedded: whether their code is in the engine, which may call their layers something else than plugins.

    Raises:
        EngineError: a tensor that was asked to be half or INT8 is fp32, or a plugin layer is not there.
    """
    layers = [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
    kinds: Counter[str] = Counter(str(layer.get("LayerType", "unknown")) for layer in layers)
    types: Counter[str] = Counter()
    for layer in layers:
        for tensor in layer.get("Outputs", []):
            found, wanted = _type_of(tensor), asked.get(str(tensor.get("Name")))
            types[found] += 1
            if found == "FLOAT" and wanted in ("HALF", "BF16", "INT8"):
                raise EngineError(
                    f"the engine's layer {layer['Name']!r} gives {tensor['Name']!r} as fp32",
                    f"{wanted}, as the graph says",
                    "this build is not kept; try another --optimization-level or version of TensorRT, and report it",
                )
    _check_plugins(layers if embedded else [layer for layer in layers if _is_plugin(layer)], plugins)
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


def _check_plugins(layers: list[dict[str, Any]], wanted: list[str]) -> None:
    """Raise EngineError for a plugin layer that is not among these layers of the engine."""
    names = " ".join(str(layer.get("Name")) for layer in layers)
    lost = [name for name in wanted if name not in names]
    if lost:
        raise EngineError(
            f"the engine has no plugin layer {lost[0]!r}: {len(wanted) - len(lost)} of {len(wanted)} are there",
            "the AxialShift plugin for every shift",
            "build with --shift native, or another version of TensorRT",
        )
