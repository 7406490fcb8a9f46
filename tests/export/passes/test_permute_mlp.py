"""Vision Permutator's passes: the mixer's lowering, and tokens as matrices."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny import tiny_vip

from mlpdeploy.export.passes.flatten_tokens import flatten_tokens
from mlpdeploy.export.passes.lower_permute_mlp import lower_permute_mlp
from mlpdeploy.export.trace import ExportShape, onnx_from_model

IMAGE = np.random.default_rng(3).standard_normal((3, 3, 32, 32)).astype(np.float32)


def run(model: ir.Model) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, {"input": IMAGE})[0]


@pytest.fixture(scope="module", params=[2, 32], ids=["narrow segments", "wide segments"])
def traced(request: pytest.FixtureRequest) -> bytes:
    """A model whose segments have 2 and 8, or 32 and 128 channels: both lowerings of the width branch."""
    model = tiny_vip(widths=(8 * request.param, 16 * request.param))
    return bytes(ir.to_proto(onnx_from_model(model, ExportShape())).SerializeToString())


@pytest.fixture
def canonical(traced: bytes) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(traced))


def assert_same(model: ir.Model, traced: bytes) -> None:
    wanted = run(ir.from_proto(onnx.load_from_string(traced)))
    np.testing.assert_allclose(run(model), wanted, rtol=0, atol=1e-5 * wanted.std())


def test_the_mixer_becomes_standard_operators(canonical: ir.Model, traced: bytes) -> None:
    report = lower_permute_mlp(canonical)
    assert report.changed == ["network.0.0.attn/WeightedPermuteMlp", "network.2.0.attn/WeightedPermuteMlp"]
    assert not [node for node in canonical.graph if node.domain]
    assert_same(canonical, traced)


def test_tokens_become_matrices(canonical: ir.Model, traced: bytes) -> None:
    lower_permute_mlp(canonical)
    report = flatten_tokens(canonical)
    assert "network.0.0.mlp.fc1/MatMul" in report.changed
    assert "network.0.0/Add" in report.changed
    for node in canonical.graph:
        if node.name in report.changed:
            assert len(node.outputs[0].shape) == 2, node.name
    assert_same(canonical, traced)


def test_nothing_is_flattened_twice(canonical: ir.Model) -> None:
    lower_permute_mlp(canonical)
    flatten_tokens(canonical)
    before = Counter(node.op_type for node in canonical.graph)
    assert flatten_tokens(canonical).changed == []
    assert Counter(node.op_type for node in canonical.graph) == before


def test_images_in_nchw_are_no_tokens() -> None:
    from tiny import tiny_asmlp

    model = onnx_from_model(tiny_asmlp(), ExportShape())
    assert flatten_tokens(model).changed == []
