"""What an engine tells of its layers."""

from __future__ import annotations

import json
import os
from typing import Any

from fakes.fake_cuda import require
from fakes.trt.network import KINDS


class EngineInspector:
    """Layers as the real inspector gives them: a name, a type, inputs and outputs with a format text."""

    execution_context: Any = None

    def __init__(self, model: Any, plan: dict[str, Any]) -> None:
        self._model, self._plan = model, plan

    def _shapes_are_known(self) -> bool:
        """Whether the engine has no profiles, or a context is given that has all shapes of the inputs."""
        names = {value.name for value in self._model.graph.input}
        if os.environ.get("FAKE_INSPECTOR") == "silent":
            return False
        return not self._plan["profiles"] or names <= set(getattr(self.execution_context, "_shapes", {}))

    def get_engine_information(self, form: Any) -> str:
        require(form.name == "JSON", "the JSON form")
        if os.environ.get("FAKE_INSPECTOR") == "other":
            return '{"layers": []}'
        if os.environ.get("FAKE_INSPECTOR") == "no text":
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        if os.environ.get("FAKE_INSPECTOR") == "lost":
            return '{"Layers": []}'
        if not self._plan["detailed"]:
            return json.dumps({"Layers": [node.name for node in self._model.graph.node]})
        layers = []
        for node in self._model.graph.node:
            formats = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT8": "Int8", "INT64": "Int64"}
            outputs = [
                {
                    "Name": name,
                    "Format/Datatype": f"Row major linear {formats[self._plan['types'][name]]} format"
                    if self._shapes_are_known()
                    else "N/A due to dynamic shapes",
                }
                for name in node.output
            ]
            kind = "PluginV3" if node.domain else KINDS.get(node.op_type, "ELEMENTWISE").title()
            if node.domain and self._plan["embedded"]:
                kind = "kgen"  # nobody has seen yet what the real inspector calls it
            metadata = f"[ONNX Layer: {node.name}]\x1e[ONNX Layer: ]"
            layers.append(
                {"Name": node.name, "LayerType": kind, "Inputs": [], "Outputs": outputs, "Metadata": metadata}
            )
        # As 8.6 and 10 write it: control characters as they are.
        return json.dumps({"Layers": layers, "Bindings": []}).replace("\\u001e", "\x1e")
