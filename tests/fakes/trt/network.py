"""A network that was parsed from ONNX: its layers are the graph's nodes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
from fakes.fake_cuda import require
from fakes.trt.process import ILogger, Registry
from onnx import TensorProto

TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "INT8",
    TensorProto.INT64: "INT64",
}


KINDS = {
    "Conv": "CONVOLUTION",
    "MatMul": "MATRIX_MULTIPLY",
    "Gemm": "MATRIX_MULTIPLY",
    "LayerNormalization": "NORMALIZATION",
    "Cast": "CAST",
}


class NewLayer:
    def __init__(self, name: str, kind: Any, outputs: list[Any]) -> None:
        self.name, self.type, self._outputs = name, kind, outputs

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_output(self, index: int) -> Any:
        return self._outputs[index]


class ILayer(NewLayer):
    """With what TensorRT 8 and 10 have, and 11 does not."""

    precision: Any = None

    def __init__(self, name: str, kind: Any, outputs: list[Any]) -> None:
        super().__init__(name, kind, outputs)
        self._asked: dict[int, Any] = {}

    def set_output_type(self, index: int, dtype: Any) -> None:
        require(dtype is self._outputs[index].dtype, "a type that is not the graph's")
        self._asked[index] = dtype


class INetworkDefinition:
    def __init__(self, trt: Any, registry: Registry) -> None:
        self._trt, self._registry = trt, registry
        self._model: Any = None
        self._types: dict[str, str] = {}
        self._layers: dict[int, Any] = {}

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_layer(self, index: int) -> Any:
        if index in self._layers:
            return self._layers[index]
        node = self._model.graph.node[index]
        plugin = "PLUGIN_V3" if hasattr(self._trt.LayerType, "PLUGIN_V3") else "PLUGIN_V2"
        kind = plugin if node.domain else KINDS.get(node.op_type, "ELEMENTWISE")
        outputs = [SimpleNamespace(dtype=self._trt.DataType[self._types[name]], name=name) for name in node.output]
        return self._layers.setdefault(index, self._trt._inner["ILayer"](node.name, self._trt.LayerType[kind], outputs))


class ParserError:
    def __init__(self, node: Any, index: int, text: str) -> None:
        self._node, self._index, self._text = node, index, text

    def desc(self) -> str:
        return self._text

    def node(self) -> int:
        return self._index


class NamedParserError(ParserError):
    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type


class OnnxParser:
    _trt: Any

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._errors = network, []  # type: ignore[var-annotated]

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse_from_file(self, path: str) -> bool:
        require(isinstance(path, str), "parse_from_file takes a str")
        model = onnx.load(path)
        kind = NamedParserError if hasattr(self._trt, "IProgressMonitor") else ParserError
        for index, node in enumerate(model.graph.node):
            registry = self._network._registry
            rtx = hasattr(self._trt, "ComputeCapability")
            require(not (node.domain and rtx), "a node of ours, on which TensorRT-RTX aborts")
            if node.domain and not registry._loaded and registry._quick is None:
                self._errors.append(kind(node, index, "Plugin not found, are the name, version and namespace correct?"))
                return False
        self._network._model = model
        self._network._types = _types_of(model, Path(path))
        return True


def _types_of(model: Any, path: Path) -> dict[str, str]:
    """Return {value name: type} of everything that a node gives; our shift's outputs have its input's type."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]
    types = {value.name: TYPES[value.type.tensor_type.elem_type] for value in values}
    types |= {tensor.name: TYPES[tensor.data_type] for tensor in model.graph.initializer if tensor.data_type in TYPES}
    for node in model.graph.node:
        for name in node.output:
            types.setdefault(name, types.get(node.input[0], "FLOAT"))
    return types
