"""Convolutions of stride 2 in bfloat16: the kernel and the function against the torch reference in float64."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from one_node import OPSET, model_of, run
from onnx import helper

from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.downsample import (
    BF16_NAME,
    MERGING_BF16_NAME,
    downsample_bf16_function,
    downsample_bf16_ref,
    patch_merging_bf16_function,
)

EPSILON = 1e-5
# Relative to the largest result: some operands lie so near to the middle between two that float32 decides.
TOLERANCE = 2e-3
MERGING = [(1, 2, 2, 16, 32), (2, 6, 4, 32, 64), (3, 14, 14, 48, 32), (1, 56, 6, 96, 192), (2, 8, 150, 16, 96)]
# Without the norm also odd sizes, and images that are smaller than the kernel.
TWO = [*MERGING, (2, 7, 5, 64, 32)]
THREE = [(2, 6, 4, 32, 64), (3, 14, 14, 96, 32), (2, 7, 5, 64, 32), (1, 9, 2, 32, 32), (1, 3, 200, 32, 32)]
THREE += [(2, 1, 1, 32, 32), (1, 1, 4, 64, 32), (1, 6, 1, 32, 64)]
CASES = [*((2, True, s) for s in MERGING), *((2, False, s) for s in TWO), *((3, False, s) for s in THREE)]


class Downsample:
    """One with random weights, as a model of one node; a patch merging has a norm."""

    def __init__(self, channels: int, out_channels: int, kernel: int = 2, *, merging: bool = False) -> None:
        rng = np.random.default_rng(channels)
        weight = rng.standard_normal((out_channels, channels, kernel, kernel)) / (channels**0.5 * kernel)
        self.out_channels, self.merging = out_channels, merging
        self.weight = weight.astype(ml_dtypes.bfloat16)
        self.bias = rng.standard_normal(out_channels).astype(np.float32)

    def run(self, x: np.ndarray, library: Path | None, threads: int = 1) -> np.ndarray:
        name, attributes = (MERGING_BF16_NAME, {"epsilon": EPSILON}) if self.merging else (BF16_NAME, {})
        node = helper.make_node(name, ["X", "W", "b"], ["Y"], domain=DOMAIN, **attributes)
        function = patch_merging_bf16_function if self.merging else downsample_bf16_function
        model = model_of(node, function(OPSET), {"W": self.weight, "b": self.bias}, self.out_channels)
        return run(model, x, library, threads)

    def expected(self, x: np.ndarray) -> np.ndarray:
        tensors = (torch.from_numpy(np.asarray(array, np.float64)) for array in (x, self.weight, self.bias))
        return downsample_bf16_ref(*tensors, EPSILON if self.merging else None).numpy()


def image(*shape: int) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal(shape) * 2 + 0.5).astype(np.float32)


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize(("kernel", "merging", "shape"), CASES)
def test_equals_the_reference(bf16_kernels: Path, kernel: int, merging: bool, shape: tuple[int, ...]) -> None:
    downsample, x = Downsample(*shape[3:], kernel, merging=merging), image(*shape[:4])
    assert_close(downsample.run(x, bf16_kernels), downsample.expected(x))


@pytest.mark.parametrize(("kernel", "merging", "shape"), [*CASES[:3], *CASES[5:8], *CASES[-8:]])
def test_the_function_is_the_same(kernel: int, merging: bool, shape: tuple[int, ...]) -> None:
    downsample, x = Downsample(*shape[3:], kernel, merging=merging), image(*shape[:4])
    assert_close(downsample.run(x, None), downsample.expected(x))


@pytest.mark.parametrize(("kernel", "merging"), [(2, True), (2, False), (3, False)])
def test_a_row_and_a_thread_change_no_bit(bf16_kernels: Path, kernel: int, merging: bool) -> None:
    downsample, x = Downsample(32, 64, kernel, merging=merging), image(5, 18, 12, 32)
    together = downsample.run(x, bf16_kernels)
    assert np.array_equal(together, downsample.run(x, bf16_kernels, threads=2))
    for row in range(5):
        assert np.array_equal(together[row], downsample.run(x[row : row + 1], bf16_kernels)[0])


def test_nan_stays_in_its_sample(bf16_kernels: Path) -> None:
    x = image(2, 4, 4, 32)
    x[1, 0, 0, 0] = np.nan
    y = Downsample(32, 32, merging=True).run(x, bf16_kernels)
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()
    y = Downsample(32, 32, 3).run(x, bf16_kernels)
    assert np.isfinite(y[0]).all() and np.isnan(y[1, 0, 0]).all() and np.isfinite(y[1, 1:]).all()


def test_an_image_without_pixels_and_a_batch_without_rows_are_empty(bf16_kernels: Path) -> None:
    assert Downsample(32, 32, 3).run(image(0, 4, 4, 32), bf16_kernels).shape == (0, 2, 2, 32)
    assert Downsample(32, 32, 2).run(image(1, 1, 4, 32), bf16_kernels).shape == (1, 0, 2, 32)


def test_what_the_kernel_does_not_take_is_refused(bf16_kernels: Path) -> None:
    with pytest.raises(Exception, match="PatchMergingBf16: X does not fit the weights"):
        Downsample(16, 32, merging=True).run(image(1, 3, 4, 16), bf16_kernels)
    for channels, out, kernel, merging in ((8, 32, 2, True), (8, 32, 2, False), (16, 32, 3, False), (32, 24, 3, False)):
        name = MERGING_BF16_NAME if merging else BF16_NAME
        with pytest.raises(Exception, match=f"{name}: a weight of a wrong shape"):
            Downsample(channels, out, kernel, merging=merging).run(image(1, 4, 4, channels), bf16_kernels)
