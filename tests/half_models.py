"""Half-precision models of the small ones in tiny.py, and what they compute; PyTorch's own half precision beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from mlpdeploy.export.lower import TARGETS, lower
from mlpdeploy.export.passes.lower_axial_shift import ShiftForm
from mlpdeploy.export.trace import ExportShape, onnx_from_model
from mlpdeploy.models.build import Model
from mlpdeploy.quant.half import HalfReport, half_types
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.verify.tolerance import allowed_error, allowed_rms, rms

TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}
ONNX = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def lowered(model: Model, target: str, shift: ShiftForm = "conv", opset: int = 21) -> ir.Model:
    """Return the float32 model for a target."""
    graph = onnx_from_model(model, ExportShape(), opset)
    lower(graph, TARGETS[target], shift)
    return graph


def half_proto(
    graph: ir.Model, recipe: Recipe, target: str, magnitudes: Mapping[str, float] | None = None
) -> tuple[onnx.ModelProto, HalfReport]:
    """Return the typed model, through its bytes, and the report; `graph` is rewritten."""
    report = half_types(graph, recipe, target, magnitudes)
    return onnx.load_from_string(ir.to_proto(graph).SerializeToString()), report


def images(rows: int = 8, seed: int = 0, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 3, size, size)).astype(np.float32)


def run(proto: onnx.ModelProto, image: np.ndarray, *, optimize: bool = True) -> np.ndarray:
    """Return the first output as float64, computed by ONNX Runtime; the image is given in the model's type."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    dtype = np.float16 if given.type == "tensor(float16)" else np.float32
    return session.run(None, {given.name: image.astype(dtype)})[0].astype(np.float64)


def magnitudes_of(graph: ir.Model, image: np.ndarray) -> dict[str, float]:
    """Return {tensor name: largest absolute value} of a float32 model, inputs and every computed value."""
    proto = ir.to_proto(graph)
    names = [name for node in proto.graph.node for name in node.output]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = session.run(names, {"input": image})
    found = {name: float(np.abs(r).max()) for name, r in zip(names, results, strict=True) if r.dtype == np.float32}
    return {"input": float(np.abs(image).max()), **found}


def exact(model: Model, image: np.ndarray) -> np.ndarray:
    """Return PyTorch's logits in float64."""
    with torch.inference_mode():
        return copy.deepcopy(model).double()(torch.from_numpy(image).double()).numpy()


def pytorch_errors(model: Model, image: np.ndarray, precision: str) -> np.ndarray:
    """Return the errors of PyTorch's own half precision."""
    dtype = TORCH[precision]
    with torch.inference_mode():
        own = copy.deepcopy(model).to(dtype)(torch.from_numpy(image).to(dtype))
    return own.double().numpy() - exact(model, image)


def within_tolerance(computed: np.ndarray, model: Model, image: np.ndarray, precision: str) -> bool:
    """Return whether a result passes the bounds of the tolerance table, as `verify` compares it."""
    wanted, own = exact(model, image), pytorch_errors(model, image, precision)
    bound = allowed_rms(precision, wanted, rms(own))
    error = computed - wanted
    assert bound is not None and error.any()
    return rms(error) <= bound and float(np.abs(error).max()) <= allowed_error(
        precision, wanted, float(np.abs(own).max())
    )


def simulated(proto: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return a float32 model that computes what the typed one does, operator by operator.

    Every operator in half precision is computed in float32 and its result rounded: what a GPU does, which multiplies
    halves and adds in float32. It also runs types for which ONNX Runtime has no operator.
    """
    half = ONNX[precision]
    proto = onnx.load_from_string(onnx.shape_inference.infer_shapes(proto, strict_mode=True).SerializeToString())
    graph = proto.graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.output, *graph.value_info]}
    for tensor in graph.initializer:
        if tensor.data_type == half:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    nodes = []
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Cast" else []:
            attribute.i = TensorProto.FLOAT
        nodes.append(node)
        for index, name in enumerate(node.output):
            if types.get(name) == half:
                node.output[index] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.rounded"], to=half))
                nodes.append(helper.make_node("Cast", [f"{name}.rounded"], [name], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for value in [*graph.input, *graph.output]:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return proto
