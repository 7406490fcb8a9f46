"""A block of CycleMLP becomes one node; what is not the published block is refused as Vision Permutator's is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny import tiny_cyclemlp

from mlpdeploy.export.lower import TARGETS, lower
from mlpdeploy.export.passes.form_cycle_blocks import form_cycle_blocks
from mlpdeploy.export.trace import ExportShape, onnx_from_model
from mlpdeploy.ops.cycle_block import NAME

SHAPE = (3, 3, 32, 40)


@pytest.fixture(scope="module", params=[False, True], ids=["one size", "any size"])
def traced(request: pytest.FixtureRequest) -> bytes:
    model = onnx_from_model(tiny_cyclemlp(), ExportShape(dynamic_size=request.param))
    return bytes(ir.to_proto(model).SerializeToString())


def fresh(traced: bytes) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(traced))


def run(model: ir.Model, optimize: bool = True) -> np.ndarray:
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)})[0]


def blocks_of(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == NAME]


def test_blocks_are_formed(traced: bytes) -> None:
    model = fresh(traced)
    report = form_cycle_blocks(model)
    assert report.changed == ["network.0.0/Add_2", "network.2.0/Add_2"]
    assert not report.refused
    weights = [str(value.name) for value in blocks_of(model)[0].inputs[1:]]  # type: ignore[union-attr]
    assert all(name.startswith("network.0.0.") for name in weights)
    assert weights[2] == "network.0.0.attn.sfc_h.weight" and weights[4] == "network.0.0.attn.sfc_w.weight"
    assert weights[11] == "network.0.0.attn.proj.weight.T"
    wanted = run(fresh(traced), optimize=False)
    np.testing.assert_allclose(run(model, optimize=False), wanted, rtol=0, atol=1e-5 * wanted.std())


def test_a_runtime_without_the_kernel_computes_the_same(traced: bytes) -> None:
    """The function is what the other passes make of the nodes."""
    plain, formed = fresh(traced), fresh(traced)
    lower(plain, TARGETS["cpu"], "conv")
    lower(formed, TARGETS["cpu"], "conv", blocks=True)
    assert len(blocks_of(formed)) == 2 and not blocks_of(plain)
    wanted = run(plain)
    np.testing.assert_allclose(run(formed), wanted, rtol=0, atol=2e-6 * wanted.std())


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_only_for_the_cpu(traced: bytes, target: str) -> None:
    model = fresh(traced)
    names = [report.name for report in lower(model, TARGETS[target], TARGETS[target].shift, blocks=True)]
    assert "form_cycle_blocks" not in names and not blocks_of(model)


def test_what_is_unlike_is_refused(traced: bytes) -> None:
    model = fresh(traced)
    gelu = next(node for node in model.graph if node.name == "network.0.0.mlp/Gelu")
    gelu.attributes["approximate"] = ir.AttrString("approximate", "tanh")
    report = form_cycle_blocks(model)
    assert report.refused == {"network.0.0.attn/WeightedCycleMlp": "its GELU is the tanh approximation"}
    assert report.changed == ["network.2.0/Add_2"]
