"""Which backends there are, what runs which file, and a Session on one of them."""

from __future__ import annotations

import importlib
from pathlib import Path

from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import Manifest
from mlpdeploy.runtime.session import LoadOptions, Session

# Backend name -> module with a class `BackendSession(directory, manifest, options)`.
BACKENDS = {
    "onnxruntime": "mlpdeploy.runtime.onnxruntime",
    "openvino": "mlpdeploy.runtime.openvino",
    "torch": "mlpdeploy.runtime.torch",
    "tensorrt": "mlpdeploy.runtime.tensorrt",
    "onnxruntime-tensorrt": "mlpdeploy.runtime.onnxruntime_tensorrt",
}
DEFAULT_BACKEND = "onnxruntime"
GPU_BACKENDS = ("tensorrt", "onnxruntime-tensorrt")  # run on a GPU or not at all
# Role of a file -> backends that run it, the first choice first. PyTorch takes the canonical file's weights only, and
# TensorRT the engine that was built of it.
ROLE_BACKENDS: dict[str, tuple[str, ...]] = {
    "canonical": ("onnxruntime", "torch", "onnxruntime-tensorrt"),
    "cpu": ("onnxruntime",),
    "openvino": ("openvino", "onnxruntime"),
    "tensorrt": ("onnxruntime", "tensorrt", "onnxruntime-tensorrt"),
    "tensorrt-rtx": ("onnxruntime", "tensorrt"),
}


def session_of(backend: str, directory: Path, manifest: Manifest, options: LoadOptions) -> Session:
    """Return a Session on one of `BACKENDS`, after checking that it can do what is asked for; see `loading.load`."""
    kind: type[Session] = importlib.import_module(BACKENDS[backend]).BackendSession
    if options.role is not None and backend not in (*ROLE_BACKENDS.get(options.role, BACKENDS), "torch"):
        able = " or ".join(ROLE_BACKENDS[options.role])
        raise UsageError(f"the file for {options.role} on {backend}", able, f"leave the role out for {backend}'s own")
    if options.precision not in (None, manifest.precision, *kind.precisions):
        raise UsageError(
            f"precision {options.precision} on {backend} for an artifact in {manifest.precision}",
            manifest.precision,
            "use --backend openvino, or quantize the artifact",
        )
    session: Session = kind(directory, manifest, options)  # type: ignore[arg-type]
    return session
