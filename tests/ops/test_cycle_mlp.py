"""The contract of CycleMLP's mixer: reference, ONNX function and formula agree."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.cycle_mlp import NAME, offsets, weighted_cycle_mlp_function, weighted_cycle_mlp_ref

CHANNELS = 20  # no multiple of three


def weights(seed: int) -> list[np.ndarray]:
    """Return W_w, b_w, W_h, b_h, W_c, F_1, b_1, F_2, b_2."""
    c = CHANNELS
    conv = (c, c, 1, 1)
    shapes = [conv, (c,), conv, (c,), (c, c), (c // 4, c), (c // 4,), (3 * c, c // 4), (3 * c,)]
    generator = np.random.default_rng(seed)
    return [(generator.standard_normal(shape) / np.sqrt(c)).astype(np.float32) for shape in shapes]


def by_formula(x: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    """Value by value, as the contract in ops/cycle_mlp.py is written, in float64."""
    wide, tall = np.zeros((2, *x.shape))
    for (n, h, w, c), _ in np.ndenumerate(x):
        step = (c + 1) % 3 - 1
        wide[n, h, w, c] = x[n, h, w + step, c] if 0 <= w + step < x.shape[2] else 0
        tall[n, h, w, c] = x[n, h + step, w, c] if 0 <= h + step < x.shape[1] else 0
    w_branch = wide @ values[0][:, :, 0, 0].T.astype(np.float64) + values[1]
    h_branch = tall @ values[2][:, :, 0, 0].T.astype(np.float64) + values[3]
    c_branch = x.astype(np.float64) @ values[4].T
    mean = (w_branch + h_branch + c_branch).mean((1, 2))
    hidden = torch.nn.functional.gelu(torch.from_numpy(mean @ values[5].T + values[6])).numpy()
    logits = (hidden @ values[7].T + values[8]).reshape(len(x), CHANNELS, 3)
    gates = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    return sum(part * gates[:, None, None, :, k] for k, part in enumerate((w_branch, h_branch, c_branch)))


def model_of() -> onnx.ModelProto:
    names = ["X", "W_w", "b_w", "W_h", "b_h", "W_c", "F_1", "b_1", "F_2", "b_2"]
    node = helper.make_node(NAME, names, ["Y"], domain=DOMAIN, channels=CHANNELS)
    axes = ["n", "h", "w", CHANNELS]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("X", "Y"))
    constants = [onnx.numpy_helper.from_array(v, n) for n, v in zip(names[1:], weights(1), strict=True)]
    graph = helper.make_graph([node], "g", [x], [y], constants)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    functions = [weighted_cycle_mlp_function(21)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(params=[(3, 5, 4), (1, 1, 2), (2, 1, 1)], ids=str)
def image(request: pytest.FixtureRequest) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((*request.param, CHANNELS)).astype(np.float32)


def test_channels_move_in_turns() -> None:
    assert offsets(7) == [0, 1, -1, 0, 1, -1, 0]


def test_reference_equals_the_formula(image: np.ndarray) -> None:
    tensors = [torch.from_numpy(value).double() for value in weights(1)]
    got = weighted_cycle_mlp_ref(torch.from_numpy(image).double(), tuple(tensors[:5]), tuple(tensors[5:]))
    np.testing.assert_allclose(got.numpy(), by_formula(image, weights(1)), atol=1e-12)


def test_onnx_function_in_onnx_runtime(image: np.ndarray) -> None:
    session = ort.InferenceSession(model_of().SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"X": image})[0], by_formula(image, weights(1)), atol=1e-6)


def test_onnx_function_in_the_onnx_reference(image: np.ndarray) -> None:
    result = ReferenceEvaluator(model_of()).run(None, {"X": image})[0]
    np.testing.assert_allclose(result, by_formula(image, weights(1)), atol=1e-6)
