"""Images for the small models in tiny.py, and how to run and compare quantized ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from mlpdeploy.env import exact_sums
from mlpdeploy.manifest import TensorSpec

SPEC = TensorSpec("input", ("batch", 3, 32, 32), "float32", "NCHW")
IMAGES = np.random.default_rng(5).standard_normal((16, 3, 32, 32)).astype(np.float32)


def run(model: ir.Model, images: np.ndarray = IMAGES) -> np.ndarray:
    """Return the model's first output, computed by ONNX Runtime as it would be for a user."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for option in exact_sums().items():
        options.add_session_config_entry(*option)
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, {"input": images})[0]


def sqnr_db(wanted: np.ndarray, found: np.ndarray) -> float:
    """Return the ratio of signal to quantization noise."""
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))
