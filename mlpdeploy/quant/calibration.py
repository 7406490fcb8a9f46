"""Calibration: what range each tensor's values have on real images, collected once for every recipe and target.

The float32 graph runs in ONNX Runtime with the wanted tensors as further outputs. Of each, the exact extremes and a
histogram are kept, so every calibrator and every target's form of int8 can be served later without the images. The
names of tensors are those of the canonical model, which every lowering keeps; layout and batch do not matter.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from mlpdeploy.artifact import write_file
from mlpdeploy.env import cpu_count, require
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import Manifest
from mlpdeploy.quant.calibrators import value_range
from mlpdeploy.quant.data import CalibrationData
from mlpdeploy.quant.histogram import BINS, Histogram, extremes
from mlpdeploy.quant.recipe import Calibrator

FORMAT = "mlpdeploy-calibration"
VERSION = 1

Progress = Callable[[int, int], None]  # (images done, images)


@dataclass
class Calibration:
    """Statistics of a model's tensors on some images.

    Attributes:
        model_sha256: from `model_identity`.
        data_sha256: from `CalibrationData`.
        images: how many.
        tensors: {name: histogram}. A tensor of which only the extremes were collected has no counts.
    """

    model_sha256: str
    data_sha256: str
    images: int
    tensors: dict[str, Histogram] = field(default_factory=dict)

    def range_of(self, tensor: str, calibrator: Calibrator, *, symmetric: bool) -> tuple[float, float]:
        """Return (low, high), see `value_range`.

        Raises:
            ArtifactError: the tensor was not observed, or only its extremes where the calibrator wants a histogram.
        """
        found = self.tensors.get(tensor)
        if found is None or (calibrator != "minmax" and not found.total):
            what = "does not know" if found is None else "knows only the extremes of"
            raise ArtifactError(f"the calibration {what} the tensor {tensor}", fix="calibrate again")
        return value_range(found, calibrator, symmetric=symmetric)

    def magnitudes(self) -> dict[str, float]:
        """Return the largest absolute value of each tensor."""
        return {name: max(-found.minimum, found.maximum) for name, found in self.tensors.items()}

    def to_json(self) -> str:
        """Return the file's text; the same statistics give the same text."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "bins": BINS,
            "model_sha256": self.model_sha256,
            "data_sha256": self.data_sha256,
            "images": self.images,
            "tensors": {name: _to_dict(self.tensors[name]) for name in sorted(self.tensors)},
        }
        return json.dumps(body, separators=(",", ":")) + "\n"


