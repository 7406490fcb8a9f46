"""What is collected, in how much memory, and which caches are refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from calibration_inputs import IMAGES, SPEC

from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.quant.calibration import Calibration, calibrate, read_calibration, write_calibration
from mlpdeploy.quant.data import CalibrationData, calibration_images
from mlpdeploy.quant.histogram import BINS, HALF
from mlpdeploy.quant.products import quantized_tensors

Lowered = Callable[..., ir.Model]
Saved = Callable[[str, np.ndarray], Path]
GELU = "layers.0.blocks.0.mlp/Gelu:0"
COUNTS = {"minimum": -1.0, "maximum": 1.0, "exponent": 0, "first": HALF, "counts": [1, 2]}


def test_it_sees_what_the_model_computes(lowered: Lowered, calibrations: dict[str, Calibration]) -> None:
    import onnxruntime as ort

    model = lowered("asmlp")
    value = next(out for node in model.graph for out in node.outputs if out.name == GELU)
    model.graph.outputs.append(value)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run([GELU], {"input": IMAGES})[0]
    seen = calibrations["asmlp"].tensors[GELU]
    assert (seen.minimum, seen.maximum) == pytest.approx((found.min(), found.max()), rel=1e-5)
    assert seen.total == found.size
    edges = (np.arange(-HALF, HALF + 1)) * seen.width
    assert np.abs(seen.counts - np.histogram(found, edges)[0]).sum() < 0.001 * found.size


def test_the_input_is_a_tensor_like_others(calibrations: dict[str, Calibration]) -> None:
    seen = calibrations["asmlp"].tensors["input"]
    assert (seen.minimum, seen.maximum, seen.total) == (IMAGES.min(), IMAGES.max(), IMAGES.size)


@pytest.mark.parametrize("family", ["asmlp", "vip"])
def test_extremes_only(lowered: Lowered, calibrations: dict[str, Calibration], saved: Saved, family: str) -> None:
    model = lowered(family)
    names = [str(out.name) for node in model.graph for out in node.outputs]
    data = calibration_images(saved("x.npy", IMAGES), None, SPEC, 512)
    found = calibrate(model, names, data, "model", histograms=(), threads=1)
    magnitudes = found.magnitudes()
    assert set(magnitudes) == set(names)
    for name, wanted in calibrations[family].magnitudes().items():
        if name != "input":
            assert magnitudes[name] == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(ArtifactError, match="knows only the extremes of"):
        found.range_of(names[0], "mse", symmetric=False)
    assert found.range_of(names[0], "minmax", symmetric=True)[1] == magnitudes[names[0]]


@pytest.mark.parametrize("family", ["asmlp", "vip"])
@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_every_lowering_has_the_calibrated_tensors(lowered: Lowered, family: str, target: str) -> None:
    wanted = quantized_tensors(lowered(family, "cpu"))
    assert set(quantized_tensors(lowered(family, target))) == set(wanted)
    assert set(quantized_tensors(lowered(family, "cpu", "slice"))) == set(wanted)


def test_memory_does_not_grow_with_the_images(lowered: Lowered) -> None:
    model = lowered("asmlp")

    def peak(count: int) -> int:
        rng = np.random.default_rng(0)
        data = CalibrationData(
            count, "x", _images=lambda: (rng.standard_normal((3, 32, 32)).astype(np.float32) for _ in range(count))
        )
        tracemalloc.start()
        calibrate(model, quantized_tensors(model), data, "model", threads=1)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(4)
    few, many = peak(8), peak(160)
    assert many < 1.1 * few


def test_array_files_are_read_row_by_row(saved: Saved) -> None:
    images = np.random.default_rng(0).standard_normal((200, 3, 32, 32)).astype(np.float32)
    for path in (saved("big.npy", images), saved("big.npz", images)):
        tracemalloc.start()
        for _ in calibration_images(path, None, SPEC, 512).batches(2):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < images.nbytes / 8


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_activations_names_the_tensor(lowered: Lowered, saved: Saved, value: float) -> None:
    model = lowered("asmlp")
    bias = next(v for name, v in model.graph.initializers.items() if name.endswith("blocks.0.mlp.fc2.bias"))
    array = bias.const_value.numpy().copy()  # type: ignore[union-attr]
    array[3] = value
    bias.const_value = ir.tensor(array, name=bias.name)
    data = calibration_images(saved("x.npy", IMAGES), None, SPEC, 512)
    with pytest.raises(UsageError, match=r"the tensor layers\.0\.blocks\.0\.mlp\.fc2/Conv:0 has NaN or infinite"):
        calibrate(model, quantized_tensors(model), data, "model", threads=1)


def test_unknown_tensor(lowered: Lowered, saved: Saved) -> None:
    data = calibration_images(saved("x.npy", IMAGES), None, SPEC, 512)
    with pytest.raises(UsageError, match="no tensor nowhere"):
        calibrate(lowered("asmlp"), ["nowhere"], data, "model")


def test_the_cache_comes_back_with_the_same_bytes(calibrations: dict[str, Calibration], tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, calibrations["vip"])
    found = read_calibration(path, "model", calibrations["vip"].data_sha256, calibrations["vip"].tensors)
    assert found.to_json() == calibrations["vip"].to_json()
    for name in found.tensors:
        for calibrator in ("minmax", "percentile", "entropy", "mse"):
            assert found.range_of(name, calibrator, symmetric=True) == calibrations["vip"].range_of(  # type: ignore[arg-type]
                name,
                calibrator,  # type: ignore[arg-type]
                symmetric=True,
            )


def test_calibrating_again_gives_the_same_bytes(
    lowered: Lowered, calibrations: dict[str, Calibration], saved: Saved
) -> None:
    model = lowered("asmlp")
    data = calibration_images(saved("x.npy", IMAGES), None, SPEC, 512)
    again = calibrate(model, quantized_tensors(model), data, "model", threads=1)
    assert again.to_json() == calibrations["asmlp"].to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_sha256": "other"}, "calibration of another model"),
        ({"data_sha256": "other"}, "made with other images"),
        ({"version": 0}, "has version 0; wanted version 1"),
        ({"bins": 2048}, "has bins 2048"),
        ({"format": "?"}, "no calibration cache"),
        ({"tensors": {}}, "lacks 30 tensors"),
        ({"tensors": {"input": {"minimum": 1}}}, "is damaged"),
        ({"tensors": {"input": {**COUNTS, "first": -1}}}, "counts outside of the histogram"),
        ({"tensors": {"input": {**COUNTS, "first": BINS - 1}}}, "counts outside of the histogram"),
        ({"tensors": {"input": {**COUNTS, "counts": [3, -1]}}}, "counts outside of the histogram"),
    ],
)
def test_caches_that_are_refused(
    calibrations: dict[str, Calibration], tmp_path: Path, changes: dict, message: str
) -> None:
    calibration, path = calibrations["asmlp"], tmp_path / "calibration.json"
    path.write_text(json.dumps({**json.loads(calibration.to_json()), **changes}))
    with pytest.raises(ArtifactError, match=message):
        read_calibration(path, "model", calibration.data_sha256, calibration.tensors)


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_calibration(path, "model", None, [])
