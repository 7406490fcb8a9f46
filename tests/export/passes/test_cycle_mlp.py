"""The lowering of CycleMLP's mixer, and tokens whose grid is open."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny import tiny_cyclemlp

from mlpdeploy.export.passes.flatten_tokens import flatten_tokens
from mlpdeploy.export.passes.lower_cycle_mlp import lower_cycle_mlp
from mlpdeploy.export.trace import ExportShape, onnx_from_model


def run(model: ir.Model, shape: tuple[int, ...]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": np.random.default_rng(3).standard_normal(shape).astype(np.float32)})[0]


@pytest.fixture(scope="module", params=[False, True], ids=["one size", "any size"])
def traced(request: pytest.FixtureRequest) -> bytes:
    model = onnx_from_model(tiny_cyclemlp(), ExportShape(dynamic_size=request.param))
    return bytes(ir.to_proto(model).SerializeToString())


def test_the_mixer_becomes_standard_operators(traced: bytes) -> None:
    canonical, lowered = (ir.from_proto(onnx.load_from_string(traced)) for _ in range(2))
    report = lower_cycle_mlp(lowered)
    assert report.changed == ["network.0.0.attn/WeightedCycleMlp", "network.2.0.attn/WeightedCycleMlp"]
    flat = flatten_tokens(lowered)
    assert not [node for node in lowered.graph if node.domain]
    is_open = not isinstance(lowered.graph.inputs[0].shape[2], int)
    assert bool(flat.changed) is not is_open
    assert (set(flat.refused.values()) == {"its grid is open, so one Reshape could not give the four axes back"}) is (
        is_open
    )
    for shape in [(3, 3, 32, 40), (1, 3, 64, 8)] if is_open else [(3, 3, 32, 40)]:
        wanted = run(canonical, shape)
        np.testing.assert_allclose(run(lowered, shape), wanted, rtol=0, atol=1e-5 * wanted.std())


def test_open_sizes_have_their_names_on_tokens_and_planes() -> None:
    model = onnx_from_model(tiny_cyclemlp(features=True), ExportShape(dynamic_size=True))
    shapes = {str(value.shape) for node in model.graph for value in node.outputs}
    assert "[batch,2*height,2*width,20]" in shapes
    assert "[batch,44,height,width]" in shapes
    assert not [shape for shape in shapes if "s" in shape]
