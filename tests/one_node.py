"""Models of one of our nodes, and what ONNX Runtime makes of them, with the library of CPU kernels or without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from mlpdeploy.ops.axial_shift import DOMAIN

OPSET = 21


def model_of(node: onnx.NodeProto, function: onnx.FunctionProto, constants: dict[str, np.ndarray], out: int) -> bytes:
    """Return a model of one node on any image; `out` is the number of its output's channels, which come last."""
    values = [
        helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", "h", "w", "c"]),
        helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["n", "h2", "w2", out]),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "block", values[:1], values[1:], initializers)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def run(model: bytes, x: np.ndarray, library: Path | None, threads: int = 1) -> np.ndarray:
    """Return Y; without a library the function behind the node is computed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, {"X": x})[0]
