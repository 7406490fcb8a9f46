"""The CPU kernels against the torch reference in float64, and each row against itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from shift_cases import shift_cases

from mlpdeploy.ops.axial_shift import DOMAIN, ShiftSpec
from mlpdeploy.ops.axial_shift_block import (
    BF16_INPUTS,
    BF16_NAME,
    INPUTS,
    MATRICES,
    NAME,
    WEIGHTS,
    axial_shift_block_function,
    axial_shift_block_ref,
)

OPSET = 21
EPSILON = 1e-5
# Relative to the largest result: ten roundings of sums of up to 50 terms.
TOLERANCE = 5e-6
# Relative to the largest result: a float's last bit decides which way some operands are rounded.
BF16_TOLERANCE = 1.5e-2


class Block:
    """A block with random weights, as a model of one node."""

    def __init__(self, channels: int, hidden: int, spec: ShiftSpec, seed: int = 0, bf16: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.channels, self.spec, self.bf16 = channels, spec, bf16
        out = dict.fromkeys(WEIGHTS, channels) | {"W_4": hidden, "b_4": hidden}
        into = {"W_5": hidden}
        self.weights = [
            rng.standard_normal((out[name], into.get(name, channels), 1, 1)) / into.get(name, channels) ** 0.5
            if name[0] == "W"
            else rng.standard_normal((channels, 1, 1, 1))
            if name == "scale"
            else rng.standard_normal(out[name])
            for name in WEIGHTS
        ]
        self.weights = [array.astype(np.float32) for array in self.weights]

    def model(self, height: int, width: int) -> bytes:
        size, group = self.spec.shift_size, -(-self.channels // self.spec.shift_size)
        kernel = np.zeros((self.channels, size), np.float32)
        kernel[np.arange(self.channels), size - 1 - np.arange(self.channels) // group] = 1
        constants = dict(zip(WEIGHTS, self.weights, strict=True))
        constants["K_w"], constants["K_h"] = kernel[:, None, None, :], kernel[:, None, :, None]
        if self.bf16:
            constants |= {name: constants[name].astype(ml_dtypes.bfloat16) for name in MATRICES}
        else:
            constants["sizes"] = np.array([0, self.channels, height, width])
        node = helper.make_node(
            BF16_NAME if self.bf16 else NAME,
            BF16_INPUTS if self.bf16 else INPUTS,
            ["Y"],
            domain=DOMAIN,
            shift_size=size,
            dilation=self.spec.dilation,
            padding=self.spec.padding,
            channels=self.channels,
            epsilon=EPSILON,
        )
        shape = ["n", height, width, self.channels] if self.bf16 else ["n", self.channels, height, width]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "XY"]
        graph = helper.make_graph(
            [node], "block", values[:1], values[1:], [numpy_helper.from_array(a, n) for n, a in constants.items()]
        )
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        function = axial_shift_block_function(self.spec, OPSET, bf16=self.bf16)
        model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=10)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())

    def run(self, x: np.ndarray, library: Path | None, threads: int = 1) -> np.ndarray:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        if library is not None:
            options.register_custom_ops_library(str(library))
        session = ort.InferenceSession(self.model(*x.shape[2:]), options, providers=["CPUExecutionProvider"])
        if not self.bf16:
            return session.run(None, {"X": x})[0]
        rows = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        return session.run(None, {"X": rows})[0].transpose(0, 3, 1, 2)

    def expected(self, x: np.ndarray) -> np.ndarray:
        weights = tuple(torch.from_numpy(array).double() for array in self.weights)
        wanted = axial_shift_block_ref(torch.from_numpy(x).double(), weights, self.spec, EPSILON, bf16=self.bf16)
        return wanted.numpy()


def image(seed: int, *shape: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 2 + 0.5).astype(np.float32)


def cases(count: int, bf16: bool = False) -> Iterator[tuple[Block, np.ndarray]]:
    """Every number of channels from 1 to `count`, each with sizes and options of its own."""
    for channels, hidden, spec, (samples, height, width) in shift_cases(count):
        yield Block(channels, hidden, spec, channels, bf16), image(channels, samples, channels, height, width)


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def test_every_number_of_channels(kernels: Path) -> None:
    for block, x in cases(45):
        assert_close(block.run(x, kernels), block.expected(x))


def test_every_number_of_channels_in_bf16(bf16_kernels: Path) -> None:
    for block, x in cases(45, bf16=True):
        found, wanted = block.run(x, bf16_kernels), block.expected(x)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=BF16_TOLERANCE * np.abs(wanted).max())


def test_the_function_is_the_same_block() -> None:
    for block, x in cases(20):
        if block.spec.padding != "circular" or x.shape[2] > 1:
            assert_close(block.run(x, None), block.expected(x))


def test_the_function_of_bf16_rounds_what_the_contract_says() -> None:
    """All but the few results behind an operand that float32 rounds to the other side."""
    for block, x in cases(20, bf16=True):
        if block.spec.padding != "circular" or x.shape[2] > 1:
            found, wanted = block.run(x, None), block.expected(x)
            assert np.median(np.abs(found - wanted)) < TOLERANCE * np.abs(wanted).max()


def test_wide_rows(kernels: Path) -> None:
    """Channels whose rows get another stride, and a hidden layer that is not four times as wide."""
    block, x = Block(128, 300, ShiftSpec()), image(2, 2, 128, 6, 5)
    assert_close(block.run(x, kernels), block.expected(x))


@pytest.mark.parametrize("size", [(5, 5), (8, 16), (12, 12), (23, 24), (46, 45)])
def test_a_row_and_a_thread_change_no_bit(kernels: Path, size: tuple[int, int]) -> None:
    """Sizes of each way to share the work out; samples go through together in groups for the small ones."""
    block, x = Block(21, 50, ShiftSpec()), image(3, 13 if size[0] < 12 else 3, 21, *size)
    together = block.run(x, kernels)
    assert np.array_equal(together, block.run(x, kernels, threads=2))
    for row in (0, len(x) - 1):
        assert np.array_equal(together[row], block.run(x[row : row + 1], kernels)[0])


def test_large_mean_and_tiny_variance(kernels: Path) -> None:
    """Statistics do not cancel: 1000 plus noise is normalized as well as single precision can hold it."""
    block, x = Block(24, 40, ShiftSpec()), image(4, 1, 24, 14, 14) + 1000
    assert_close(block.run(x, kernels), block.expected(x))


def test_nan_stays_nan(kernels: Path) -> None:
    x = image(5, 2, 8, 4, 4)
    x[1, 3, 2, 2] = np.nan
    y = Block(8, 16, ShiftSpec()).run(x, kernels)
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()


def test_wrong_input_is_an_error(kernels: Path) -> None:
    """The kernel checks for itself what the graph cannot promise."""
    block = Block(8, 16, ShiftSpec(7, 3, "reflect"))
    with pytest.raises(Exception, match="the shift reaches farther than the image"):
        block.run(image(6, 1, 8, 5, 12), kernels)
