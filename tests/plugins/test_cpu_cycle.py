"""The CPU kernels of Cycle blocks against the torch reference in float64, and each row against itself."""

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
from onnx.reference import ReferenceEvaluator

from mlpdeploy.ops import cycle_block as cycle
from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.int8 import Scale

OPSET = 21
EPSILON = 1e-5
# Relative to the largest result: ten roundings of sums of up to 70 terms.
TOLERANCE = {"fp32": 5e-6, "bf16": 1.5e-2, "int8": 2.5e-2}  # an operand's last bit can be rounded to the other side
NAMES = {"fp32": cycle.NAME, "bf16": cycle.BF16_NAME, "int8": cycle.INT8_NAME}


class Block:
    """A block with random weights, as a model of one node."""

    def __init__(self, channels: int, gate: int, hidden: int, precision: str = "fp32") -> None:
        rng = np.random.default_rng(channels)
        self.channels, self.precision = channels, precision
        c = channels
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(cycle.WEIGHTS, (c,))
        shapes |= dict.fromkeys(("W_w", "W_h"), (c, c) if precision == "int8" else (c, c, 1, 1))
        shapes |= {"W_c": (c, c), "W_p": (c, c), "W_1": (c, hidden), "b_1": (hidden,), "W_2": (hidden, c)}
        shapes |= {"F_1": (gate, c), "f_1": (gate,), "F_2": (3 * c, gate), "f_2": (3 * c,)}
        into = {"F_2": gate, "W_2": hidden}
        self.weights: dict[str, np.ndarray] = {}
        self.scales: dict[str, Scale] = {}
        for name, shape in shapes.items():
            depth = into.get(name, c)
            if precision == "int8" and name in cycle.MATRICES:
                steps = rng.uniform(0.5, 1.5, shape[cycle.OUTPUT_AXES[name]]) / 70 / depth**0.5
                self.weights[name] = rng.integers(-127, 128, shape).astype(np.int8)
                self.weights[f"S_{name[2:]}"] = steps.astype(np.float32)
            else:
                values = rng.standard_normal(shape) / (depth**0.5 if len(shape) > 1 else 1)
                self.weights[name] = values.astype(np.float32)
        for name in dict.fromkeys(cycle.SCALES.values()):
            self.scales[name] = Scale(float(np.float32(rng.uniform(0.015, 0.025))), int(rng.integers(100, 156)))

    def model(self, constant: bool = True, **changes: object) -> bytes:
        attributes: dict[str, object] = {"channels": self.channels, "epsilon": EPSILON}
        inputs, function = cycle.INPUTS, cycle.cycle_block_function(OPSET, bf16=self.precision == "bf16")
        if self.precision == "int8":
            inputs, function = cycle.INT8_INPUTS, cycle.cycle_block_int8_function(OPSET)
            for name, scale in self.scales.items():
                attributes |= scale.attributes(name)
        node = helper.make_node(NAMES[self.precision], inputs, ["Y"], domain=DOMAIN, **attributes | changes)
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "h", "w", "c"]) for name in "XY"]
        weights = dict(self.weights)
        if self.precision == "bf16":
            weights |= {name: weights[name].astype(ml_dtypes.bfloat16) for name in cycle.MATRICES}
        given = [numpy_helper.from_array(weights[name], name) for name in inputs[1:]]
        if not constant:
            values.insert(1, helper.make_tensor_value_info("W_p", TensorProto.FLOAT, [self.channels] * 2))
            given = [tensor for tensor in given if tensor.name != "W_p"]
        graph = helper.make_graph([node], "block", values[:-1], values[-1:], given)
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=10)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())

    def run(self, x: np.ndarray, library: Path | None, threads: int = 1) -> np.ndarray:
        return session_of(self.model(), library, threads).run(None, {"X": x})[0]

    def expected(self, x: np.ndarray) -> np.ndarray:
        weights = {name: torch.from_numpy(array).double() for name, array in self.weights.items()}
        images = torch.from_numpy(x).double()
        if self.precision == "int8":
            return cycle.cycle_block_int8_ref(images, weights, self.scales, EPSILON).numpy()
        given = tuple(weights[name] for name in cycle.WEIGHTS)
        return cycle.cycle_block_ref(images, given, EPSILON, bf16=self.precision == "bf16").numpy()

    def check(self, found: np.ndarray, x: np.ndarray) -> None:
        wanted = self.expected(x)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[self.precision] * np.abs(wanted).max())


def image(seed: int, *shape: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 2 + 0.5).astype(np.float32)


