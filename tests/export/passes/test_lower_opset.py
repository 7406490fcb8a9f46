"""A model for TensorRT 8.6, whose parser overlooks what opsets from 18 on say."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny import tiny

from mlpdeploy.export.lower import TARGETS, lower
from mlpdeploy.export.passes.lower_opset import lower_opset
from mlpdeploy.export.trace import ExportShape, onnx_from_model

OPSET = 17


def lowered(family: str, opset: int) -> ir.Model:
    """A small model as TensorRT gets it, with the shift in native layers."""
    model = onnx_from_model(tiny(family), ExportShape(), opset)
    lower(model, TARGETS["tensorrt"], "conv")
    return model


def outputs(model: ir.Model, image: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})[0]


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("family", ["asmlp", "vip", "cyclemlp"])
def test_it_computes_the_same(family: str, opset: int) -> None:
    model = lowered(family, opset)
    size = model.graph.inputs[0].shape
    image = np.random.default_rng(0).standard_normal((2, *map(int, size[1:]))).astype(np.float32)
    wanted = outputs(model, image)
    report = lower_opset(model, OPSET)
    assert not report.refused
    assert model.graph.opset_imports[""] == OPSET and model.ir_version <= 8
    kinds = {node.op_type for node in model.graph}
    assert "Gelu" not in kinds and "ReduceMean" in kinds
    for node in model.graph:
        if node.op_type == "ReduceMean":  # the parser of 8.6 reads the attribute, and would overlook an input
            assert len(node.inputs) == 1 and node.attributes["axes"].as_ints()
    np.testing.assert_allclose(outputs(model, image), wanted, rtol=0, atol=2e-5 * wanted.std())


def test_an_older_model_stays_as_it_is() -> None:
    model = made("Relu", ["x"])
    model.graph.opset_imports[""] = 13
    assert not lower_opset(model, OPSET).changed
    assert model.graph.opset_imports[""] == 13


def made(kind: str, inputs: list[str], opset: int = 21, **attributes: Any) -> ir.Model:
    """A graph with one node; `x` (2, 4) and `axes` come from outside, `half` is a scale in float16."""
    node = onnx.helper.make_node(kind, inputs, ["y"], "the node", **attributes)
    given = [
        onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (2, 4)),
        onnx.helper.make_tensor_value_info("axes", onnx.TensorProto.INT64, (1,)),
    ]
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    half = onnx.helper.make_tensor("half", onnx.TensorProto.FLOAT16, (), [0.5])
    graph = onnx.helper.make_graph([node], "graph", given, [y], [half])
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)]))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (made("ReduceMean", ["x", "axes"]), "axes that are computed"),
        (made("QuantizeLinear", ["x", "half"]), "a scale that is not float32"),
        (made("Gelu", ["x"], approximate="tanh"), "a Gelu by tanh"),
        (made("Cast", ["x"], to=onnx.TensorProto.FLOAT16, saturate=0), "an attribute of a newer Cast"),
        (made("GroupNormalization", ["x", "x", "x"], num_groups=1), "GroupNormalization of opset 21"),
        (made("Pad", ["x", "axes"]), "Pad of opset 21"),
    ],
    ids=["axes", "scale", "tanh", "saturate", "GroupNormalization", "Pad"],
)
def test_what_the_older_opset_cannot_say_is_refused(model: ir.Model, why: str) -> None:
    before = ir.to_proto(model).SerializeToString()
    assert lower_opset(model, OPSET).refused == {"the node": why}
    assert ir.to_proto(model).SerializeToString() == before


def test_attributes_with_their_defaults_are_left_out() -> None:
    model = made("Cast", ["x"], to=onnx.TensorProto.FLOAT16, saturate=1)
    assert lower_opset(model, OPSET).changed == ["the node"]
    assert set(next(iter(model.graph)).attributes) == {"to"}
