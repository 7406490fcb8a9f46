"""The convolution that reads the image: the kernel and the function against the torch reference in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from one_node import OPSET, model_of, run
from onnx import helper

from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.patch_embed import (
    NAME,
    NORMALIZED_NAME,
    normalized_patch_embed_function,
    patch_embed_function,
    patch_embed_ref,
)

EPSILON = 1e-5
# (kernel, stride, padding, (N, C, H, W), outputs)
CASES = [
    (4, 4, 0, (2, 3, 32, 48), 96),
    (4, 4, 0, (3, 3, 224, 24), 32),
    (7, 7, 0, (2, 3, 28, 63), 64),
    (7, 4, 2, (2, 3, 32, 41), 64),
    (7, 4, 2, (1, 1, 3, 3), 32),  # an image that is smaller than the kernel
    (7, 4, 2, (2, 5, 5, 300), 32),
    (3, 1, 1, (1, 2, 9, 4), 32),
    (3, 2, 4, (1, 2, 1, 6), 32),  # pixels that see zeros only
    (4, 4, 0, (2, 3, 30, 35), 32),  # lines that nothing sees
]


class Embedding:
    """One with random weights, as a model of one node."""

    def __init__(self, kernel: int, stride: int, padding: int, channels: int, out: int, normalized: bool) -> None:
        rng = np.random.default_rng(kernel + out)
        self.attributes = {"stride": stride, "padding": padding}
        self.out, self.normalized = out, normalized
        weight = rng.standard_normal((out, channels, kernel, kernel)) / (kernel * channels**0.5)
        arrays = {"W": weight, "b": rng.standard_normal(out)}
        if normalized:
            arrays |= {"scale": rng.standard_normal(out), "offset": rng.standard_normal(out)}
        self.weights = {name: array.astype(np.float32) for name, array in arrays.items()}

    def run(self, x: np.ndarray, library: Path | None, threads: int = 1) -> np.ndarray:
        name, function, attributes = NAME, patch_embed_function, dict(self.attributes)
        if self.normalized:
            name, function = NORMALIZED_NAME, normalized_patch_embed_function
            attributes["epsilon"] = EPSILON
        node = helper.make_node(name, ["X", *self.weights], ["Y"], domain=DOMAIN, **attributes)
        made = function(self.attributes["stride"], self.attributes["padding"], OPSET)
        return run(model_of(node, made, self.weights, self.out), x, library, threads)

    def expected(self, x: np.ndarray) -> np.ndarray:
        weight, bias, *affine = (torch.from_numpy(array).double() for array in self.weights.values())
        norm = (affine[0], affine[1], EPSILON) if self.normalized else None
        return patch_embed_ref(torch.from_numpy(x).double(), weight, bias, **self.attributes, norm=norm).numpy()


def image(*shape: int) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal(shape) * 2 + 0.5).astype(np.float32)


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding", "shape", "out"), CASES)
def test_equals_the_reference(
    kernels: Path, kernel: int, stride: int, padding: int, shape: tuple[int, ...], out: int, normalized: bool
) -> None:
    embedding, x = Embedding(kernel, stride, padding, shape[1], out, normalized), image(*shape)
    assert_close(embedding.run(x, kernels), embedding.expected(x))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding", "shape", "out"), CASES)
def test_the_function_is_the_same(
    kernel: int, stride: int, padding: int, shape: tuple[int, ...], out: int, normalized: bool
) -> None:
    embedding, x = Embedding(kernel, stride, padding, shape[1], out, normalized), image(*shape)
    assert_close(embedding.run(x, None), embedding.expected(x))


@pytest.mark.parametrize("normalized", [False, True])
def test_a_row_and_a_thread_change_no_bit(kernels: Path, normalized: bool) -> None:
    embedding, x = Embedding(7, 4, 2, 3, 64, normalized), image(5, 3, 75, 49)
    together = embedding.run(x, kernels)
    assert np.array_equal(together, embedding.run(x, kernels, threads=2))
    for row in range(5):
        assert np.array_equal(together[row], embedding.run(x[row : row + 1], kernels)[0])


def test_nan_stays_in_its_sample(kernels: Path) -> None:
    x = image(2, 3, 16, 16)
    x[1, 0, 0, 0] = np.nan
    y = Embedding(4, 4, 0, 3, 32, True).run(x, kernels)
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()
    y = Embedding(4, 4, 0, 3, 32, False).run(x, kernels)
    assert np.isfinite(y[0]).all() and np.isnan(y[1, 0, 0]).all() and np.isfinite(y[1, 1:]).all()


def test_an_image_without_patches_and_a_batch_without_rows_are_empty(kernels: Path) -> None:
    assert Embedding(4, 4, 0, 3, 32, True).run(image(0, 3, 8, 8), kernels).shape == (0, 2, 2, 32)
    assert Embedding(4, 4, 0, 3, 32, False).run(image(1, 3, 3, 8), kernels).shape == (1, 0, 2, 32)


def test_what_the_kernel_does_not_take_is_refused(kernels: Path) -> None:
    embedding = Embedding(4, 4, 0, 3, 32, True)
    embedding.weights["scale"] = embedding.weights["scale"][:31]
    with pytest.raises(Exception, match="NormalizedPatchEmbed: a weight of a wrong shape"):
        embedding.run(image(1, 3, 8, 8), kernels)
    embedding = Embedding(4, 4, 0, 3, 32, False)
    embedding.weights["W"] = embedding.weights["W"][:, :, :3]
    with pytest.raises(Exception, match="PatchEmbed: a weight of a wrong shape"):
        embedding.run(image(1, 3, 8, 8), kernels)
    for attributes in ({"stride": 0, "padding": 0}, {"stride": 4, "padding": -1}):
        embedding = Embedding(4, 4, 0, 3, 32, False)
        embedding.attributes |= attributes
        with pytest.raises(Exception, match="impossible stride or padding"):
            embedding.run(image(1, 3, 8, 8), kernels)