def session_of(model: bytes, library: Path | None, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def cases(precision: str = "fp32") -> Iterator[tuple[Block, np.ndarray]]:
    """Channels around the sizes of vectors and panels; images of one line, of one column, and larger than a task."""
    rng = np.random.default_rng(1)
    sizes = [(1, 1), (1, 5), (6, 1), (2, 2), (3, 4), (7, 7), (4, 35), (13, 11), (16, 17)]
    for channels in (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 47, 64, 65, 70):
        height, width = sizes[channels % len(sizes)]
        block = Block(channels, int(rng.integers(1, 40)), int(rng.integers(1, 70)), precision)
        yield block, image(channels, int(rng.integers(1, 4)), height, width, channels)


def test_every_shape(kernels: Path) -> None:
    for block, x in cases():
        block.check(block.run(x, kernels), x)


def test_every_shape_in_bf16(bf16_kernels: Path) -> None:
    for block, x in cases("bf16"):
        block.check(block.run(x, bf16_kernels), x)


def test_every_shape_in_int8(int8_kernels: Path) -> None:
    for block, x in cases("int8"):
        block.check(block.run(x, int8_kernels), x)


def test_long_lines_in_int8(int8_kernels: Path) -> None:
    """Means over more bytes than a word can sum up."""
    for channels, height, width in ((33, 1, 700), (64, 700, 1)):
        block, x = Block(channels, 6, 20, "int8"), image(5, 1, height, width, channels)
        block.check(block.run(x, int8_kernels), x)


def assert_rows_and_threads_change_nothing(block: Block, x: np.ndarray, library: Path) -> None:
    together = block.run(x, library)
    assert np.array_equal(together, block.run(x, library, threads=2))
    for row in (0, len(x) - 1):
        assert np.array_equal(together[row], block.run(x[row : row + 1], library)[0])


SHAPES = [(40, 3, 3), (7, 7, 7), (3, 12, 12), (2, 16, 20), (2, 1, 70), (2, 24, 25)]


@pytest.mark.parametrize("channels", [20, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_and_a_thread_change_no_bit(kernels: Path, shape: tuple[int, ...], channels: int) -> None:
    """Images that go through in groups, by columns of the weights and by rows, with a rest, and in one line.

    Of 64 channels the rows are whole panels, so that sums lie in the output.
    """
    assert_rows_and_threads_change_nothing(Block(channels, 5, 41), image(3, *shape, channels), kernels)


@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
def test_a_row_and_a_thread_change_no_bit_in_bf16(bf16_kernels: Path, shape: tuple[int, ...]) -> None:
    assert_rows_and_threads_change_nothing(Block(35, 9, 70, "bf16"), image(3, *shape, 35), bf16_kernels)


@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
def test_a_row_and_a_thread_change_no_bit_in_int8(int8_kernels: Path, shape: tuple[int, ...]) -> None:
    assert_rows_and_threads_change_nothing(Block(35, 9, 70, "int8"), image(3, *shape, 35), int8_kernels)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_function_is_the_same_block(precision: str) -> None:
    for channels, shape in ((10, (3, 2, 5)), (64, (1, 4, 4)), (24, (2, 1, 8))):
        block = Block(channels, 6, 20, precision)
        x = image(2, *shape, channels)
        found, wanted = block.run(x, None), block.expected(x)
        # All but the few results behind an operand that float32 rounds to the other side.
        error = np.abs(found - wanted)
        assert (error.max() if precision == "fp32" else np.median(error)) < TOLERANCE["fp32"] * np.abs(wanted).max()


def test_the_function_in_another_evaluator() -> None:
    block = Block(12, 5, 9)
    x = image(3, 2, 4, 3, 12)
    block.check(ReferenceEvaluator(onnx.load_from_string(block.model())).run(None, {"X": x})[0], x)


def test_large_mean_and_tiny_variance(kernels: Path) -> None:
    """Statistics do not cancel: 1000 plus noise is normalized as well as single precision can hold it."""
    block, x = Block(24, 6, 40), image(4, 1, 4, 4, 24) + 1000
    block.check(block.run(x, kernels), x)


def test_gates_that_are_almost_one(kernels: Path) -> None:
    """Logits far beyond what an exponential of single precision can hold."""
    block, x = Block(24, 6, 40), image(4, 1, 4, 4, 24)
    block.weights["f_2"] *= 1000
    block.check(block.run(x, kernels), x)


def test_nan_stays_nan(kernels: Path) -> None:
    block, x = Block(8, 4, 16), image(5, 2, 4, 4, 8)
    x[1, 3, 2, 2] = np.nan
    y = block.run(x, kernels)
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()


def test_an_empty_batch_is_empty(kernels: Path) -> None:
    assert Block(8, 4, 16).run(np.zeros((0, 4, 4, 8), np.float32), kernels).shape == (0, 4, 4, 8)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"constant": False}, "CycleBlock: its weights must be constant"),
        ({"channels": 0}, "CycleBlock: impossible channels"),
        ({"channels": 12}, "CycleBlock: a weight of a wrong shape"),
    ],
)
def test_what_cannot_be_is_an_error(kernels: Path, changes: dict, text: str) -> None:
    with pytest.raises(Exception, match=text):
        session_of(Block(8, 4, 16).model(**changes), kernels)


def test_wrong_input_is_an_error(kernels: Path) -> None:
    """The kernel checks for itself what the graph cannot promise."""
    session = session_of(Block(8, 4, 16).model(), kernels)
    with pytest.raises(Exception, match="CycleBlock: X does not fit the weights"):
        session.run(None, {"X": np.zeros((1, 4, 4, 16), np.float32)})
