"""Float32, bfloat16 and INT8 on ONNX Runtime and OpenVINO beside PyTorch, and what OpenVINO's defaults rest on.

Writes results/precision.json. Run with: python benchmarks/precision.py
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy import load
from mlpdeploy.artifact import write_file
from mlpdeploy.bench.candidates import output_error
from mlpdeploy.bench.measure import Candidate, measure_interleaved
from mlpdeploy.bench.peers import default_openvino_run, session_run
from mlpdeploy.env import cpu_count, git_commit, machine, tool_versions
from mlpdeploy.export.add import lower_artifact
from mlpdeploy.export.export import export_model
from mlpdeploy.quant.quantize import quantize_artifact
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.runtime import openvino as backend

MODELS = ("asmlp_t", "vip_s7", "cyclemlp_b2")
BATCHES = (1, 8)
BASELINE = "torch eager"
CALIBRATION_IMAGES = 16  # random ones: the speed does not depend on the ranges


def backends(directory: Path, seconds: float) -> list[dict[str, Any]]:
    """Return timings of an artifact on each backend, with the error of each against PyTorch's outputs."""
    with contextlib.ExitStack() as stack:
        sessions = {BASELINE: stack.enter_context(load(directory, "torch", "cpu"))}
        sessions["ONNX Runtime fp32"] = stack.enter_context(load(directory, "onnxruntime", "cpu"))
        for precision in backend.native_precisions():
            if precision in ("fp32", "bf16"):
                session = stack.enter_context(load(directory, "openvino", precision=precision))
                sessions[f"OpenVINO {precision}"] = session
        bf16 = directory.with_name(f"{directory.name}_bf16")
        quantize_artifact(directory, bf16, Recipe("bf16"), targets=("cpu",), verify=False)
        session = stack.enter_context(load(bf16, "onnxruntime", "cpu"))
        if session.kernels:  # without them it computes in float32
            sessions[f"ONNX Runtime bf16 ({session.kernels})"] = session
        int8 = directory.with_name(f"{directory.name}_int8")
        images = directory.with_name("images.npy")
        np.save(images, sessions[BASELINE].random_feeds(CALIBRATION_IMAGES, seed=1)["input"])
        quantize_artifact(directory, int8, Recipe("int8"), images=images, verify=False)
        session = stack.enter_context(load(int8, "onnxruntime", "cpu"))
        if session.kernels:
            sessions[f"ONNX Runtime int8 ({session.kernels})"] = session
        sessions["ONNX Runtime int8"] = stack.enter_context(load(int8, "onnxruntime", "cpu", kernels=False))
        sessions["OpenVINO int8"] = stack.enter_context(load(int8, "openvino", "cpu"))
        if "bf16" in backend.native_precisions():
            session = stack.enter_context(load(int8, "openvino", "cpu", precision="bf16"))
            sessions["OpenVINO int8, bf16 for the rest"] = session
        candidates = [Candidate(name, session_run(session)) for name, session in sessions.items()]
        return timed(candidates, sessions[BASELINE].random_feeds(max(BATCHES))["input"], seconds, BASELINE)


def forms(directory: Path, seconds: float) -> list[dict[str, Any]]:
    """Return timings of the shift's two forms, and of the whole batch in one request of all threads."""
    lower_artifact(directory, "openvino", shift="slice", force=True, verify=False)
    sliced = load(directory, "openvino")
    lower_artifact(directory, "openvino", force=True, verify=False)
    ours = load(directory, "openvino")
    whole = default_openvino_run(directory / "model.openvino.onnx", cpu_count(), "fp32")
    candidates = [
        Candidate("conv", session_run(ours)),
        Candidate("slice", session_run(sliced)),
        Candidate("conv, one request", whole),
    ]
    with ours, sliced:
        return timed(candidates, ours.random_feeds(max(BATCHES))["input"], seconds, "conv")


def timed(candidates: list[Candidate], images: np.ndarray, seconds: float, baseline: str) -> list[dict[str, Any]]:
    """Return timings at each batch size, and how far each one's outputs are from the first one's."""
    rows = []
    for batch in BATCHES:
        feed = images[:batch]
        wanted = list(candidates[0].run(feed))
        errors = {one.name: output_error(list(one.run(feed)), wanted) for one in candidates}
        for timing in measure_interleaved(candidates, [feed], baseline=baseline, seconds=seconds):
            rows.append({**dataclasses.asdict(timing), "output_error": errors[timing.name]})
    return rows


def main() -> None:
    """Measure every model and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--seconds", type=float, default=60, help="per comparison and batch size")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "precision.json")
    options = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    for model in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch) / model
            export_model(model, directory, target=("cpu", "openvino"), verify=False)
            figures[model] = {"backends": backends(directory, options.seconds)}
            if model.startswith("asmlp"):
                figures[model]["forms"] = forms(directory, options.seconds)
        for kind, rows in figures[model].items():
            for row in rows:
                speed, baseline = 1 / row["time_over_baseline"], rows[0]["name"]
                print(
                    f"{model}, {kind}, batch {row['batch']}, {row['name']}: {row['images_per_s']:.1f} images/s, "
                    f"{speed:.2f} times {baseline}, outputs differ by {row['output_error']:.1e}",
                    flush=True,
                )
    result = {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": machine(),
        "threads": cpu_count(),
        "tools": tool_versions(["onnxruntime", "openvino", "torch", "numpy"]),
        "weights": "random, seed 0",
        "models": figures,
    }
    write_file(options.output, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