def model_identity(manifest: Manifest) -> str:
    """Return one checksum over a model's architecture and weights."""
    described = {key: manifest.model[key] for key in ("name", "config", "state_dict_sha256")}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def calibrate(
    model: ir.Model,
    tensors: Collection[str],
    data: CalibrationData,
    model_sha256: str,
    *,
    histograms: Collection[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Run the images through the model and return what its tensors hold.

    Args:
        model: float32, lowered for the CPU; not changed.
        tensors: names of values of it, or of its input.
        data: the images.
        model_sha256: from `model_identity`.
        histograms: those tensors that need more than their extremes, which cost a fraction of the time; None means all.
        threads: of ONNX Runtime; None means all.
        progress: called after each batch.

    Raises:
        UsageError: NaN or infinite values in a tensor, by name; an unknown tensor.
    """
    wanted = _in_graph_order(model, tensors)
    session, names = _observed_session(model, wanted, threads or cpu_count())
    spec = session.get_inputs()[0]
    rows = spec.shape[0] if isinstance(spec.shape[0], int) else 1
    counted = set(wanted if histograms is None else histograms)
    result = Calibration(model_sha256, data.sha256, data.count, {name: Histogram() for name in wanted})
    for done, batch in enumerate(data.batches(rows)):
        outputs = dict(zip(names, session.run(names, {spec.name: batch}), strict=True)) if names else {}
        outputs[spec.name] = batch
        for name in wanted:
            _observe(result.tensors[name], name, outputs.pop(name), name in counted)
        if progress:
            progress(min((done + 1) * rows, data.count), data.count)
    return result


def _in_graph_order(model: ir.Model, tensors: Collection[str]) -> list[str]:
    """Return the names as the graph computes them: of several tensors with NaN, the first is the cause."""
    values = [*model.graph.inputs, *(out for node in model.graph for out in node.outputs)]
    position = {str(value.name): index for index, value in enumerate(values)}
    unknown = [name for name in tensors if name not in position]
    if unknown:
        raise UsageError(f"no tensor {unknown[0]} in the model", "a value of the lowered graph")
    return sorted(set(tensors), key=position.__getitem__)


def _observe(statistics: Histogram, name: str, values: np.ndarray, counted: bool) -> None:
    low, high = extremes(values)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UsageError(
            f"the tensor {name} has NaN or infinite values on a calibration image",
            "finite activations",
            "check the weights and the images with: mlpdeploy verify",
        )
    if counted:
        statistics.add(values)
    else:
        statistics.minimum, statistics.maximum = min(statistics.minimum, low), max(statistics.maximum, high)


def _observed_session(model: ir.Model, wanted: Sequence[str], threads: int) -> tuple[Any, list[str]]:
    """Return an ONNX Runtime session of the model with the wanted tensors as its outputs, and their names."""
    ort = require("onnxruntime")
    inputs = {value.name for value in model.graph.inputs}
    names = [name for name in wanted if name not in inputs]
    observed = ir.external_data.load_to_model(model.clone())  # ONNX Runtime takes bytes without a folder
    by_name = {out.name: out for node in observed.graph for out in node.outputs}
    observed.graph.outputs.clear()
    for name in names:
        value = by_name[name]
        value.shape = None  # some passes leave shapes open that ONNX Runtime infers
        value.type = ir.TensorType(ir.DataType.FLOAT)
        observed.graph.outputs.append(value)
    if not names:
        observed.graph.outputs.append(next(iter(by_name.values())))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    proto = ir.to_proto(observed)
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]), names


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the file at once or not at all."""
    write_file(path, calibration.to_json().encode())


def read_calibration(
    path: str | Path, model_sha256: str, data_sha256: str | None, tensors: Iterable[str]
) -> Calibration:
    """Return a calibration that was written for this model, these images and at least these tensors.

    Args:
        path: the file.
        model_sha256: from `model_identity`.
        data_sha256: from `CalibrationData`; None takes the file's images, whichever they were.
        tensors: names that it must know.

    Raises:
        ArtifactError: it is no such file, of another version, model or data, or lacks a tensor; it says which.
    """
    path, again = Path(path), "delete it to calibrate again"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error})", "a calibration cache", again) from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ArtifactError(f"{path} is no calibration cache", f"format {FORMAT}")
    for key, wanted in (("version", VERSION), ("bins", BINS)):
        if body.get(key) != wanted:
            raise ArtifactError(f"{path} has {key} {body.get(key)}", f"{key} {wanted}", again)
    for what, key, sha256 in (("model", "model_sha256", model_sha256), ("images", "data_sha256", data_sha256)):
        if sha256 is not None and body.get(key) != sha256:
            raise ArtifactError(
                f"{path} is the calibration of another {what}"
                if what == "model"
                else f"{path} was made with other {what}",
                f"{key} {sha256[:12]}, not {str(body.get(key))[:12]}",
                again,
            )
    try:
        found = {name: _from_dict(value) for name, value in body["tensors"].items()}
        calibration = Calibration(body["model_sha256"], body["data_sha256"], int(body["images"]), found)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error!r})", fix=again) from error
    missing = [name for name in tensors if name not in found]
    if missing:
        raise ArtifactError(f"{path} lacks {len(missing)} tensors, the first of them {missing[0]}", fix=again)
    return calibration


def _to_dict(histogram: Histogram) -> dict[str, Any]:
    used = np.flatnonzero(histogram.counts)
    first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
    return {
        "minimum": histogram.minimum,
        "maximum": histogram.maximum,
        "exponent": histogram.exponent,
        "first": first,
        "counts": histogram.counts[first:last].tolist(),
    }


def _from_dict(value: dict[str, Any]) -> Histogram:
    counts = np.zeros(BINS, np.int64)
    first, found = int(value["first"]), np.asarray(value["counts"], np.int64)
    if first < 0 or first + len(found) > BINS or (found < 0).any():
        raise ValueError("counts outside of the histogram")
    counts[first : first + len(found)] = found
    return Histogram(float(value["minimum"]), float(value["maximum"]), int(value["exponent"]), counts)
