"""Canonical graphs for the passes, and a way to compare before with after."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny import tiny_asmlp

from mlpdeploy.export.trace import ExportShape, onnx_from_model


@pytest.fixture(scope="session")
def canonical_bytes() -> bytes:
    """The small AS-MLP, traced once."""
    model = onnx_from_model(tiny_asmlp(), ExportShape())
    return bytes(ir.to_proto(model).SerializeToString())


@pytest.fixture
def canonical(canonical_bytes: bytes) -> ir.Model:
    """A fresh copy of the traced model."""
    import onnx

    return ir.from_proto(onnx.load_from_string(canonical_bytes))


def run(model: ir.Model, image: np.ndarray) -> np.ndarray:
    """Return the model's first output, computed by ONNX Runtime without any optimization of its own."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})[0]


@pytest.fixture
def same_result(canonical_bytes: bytes) -> Callable[[ir.Model], None]:
    """Assert that a rewritten model computes what the canonical one does, to fp32 rounding."""
    import onnx

    image = np.random.default_rng(3).standard_normal((2, 3, 32, 32)).astype(np.float32)
    wanted = run(ir.from_proto(onnx.load_from_string(canonical_bytes)), image)

    def check(model: ir.Model) -> None:
        np.testing.assert_allclose(run(model, image), wanted, rtol=0, atol=2e-5 * wanted.std())

    return check
