"""What a model is verified with: real photographs where they can be had, and random images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from mlpdeploy.errors import MissingDependencyError
from mlpdeploy.manifest import Manifest, Preprocessing

ROWS = 8


@dataclass(frozen=True)
class Pool:
    """Eight different images of one size.

    Attributes:
        height_width: in pixels.
        images: (8, C, H, W) float32.
        photographs: how many of them, from the first on, are real.
    """

    height_width: tuple[int, int]
    images: np.ndarray
    photographs: int


def pools(manifest: Manifest) -> list[Pool]:
    """Return one pool per image size: the model's own, and a second one where height and width are open.

    What an int8 model takes is cut to the range that it was calibrated for: beyond it, it is wrong by design.
    """
    spec = manifest.inputs[0]
    channels = int(spec.shape[1])
    height, width = manifest.model["config"]["image_size"]
    sizes = [(height, width)]
    symbolic = spec.shape[2]
    if isinstance(symbolic, str):
        step = int(symbolic.partition("*")[0])
        # So large that any padding can continue the last map.
        least = step * _farthest_shift(manifest)
        sizes.append((max(least, height // step // 2 * step) + step, max(least, width // step // 2 * step)))
    found = [_pool(size, channels, manifest.preprocessing) for size in sizes]
    low, high = (manifest.quantization or {}).get("input_range") or (-np.inf, np.inf)
    return [dataclasses.replace(pool, images=np.clip(pool.images, low, high)) for pool in found]


def _farthest_shift(manifest: Manifest) -> int:
    """Return one pixel more than a channel moves at most; 1 for a model without an axial shift."""
    shift = manifest.model["config"].get("shift")
    return shift["shift_size"] // 2 * shift["dilation"] + 1 if shift else 1


def _pool(height_width: tuple[int, int], channels: int, preprocessing: Preprocessing | None) -> Pool:
    images = np.random.default_rng(7).standard_normal((ROWS, channels, *height_width)).astype(np.float32)
    real = _photographs(height_width, preprocessing)
    for index, image in enumerate(real):
        images[index] = image
    return Pool(height_width, images, len(real))


def _photographs(height_width: tuple[int, int], preprocessing: Preprocessing | None) -> list[np.ndarray]:
    """Return the sample photographs and their mirror images, or nothing where they are not installed."""
    if preprocessing is None:
        return []
    from mlpdeploy.images import preprocess, read_image, sample_photographs

    try:
        paths = sample_photographs()
    except MissingDependencyError:
        return []
    sized = dataclasses.replace(preprocessing, height_width=height_width)
    images = [preprocess(read_image(path), sized) for path in paths]
    return [variant for image in images for variant in (image, np.ascontiguousarray(image[:, :, ::-1]))][: ROWS // 2]
