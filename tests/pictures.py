"""Pictures and settings with which preprocessing is compared, in Python and in C++."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mlpdeploy.manifest import Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "color_order": "RGB"}
GREY = {"mean": (0.1307,), "std": (0.3081,), "color_order": "L"}
SETTINGS = [
    Preprocessing((32, 32), 0.9, "bicubic", **IMAGENET),
    Preprocessing((224, 224), 0.875, "bilinear", **IMAGENET),
    Preprocessing((28, 28), 1.0, "bicubic", **GREY),
    Preprocessing((33, 71), 0.95, "bicubic", **IMAGENET),
    Preprocessing((71, 33), 1.0, "bilinear", **GREY),
    Preprocessing((64, 64), 2.0, "bicubic", **IMAGENET),  # smaller than the crop: black around it
]
SIZES = [(1, 1), (1, 9), (7, 1), (31, 32), (32, 31), (35, 35), (36, 36), (129, 64), (224, 225), (427, 640), (500, 33)]


def noise(height_width: tuple[int, int], seed: int) -> Image.Image:
    """Hard edges and full range: what makes a filter overshoot."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.choice(np.array([0, 255, 128, 3], np.uint8), (*height_width, 3)))
