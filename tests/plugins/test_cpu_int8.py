"""The CPU kernels with products of 8 bits against the torch reference in float64, and each row against itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from one_node import OPSET, model_of, run
from onnx import helper
from shift_cases import shift_cases

from mlpdeploy.ops import downsample
from mlpdeploy.ops import permutator_block as permutator
from mlpdeploy.ops.axial_shift import DOMAIN, ShiftSpec
from mlpdeploy.ops.axial_shift_block import (
    INT8_INPUTS,
    INT8_NAME,
    SCALES,
    STEPS,
    WEIGHTS,
    axial_shift_block_int8_function,
    axial_shift_block_int8_ref,
)
from mlpdeploy.ops.int8 import Scale

EPSILON = 1e-5
# Relative to the largest result: a float's last bit decides which way some operands are rounded, by a whole step.
TOLERANCE = 2e-2
USUAL = 3e-5  # the kernels' GELU is good to 9e-6


class Block:
    """An AS-MLP block with random weights, as a model of one node on rows."""

    def __init__(self, channels: int, hidden: int, spec: ShiftSpec, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.channels, self.spec = channels, spec
        out = dict.fromkeys((*WEIGHTS, *STEPS), channels) | dict.fromkeys(("W_4", "b_4", "S_4"), hidden)
        self.weights: dict[str, np.ndarray] = {}
        for name, size in out.items():
            depth = hidden if name == "W_5" else channels
            if name.startswith("W_"):
                self.weights[name] = rng.integers(-127, 128, (size, depth)).astype(np.int8)
            elif name.startswith("S_"):
                depth = hidden if name == "S_5" else channels
                self.weights[name] = (rng.uniform(0.5, 1.5, size) / 70 / depth**0.5).astype(np.float32)
            else:
                self.weights[name] = rng.standard_normal(size).astype(np.float32)
        # Some values lie outside of every range.
        self.scales = {
            name: Scale(float(np.float32(rng.uniform(0.015, 0.025))), int(rng.integers(100, 156)))
            for name in dict.fromkeys(SCALES.values())
        }

    def model(self) -> bytes:
        size, group = self.spec.shift_size, -(-self.channels // self.spec.shift_size)
        kernel = np.zeros((self.channels, size), np.float32)
        kernel[np.arange(self.channels), size - 1 - np.arange(self.channels) // group] = 1
        constants = self.weights | {"K_w": kernel[:, None, None, :], "K_h": kernel[:, None, :, None]}
        attributes = {
            key: value for name, scale in self.scales.items() for key, value in scale.attributes(name).items()
        }
        node = helper.make_node(
            INT8_NAME,
            INT8_INPUTS,
            ["Y"],
            domain=DOMAIN,
            shift_size=size,
            dilation=self.spec.dilation,
            padding=self.spec.padding,
            channels=self.channels,
            epsilon=EPSILON,
            **attributes,
        )
        return model_of(node, axial_shift_block_int8_function(self.spec, OPSET), constants, self.channels)

    def expected(self, x: np.ndarray) -> np.ndarray:
        weights = {name: torch.from_numpy(array).double() for name, array in self.weights.items()}
        y = axial_shift_block_int8_ref(torch.from_numpy(x).double(), weights, self.scales, self.spec, EPSILON)
        return np.asarray(y)


def image(seed: int, *shape: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 2 + 0.5).astype(np.float32)


def cases(count: int) -> Iterator[tuple[Block, np.ndarray]]:
    """Every number of channels from 1 to `count`, each with sizes and options of its own."""
    for channels, hidden, spec, sizes in shift_cases(count):
        yield Block(channels, hidden, spec, channels), image(channels, *sizes, channels)


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    """All are near, and all but the few behind an operand that float32 rounds to the other side are the same."""
    error = np.abs(found - wanted) / np.abs(wanted).max()
    assert error.max() < TOLERANCE
    assert np.median(error) < USUAL


def test_every_number_of_channels(int8_kernels: Path) -> None:
    for block, x in cases(70):
        assert_close(run(block.model(), x, int8_kernels), block.expected(x))


def test_the_function_is_the_same_block() -> None:
    for block, x in cases(20):
        if block.spec.padding != "circular" or x.shape[1] > 1:
            assert_close(run(block.model(), x, None), block.expected(x))


def test_wide_rows(int8_kernels: Path) -> None:
    """Channels whose rows get another stride, and a hidden layer that is not four times as wide."""
    block, x = Block(512, 300, ShiftSpec()), image(2, 2, 6, 5, 512)
    assert_close(run(block.model(), x, int8_kernels), block.expected(x))


@pytest.mark.parametrize("size", [(5, 5), (8, 16), (12, 12), (23, 24), (46, 45)])
def test_a_row_and_a_thread_change_no_bit(int8_kernels: Path, size: tuple[int, int]) -> None:
    """Sizes of each way to share the work out; samples go through together in groups for the small ones."""
    block, x = Block(21, 50, ShiftSpec()), image(3, 13 if size[0] < 12 else 3, *size, 21)
    together = run(block.model(), x, int8_kernels)
    assert np.array_equal(together, run(block.model(), x, int8_kernels, threads=2))
    for row in (0, len(x) - 1):
        assert np.array_equal(together[row], run(block.model(), x[row : row + 1], int8_kernels)[0])


class Stride2:
    """A convolution of stride 2 with random weights; a patch merging has a norm."""

    def __init__(self, channels: int, out: int, kernel: int = 2, *, merging: bool = True) -> None:
        rng = np.random.default_rng(channels)
        self.out, self.merging, self.scale = out, merging, Scale(float(np.float32(0.019)), 131)
        self.weights = {
            "W": rng.integers(-127, 128, (out, channels, kernel, kernel)).astype(np.int8),
            "b": rng.standard_normal(out).astype(np.float32),
            "S": (rng.uniform(0.5, 1.5, out) / 70 / kernel / channels**0.5).astype(np.float32),
        }

    def model(self) -> bytes:
        attributes = self.scale.attributes("x") | ({"epsilon": EPSILON} if self.merging else {})
        name = downsample.MERGING_INT8_NAME if self.merging else downsample.INT8_NAME
        function = (
            downsample.patch_merging_int8_function(OPSET)
            if self.merging
            else downsample.downsample_int8_function(self.weights["W"].shape[2], OPSET)
        )
        node = helper.make_node(name, ["X", "W", "b", "S"], ["Y"], domain=DOMAIN, **attributes)
        return model_of(node, function, self.weights, self.out)

    def expected(self, x: np.ndarray) -> np.ndarray:
        weight, bias, steps = (torch.from_numpy(self.weights[name]).double() for name in ("W", "b", "S"))
        epsilon = EPSILON if self.merging else None
        rows = torch.from_numpy(x).double()
        return np.asarray(downsample.downsample_int8_ref(rows, weight, bias, steps, self.scale, epsilon))


@pytest.mark.parametrize(
    ("kernel", "channels", "out", "size"),
    [
        *[(2, 16, 32, (2, 2)), (2, 48, 64, (8, 12)), (2, 96, 192, (14, 14)), (2, 32, 96, (2, 130))],
        *[(3, 32, 64, (7, 5)), (3, 96, 32, (14, 14)), (3, 32, 32, (1, 3)), (3, 64, 32, (4, 131))],
    ],
)
def test_stride_2(int8_kernels: Path, kernel: int, channels: int, out: int, size: tuple[int, int]) -> None:
    for merging in (True, False) if kernel == 2 else (False,):
        node, x = Stride2(channels, out, kernel, merging=merging), image(channels, 3, *size, channels)
        found = run(node.model(), x, int8_kernels)
        assert_close(found, node.expected(x))
        assert_close(run(node.model(), x, None), node.expected(x))
        assert np.array_equal(found, run(node.model(), x, int8_kernels, threads=2))
        assert np.array_equal(found[1], run(node.model(), x[1:2], int8_kernels)[0])


class Permutator:
    """A block of Vision Permutator with random weights."""

    def __init__(self, side: int, segment: int, gate: int, hidden: int, wide: bool = False) -> None:
        rng = np.random.default_rng(side + segment)
        self.side, self.channels, self.wide = side, side * segment, wide
        c = self.channels
        shapes = dict.fromkeys(permutator.WEIGHTS, (c,)) | dict.fromkeys(("W_h", "W_w", "W_c", "W_p"), (c, c))
        shapes |= {"F_1": (gate, c), "f_1": (gate,), "F_2": (3 * c, gate), "f_2": (3 * c,)}
        shapes |= {"W_1": (c, hidden), "b_1": (hidden,), "W_2": (hidden, c)}
        self.weights: dict[str, np.ndarray] = {}
        for name, shape in shapes.items():
            if name in permutator.MATRICES:
                depth = shape[1 - permutator.OUTPUT_AXES[name]]
                steps = rng.uniform(0.5, 1.5, shape[permutator.OUTPUT_AXES[name]]) / 70 / depth**0.5
                self.weights[name] = rng.integers(-127, 128, shape).astype(np.int8)
                self.weights[f"S_{name[2:]}"] = steps.astype(np.float32)
            else:
                width = {"F_1": c, "F_2": gate}.get(name, 1)
                self.weights[name] = (rng.standard_normal(shape) / width**0.5).astype(np.float32)
        self.scales = {
            name: Scale(float(np.float32(rng.uniform(0.015, 0.025))), int(rng.integers(100, 156)))
            for name in dict.fromkeys(permutator.SCALES.values())
        }

    def model(self) -> bytes:
        attributes: dict[str, object] = {
            **dict.fromkeys(("segments", "height", "width"), self.side),
            "channels": self.channels,
            "epsilon": EPSILON,
            **permutator.width_attributes(self.wide),
        }
        for name, scale in self.scales.items():
            attributes |= scale.attributes(name)
        inputs = permutator.INT8_INPUTS
        node = helper.make_node(permutator.INT8_NAME, inputs, ["Y"], domain=DOMAIN, **attributes)
        return model_of(node, permutator.permutator_block_int8_function(OPSET), self.weights, self.channels)

    def expected(self, x: np.ndarray) -> np.ndarray:
        weights = {name: torch.from_numpy(array).double() for name, array in self.weights.items()}
        images = torch.from_numpy(x).double()
        return np.asarray(permutator.permutator_block_int8_ref(images, weights, self.scales, self.side, EPSILON))

    def image(self, seed: int, samples: int) -> np.ndarray:
        return image(seed, samples, self.side, self.side, self.channels)


def test_every_segment(int8_kernels: Path) -> None:
    """Segments and sides around the sizes of vectors and panels, each with other widths of the gate and the MLP."""
    rng = np.random.default_rng(1)
    for segment in (1, 2, 3, 5, 6, 7, 8, 9, 15, 16, 17, 24, 33):
        for side in rng.choice([1, 2, 3, 4, 5, 7, 9, 12], 3, replace=False):
            block = Permutator(int(side), segment, int(rng.integers(1, 40)), int(rng.integers(1, 70)))
            x = block.image(segment, int(rng.integers(1, 4)))
            assert_close(run(block.model(), x, int8_kernels), block.expected(x))


@pytest.mark.parametrize("wide", [False, True])
def test_the_function_is_the_same_permutator(wide: bool) -> None:
    for side, segment in ((2, 5), (4, 16), (8, 3)):
        block = Permutator(side, segment, 6, 20, wide)
        x = block.image(2, 3)
        assert_close(run(block.model(), x, None), block.expected(x))


def test_a_row_and_a_thread_change_no_bit_of_a_permutator(int8_kernels: Path) -> None:
    for side, segment in ((12, 3), (16, 24)):
        block = Permutator(side, segment, 9, 40)
        x = block.image(3, 3)
        together = run(block.model(), x, int8_kernels)
        assert np.array_equal(together, run(block.model(), x, int8_kernels, threads=2))
        for row in range(3):
            assert np.array_equal(together[row], run(block.model(), x[row : row + 1], int8_kernels)[0])


def test_impossible_scales_are_errors(int8_kernels: Path) -> None:
    merging = Stride2(16, 32)
    for scale in (Scale(0.0, 128), Scale(0.1, 256), Scale(0.1, -1)):
        merging.scale = scale
        with pytest.raises(Exception, match="impossible scale"):
            run(merging.model(), image(0, 1, 2, 2, 16), int8_kernels)


def test_sums_that_could_overflow_are_an_error(int8_kernels: Path) -> None:
    block = Block(1, 66_001, ShiftSpec(1))
    with pytest.raises(Exception, match="too many channels"):
        run(block.model(), image(0, 1, 2, 2, 1), int8_kernels)
