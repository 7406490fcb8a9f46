"""The contract of Vision Permutator's mixer: reference, ONNX function and formula agree."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.permute_mlp import NAME, weighted_permute_mlp_function, weighted_permute_mlp_ref

GRID, EACH = 4, 6
CHANNELS = GRID * EACH


def weights(seed: int) -> list[np.ndarray]:
    """Return W_h, W_w, W_c, F_1, b_1, F_2, b_2."""
    c = CHANNELS
    shapes = [(c, c), (c, c), (c, c), (c // 4, c), (c // 4,), (3 * c, c // 4), (3 * c,)]
    generator = np.random.default_rng(seed)
    return [(generator.standard_normal(shape) / np.sqrt(c)).astype(np.float32) for shape in shapes]


def by_formula(x: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    """Sum by sum, as the contract in ops/permute_mlp.py is written, in float64."""
    rows = len(x)
    cells = x.astype(np.float64).reshape(rows, GRID, GRID, GRID, EACH)  # n h w g s
    w_h, w_w = (value.astype(np.float64).reshape(GRID, EACH, GRID, EACH) for value in values[:2])
    h = np.einsum("atbs,nbwgs->nawgt", w_h, cells).reshape(x.shape)
    w = np.einsum("atbs,nhbgs->nhagt", w_w, cells).reshape(x.shape)
    c = x.astype(np.float64) @ values[2].T
    mean = (h + w + c).mean((1, 2))
    hidden = torch.nn.functional.gelu(torch.from_numpy(mean @ values[3].T + values[4])).numpy()
    logits = (hidden @ values[5].T + values[6]).reshape(rows, CHANNELS, 3)
    gates = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    return sum(branch * gates[:, None, None, :, k] for k, branch in enumerate((h, w, c)))


def model_of() -> onnx.ModelProto:
    names = ["X", "W_h", "W_w", "W_c", "F_1", "b_1", "F_2", "b_2"]
    sizes = {"segments": GRID, "height": GRID, "width": GRID, "channels": CHANNELS}
    node = helper.make_node(NAME, names, ["Y"], domain=DOMAIN, **sizes)
    axes = ["n", GRID, GRID, CHANNELS]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("X", "Y"))
    constants = [onnx.numpy_helper.from_array(v, n) for n, v in zip(names[1:], weights(1), strict=True)]
    graph = helper.make_graph([node], "g", [x], [y], constants)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    functions = [weighted_permute_mlp_function(21)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, GRID, GRID, CHANNELS)).astype(np.float32)


def test_reference_equals_the_formula(image: np.ndarray) -> None:
    tensors = [torch.from_numpy(value).double() for value in weights(1)]
    got = weighted_permute_mlp_ref(torch.from_numpy(image).double(), tuple(tensors[:3]), tuple(tensors[3:]), GRID)
    np.testing.assert_allclose(got.numpy(), by_formula(image, weights(1)), atol=1e-12)


def test_onnx_function_in_onnx_runtime(image: np.ndarray) -> None:
    session = ort.InferenceSession(model_of().SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"X": image})[0], by_formula(image, weights(1)), atol=1e-6)


def test_onnx_function_in_the_onnx_reference(image: np.ndarray) -> None:
    result = ReferenceEvaluator(model_of()).run(None, {"X": image})[0]
    np.testing.assert_allclose(result, by_formula(image, weights(1)), atol=1e-6)
