"""INT8 against float32 and against ONNX Runtime's own quantizer, on the same graphs: time, size, error, calibration.

Writes results/quantization_<model>.json. Run with:

    python benchmarks/quantization.py --model asmlp_t --model vip_s7

With --artifact DIR --calibration-data IMAGES --test FILE.npz (arrays `images` and `labels`) it measures accuracy on a
trained artifact instead, by calibrator and form.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from mlpdeploy.artifact import write_file
from mlpdeploy.bench.measure import Candidate, measure_interleaved
from mlpdeploy.env import cpu_count, git_commit, machine, tool_versions
from mlpdeploy.export.export import export_model
from mlpdeploy.export.lower import TARGETS, lower
from mlpdeploy.manifest import TensorSpec, read_manifest
from mlpdeploy.quant.calibration import Calibration, calibrate, model_identity
from mlpdeploy.quant.data import CalibrationData, calibration_images
from mlpdeploy.quant.products import quantized_tensors
from mlpdeploy.quant.qdq import INT8_FORMS, Int8Form, insert_qdq
from mlpdeploy.quant.recipe import CALIBRATORS, Recipe
from mlpdeploy.runtime.onnxruntime import inference_session

BATCHES = (1, 8)
ORT_METHODS = ("MinMax", "Percentile", "Entropy")


def lowered(directory: Path, expand_gelu: bool = False) -> ir.Model:
    """Return the artifact's float32 model, lowered for the CPU, with its weights in memory."""
    model = ir.external_data.load_to_model(ir.load(directory / "model.onnx"))
    lower(model, dataclasses.replace(TARGETS["cpu"], expand_gelu=expand_gelu), "conv")
    return model


def save(model: ir.Model, path: Path) -> Path:
    """Write the model as one file."""
    path.write_bytes(ir.to_proto(model).SerializeToString())
    return path


def ours(directory: Path, data: CalibrationData, path: Path) -> dict[str, Any]:
    """Calibrate and quantize with this project's code, in operators as the other quantizer; return what it took."""
    manifest, model = read_manifest(directory), lowered(directory)
    start = time.monotonic()
    calibration = calibrate(model, quantized_tensors(model), data, model_identity(manifest))
    seconds = time.monotonic() - start
    report = insert_qdq(model, INT8_FORMS["cpu"], calibration, Recipe("int8"))
    save(model, path)
    return {"calibration_seconds": round(seconds, 1), **report.to_dict()}


