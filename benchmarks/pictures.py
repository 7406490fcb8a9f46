"""A photograph to the input tensor of AS-MLP: by Pillow and numpy, and by the library of CPU kernels.

Writes results/pictures.json. Run with: python benchmarks/pictures.py

Two photographs as scikit-learn ships them (640 x 427 pixels, hardly compressed), and larger and more compressed ones
made of them. The same process, in random order; the tensors are compared bit for bit first.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from mlpdeploy.artifact import write_file
from mlpdeploy.env import git_commit, machine, tool_versions
from mlpdeploy.images import image_from_bytes, preprocess, sample_photographs
from mlpdeploy.manifest import Preprocessing
from mlpdeploy.plugins import cpu_pictures
from mlpdeploy.plugins.cpu import build_cpu_library

IMAGENET = Preprocessing((224, 224), 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "RGB")
SCALES = (1, 3)
QUALITY = 85
PERCENTILES = (10, 50, 90)


def pictures() -> dict[str, bytes]:
    """Return {name: JPEG}."""
    found = {}
    for path in sample_photographs():
        found[path.name] = path.read_bytes()
        image = image_from_bytes(found[path.name])
        for scale in SCALES:
            data = io.BytesIO()
            image.resize((scale * image.width, scale * image.height), Image.Resampling.BICUBIC).save(
                data, "JPEG", quality=QUALITY
            )
            found[f"{path.stem}, {scale * image.width}x{scale * image.height}, quality {QUALITY}"] = data.getvalue()
    return found


def milliseconds(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Return {way: {percentile: ms}} of calls in random order."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(-3, rounds):
        for name in random.sample(list(ways), len(ways)):
            started = time.perf_counter()
            ways[name]()
            if index >= 0:
                taken[name].append(1000 * (time.perf_counter() - started))
    return {
        name: {f"p{percent}_ms": float(np.percentile(values, percent)) for percent in PERCENTILES}
        for name, values in taken.items()
    }


def measure(data: bytes, rounds: int) -> dict[str, Any]:
    """Return the figures of one picture."""
    image = image_from_bytes(data)

    def by_pillow() -> np.ndarray:
        with mock.patch.object(cpu_pictures, "_function", return_value=None):
            return preprocess(image, IMAGENET)

    assert by_pillow().tobytes() == preprocess(image, IMAGENET).tobytes()
    ways = {
        "decode": lambda: image_from_bytes(data),
        "prepare_by_pillow": by_pillow,
        "prepare_by_library": lambda: preprocess(image, IMAGENET),
    }
    found = milliseconds(ways, rounds)
    ratio = found["prepare_by_pillow"]["p50_ms"] / found["prepare_by_library"]["p50_ms"]
    return {"bytes": len(data), "height_width": [image.height, image.width], "times_as_fast": ratio, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "pictures.json")
    options = parser.parse_args()
    build_cpu_library(print)
    results = {}
    for name, data in pictures().items():
        results[name] = measure(data, options.rounds)
        figures = ", ".join(f"{way} {results[name][way]['p50_ms']:.2f} ms" for way in list(results[name])[3:])
        print(f"{name}: {figures}, {results[name]['times_as_fast']:.1f}x")
    body = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "machine": machine(),
        "tools": tool_versions(("numpy", "PIL")),
        "results": results,
    }
    write_file(options.output, (json.dumps(body, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
