"""Patch merging in bfloat16: the kernel and the function against the torch reference in float64."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.patch_merging import BF16_NAME, patch_merging_bf16_function, patch_merging_bf16_ref

OPSET = 21
EPSILON = 1e-5
# Relative to the largest result: some operands lie so near to the middle between two that float32 decides.
TOLERANCE = 2e-3
SHAPES = [(1, 2, 2, 16, 32), (2, 6, 4, 32, 64), (3, 14, 14, 48, 32), (1, 56, 6, 96, 192), (2, 8, 150, 16, 96)]


class Merging:
    """A patch merging with random weights, as a model of one node."""

    def __init__(self, channels: int, out_channels: int) -> None:
        rng = np.random.default_rng(channels)
        weight = rng.standard_normal((out_channels, channels, 2, 2)) / (4 * channels) ** 0.5
        self.channels, self.out_channels = channels, out_channels
        self.weight = weight.astype(ml_dtypes.bfloat16)
        self.bias = rng.standard_normal(out_channels).astype(np.float32)

    def run(self, x: np.ndarray, library: Path | None, threads: int = 1) -> np.ndarray:
        node = helper.make_node(BF16_NAME, ["X", "W", "b"], ["Y"], domain=DOMAIN, epsilon=EPSILON)
        graph = helper.make_graph(
            [node],
            "merging",
            [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", "h", "w", self.channels])],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["n", "p", "q", self.out_channels])],
            [numpy_helper.from_array(self.weight, "W"), numpy_helper.from_array(self.bias, "b")],
        )
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(
            graph, opset_imports=imports, functions=[patch_merging_bf16_function(OPSET)], ir_version=10
        )
        onnx.checker.check_model(model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        if library is not None:
            options.register_custom_ops_library(str(library))
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {"X": x})[0]

    def expected(self, x: np.ndarray) -> np.ndarray:
        tensors = (torch.from_numpy(np.asarray(array, np.float64)) for array in (x, self.weight, self.bias))
        return patch_merging_bf16_ref(*tensors, EPSILON).numpy()


def image(*shape: int) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal(shape) * 2 + 0.5).astype(np.float32)


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(bf16_kernels: Path, shape: tuple[int, ...]) -> None:
    merging, x = Merging(*shape[3:]), image(*shape[:4])
    assert_close(merging.run(x, bf16_kernels), merging.expected(x))


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_the_function_is_the_same(shape: tuple[int, ...]) -> None:
    merging, x = Merging(*shape[3:]), image(*shape[:4])
    assert_close(merging.run(x, None), merging.expected(x))


def test_a_row_and_a_thread_change_no_bit(bf16_kernels: Path) -> None:
    merging, x = Merging(32, 64), image(5, 18, 12, 32)
    together = merging.run(x, bf16_kernels)
    assert np.array_equal(together, merging.run(x, bf16_kernels, threads=2))
    for row in range(5):
        assert np.array_equal(together[row], merging.run(x[row : row + 1], bf16_kernels)[0])


def test_nan_stays_in_its_sample(bf16_kernels: Path) -> None:
    x = image(2, 4, 4, 16)
    x[1, 0, 0, 0] = np.nan
    y = Merging(16, 32).run(x, bf16_kernels)
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()


def test_what_the_kernel_does_not_take_is_refused(bf16_kernels: Path) -> None:
    with pytest.raises(Exception, match="PatchMergingBf16: X does not fit the weights"):
        Merging(16, 32).run(image(1, 3, 4, 16), bf16_kernels)
    with pytest.raises(Exception, match="PatchMergingBf16: a weight of a wrong shape"):
        Merging(8, 32).run(image(1, 4, 4, 8), bf16_kernels)
