"""INT8 on every model with random weights: does the recipe work, how much of it is in INT8, what does each block cost.

Accuracy means nothing on random weights; the structure does. Calibrated and measured on cuttings of the two photographs
that scikit-learn ships. Writes results/int8_models.json. Run with: python benchmarks/int8_models.py
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlpdeploy.artifact import write_file
from mlpdeploy.env import git_commit, machine, tool_versions
from mlpdeploy.export.export import export_model
from mlpdeploy.images import sample_photographs
from mlpdeploy.models.registry import MODELS
from mlpdeploy.quant.mixed import analyse
from mlpdeploy.quant.quantize import quantize_artifact
from mlpdeploy.quant.recipe import Recipe

CALIBRATION_IMAGES = 32
MEASURED_IMAGES = 8
CUTTING = 256  # pixels a side


def write_cuttings(folder: Path) -> None:
    """Write random cuttings of the photographs, half of each, mirrored or not."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    photographs = [Image.open(path).convert("RGB") for path in sample_photographs()]
    for index in range(CALIBRATION_IMAGES):
        photograph = photographs[index % len(photographs)]
        left, top = (int(generator.integers(size - CUTTING)) for size in photograph.size)
        cutting = photograph.crop((left, top, left + CUTTING, top + CUTTING))
        if generator.integers(2):
            cutting = cutting.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        cutting.save(folder / f"{index:03}.png")


def one_model(name: str, images: Path, scratch: Path, threads: int) -> dict[str, Any]:
    """Return one model's row: the quantized file, verified, and what every block costs."""
    start = time.monotonic()
    export_model(name, scratch / name, verify=False)
    cache, int8 = scratch / "ranges.json", scratch / "int8"
    manifest = quantize_artifact(
        scratch / name, int8, Recipe("int8"), images=images, cache=cache, threads=threads, force=True
    )
    report = analyse(scratch / name, Recipe("int8"), images=images, cache=cache, limit=MEASURED_IMAGES, threads=threads)
    applied = manifest.quantization["targets"]["cpu"]
    shutil.rmtree(scratch / name)
    cache.unlink()
    return {
        "model": name,
        "int8_share_of_macs": applied["int8_share_of_macs"],
        "verified": True,
        "logits_sqnr_db": report.int8.sqnr_db,
        "blocks": [dataclasses.asdict(block) for block in report.blocks],
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    """Quantize everything and write the results file."""
    names = [entry.name for entry in MODELS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=names, help="only these; the default is all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "int8_models.json")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        write_cuttings(images)
        for name in options.model or names:
            rows.append(one_model(name, images, Path(folder), options.threads))
            row = rows[-1]
            least = min(block["alone"]["sqnr_db"] for block in row["blocks"])
            share, blocks = 100 * row["int8_share_of_macs"], len(row["blocks"])
            print(
                f"{name}: {share:.1f} % of the multiply-adds in INT8, logits {row['logits_sqnr_db']:.1f} dB, "
                f"{blocks} blocks, the worst alone {least:.1f} dB",
                flush=True,
            )
    result = {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": machine(),
        "tools": tool_versions(["onnxruntime", "onnx_ir", "torch", "PIL"]),
        "note": "random weights, seed 0; alone: SQNR of the logits with that block alone in INT8",
        "images": {"calibration": CALIBRATION_IMAGES, "measured": MEASURED_IMAGES},
        "models": rows,
    }
    write_file(options.output, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