def onnxruntime_quantizer(
    directory: Path, data: CalibrationData, path: Path, method: str, gelu: bool
) -> dict[str, Any]:
    """Quantize with onnxruntime.quantization in the setting that was fastest here; return what it took.

    Args:
        gelu: with Gelu as one operator, as our graph has it; else as the operators of the float32 file.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images: Iterator[np.ndarray] = data.batches(1)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"input": image}

    model = ir.to_proto(lowered(directory, expand_gelu=not gelu))
    constants = {item.name for item in model.graph.initializer}
    depthwise = [n.name for n in model.graph.node if any(a.name == "group" and a.i > 1 for a in n.attribute)]
    computed = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[1] not in constants]
    start = time.monotonic()
    quantize_static(
        onnx.load_from_string(model.SerializeToString()),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        nodes_to_exclude=depthwise + computed,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    return {"calibration_and_quantization_seconds": round(time.monotonic() - start, 1)}


def in_a_process(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return what the function returns, with the peak memory of a process that did nothing else."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()

    def run() -> None:
        result = work(*arguments)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        queue.put({**result, "peak_memory_mib": round(peak_mib)})

    process = context.Process(target=run)
    process.start()
    result = queue.get()
    process.join()
    return dict(result)


def random_images(path: Path, count: int) -> CalibrationData:
    """Return images of noise: they show cost, not accuracy."""
    np.save(path, np.random.default_rng(0).standard_normal((count, 3, 224, 224)).astype(np.float32))
    return calibration_images(path, None, TensorSpec("input", ("batch", 3, 224, 224), "float32", "NCHW"), count)


def speed(name: str, scratch: Path, images: int, seconds: float) -> dict[str, Any]:
    """Return times, sizes and calibration cost of one published model with random weights."""
    directory = scratch / name
    export_model(name, directory, verify=False)
    data = random_images(scratch / "images.npy", images)
    files = {"fp32": directory / "model.cpu.onnx", "int8": scratch / "int8.onnx"}
    cost = {"int8": in_a_process(ours, directory, data, files["int8"])}
    for title, method, gelu in (
        ("ORT quantizer", "MinMax", False),
        ("ORT quantizer, Gelu operator", "MinMax", True),
        ("ORT quantizer, entropy", "Entropy", True),
    ):
        files[title] = scratch / f"{title}.onnx"
        cost[title] = in_a_process(onnxruntime_quantizer, directory, data, files[title], method, gelu)
    sessions = {title: inference_session(path) for title, path in files.items() if "entropy" not in title}

    def candidate(session: Any) -> Callable[[np.ndarray], list[np.ndarray]]:
        return lambda x: list(session.run(None, {"input": x}))

    candidates = [Candidate(title, candidate(session)) for title, session in sessions.items()]
    timings = []
    for batch in BATCHES:
        feed = np.random.default_rng(1).standard_normal((batch, 3, 224, 224)).astype(np.float32)
        timings += measure_interleaved(candidates, [feed], baseline="fp32", seconds=seconds)
    feed = np.load(scratch / "images.npy")[:8]
    wanted = sessions["fp32"].run(None, {"input": feed})[0]
    return {
        "model": f"{name}, random weights, seed 0",
        "calibration_images": images,
        "cost": cost,
        "bytes": {title: path.stat().st_size for title, path in files.items()} | {"fp32": _artifact_bytes(directory)},
        "sqnr_db": {title: sqnr_db(wanted, s.run(None, {"input": feed})[0]) for title, s in sessions.items()},
        "timings": [dataclasses.asdict(timing) for timing in timings],
    }


def _artifact_bytes(directory: Path) -> int:
    return sum((directory / f"model.cpu.{suffix}").stat().st_size for suffix in ("onnx", "weights"))


def sqnr_db(wanted: np.ndarray, found: np.ndarray) -> float | None:
    """Return the ratio of signal to noise of logits; None for equal ones."""
    noise = float(((wanted - found) ** 2).sum())
    return round(float(10 * np.log10((wanted**2).sum() / noise)), 2) if noise else None


def accuracy(directory: Path, source: Path, test: Path, images: int, scratch: Path) -> dict[str, Any]:
    """Return top-1, agreement and error of a trained artifact, by calibrator and form, all run in ONNX Runtime."""
    manifest = read_manifest(directory)
    data = calibration_images(source, manifest.preprocessing, manifest.inputs[0], images)
    labels = np.load(test)["labels"]
    judge = calibration_images(test, manifest.preprocessing, manifest.inputs[0], len(labels))
    inputs = np.concatenate(list(judge.batches(1)))
    model = lowered(directory)
    calibration = calibrate(model, quantized_tensors(model), data, model_identity(manifest))
    wanted = logits(save(model, scratch / "fp32.onnx"), inputs)
    rows = [{"name": "fp32", **judged(wanted, wanted, labels)}]
    for target in ("cpu", "openvino", "tensorrt"):
        for calibrator in CALIBRATORS:
            found = logits(_quantized(directory, calibration, INT8_FORMS[target], calibrator, scratch), inputs)
            rows.append({"name": f"{target}, {calibrator}", **judged(wanted, found, labels)})
    for method in ORT_METHODS:
        path = scratch / f"{method}.onnx"
        onnxruntime_quantizer(directory, data, path, method, gelu=True)
        rows.append({"name": f"ORT quantizer, {method}", **judged(wanted, logits(path, inputs), labels)})
    return {"model": manifest.model["name"], "calibration_images": data.count, "rows": rows}


def _quantized(directory: Path, calibration: Calibration, form: Int8Form, calibrator: str, scratch: Path) -> Path:
    model = lowered(directory)
    insert_qdq(model, form, calibration, Recipe("int8", calibrator=calibrator))  # type: ignore[arg-type]
    return save(model, scratch / "quantized.onnx")


def logits(path: Path, inputs: np.ndarray) -> np.ndarray:
    """Return the model's result for all rows, a few at a time."""
    session = inference_session(path)
    return np.concatenate([session.run(None, {"input": inputs[i : i + 50]})[0] for i in range(0, len(inputs), 50)])


def judged(wanted: np.ndarray, found: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return top-1 and agreement in percent, and the error in dB."""
    return {
        "top1_percent": round(100 * float((found.argmax(1) == labels).mean()), 2),
        "agreement_percent": round(100 * float((found.argmax(1) == wanted.argmax(1)).mean()), 2),
        "sqnr_db": sqnr_db(wanted, found),
    }


def main() -> None:
    """Measure and write the results files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="a published model; may be repeated")
    parser.add_argument("--artifact", type=Path, help="a trained artifact")
    parser.add_argument("--calibration-data", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--images", type=int, default=64, help="calibration images")
    parser.add_argument("--seconds", type=float, default=40, help="per model and batch size")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.model or ([] if options.artifact else ["asmlp_t", "vip_s7"]):
        with tempfile.TemporaryDirectory() as scratch:
            write(options.output, name, speed(name, Path(scratch), options.images, options.seconds))
    if options.artifact:
        with tempfile.TemporaryDirectory() as scratch:
            found = accuracy(options.artifact, options.calibration_data, options.test, options.images, Path(scratch))
            write(options.output, f"accuracy_{found['model']}", found)


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Write a results file and print the essentials."""
    about = {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": machine(),
        "threads": cpu_count(),
        "tools": tool_versions(["onnxruntime", "onnx", "numpy", "torch"]),
    }
    write_file(folder / f"quantization_{name}.json", (json.dumps({**about, **result}, indent=1) + "\n").encode())
    for row in result.get("rows", []):
        print(f"{row['name']}: top-1 {row['top1_percent']} %, agrees {row['agreement_percent']} %, {row['sqnr_db']} dB")
    for timing in result.get("timings", []):
        ratio = timing["time_over_baseline"]
        print(f"{name}, batch {timing['batch']}, {timing['name']}: {timing['p50_ms']:.1f} ms, {ratio:.2f}x the time")


if __name__ == "__main__":
    main()
