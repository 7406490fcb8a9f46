"""The backend `onnxruntime-tensorrt`: ONNX Runtime's TensorRT provider, which builds its engine when it is first asked.

For those whose programs have ONNX Runtime already; `mlpdeploy build` and the backend `tensorrt` check and measure more.
The engines and timings that it makes stay in the artifact's folder, in `engines/onnxruntime`. Never run on a GPU yet.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mlpdeploy.artifact import disk_errors
from mlpdeploy.env import require
from mlpdeploy.errors import MlpDeployError, UsageError
from mlpdeploy.manifest import Manifest, TensorSpec, checked_file
from mlpdeploy.runtime.onnxruntime import BackendSession as OnnxRuntimeSession
from mlpdeploy.runtime.onnxruntime_gpu import TENSORRT, Provider, Source, cuda_provider, gpu_index
from mlpdeploy.runtime.session import DEFAULT_MAX_BATCH, LoadOptions
from mlpdeploy.runtime.tensorrt_api import load_tensorrt

ROLE = "tensorrt"
CACHE = Path("engines") / "onnxruntime"
# The domain under which ONNX Runtime knows the plugins in TensorRT's registry.
PLUGIN_DOMAIN, OUR_DOMAIN = "trt.plugins", "mlpdeploy"
_ON = "True"  # how a switch of this provider is written: ONNX Runtime's Python package refuses 1
_OPTIMUM = 8
_KEY_DIGITS = 16


class BackendSession(OnnxRuntimeSession):
    """A Session on ONNX Runtime's TensorRT provider; what TensorRT does not take, the CUDA provider computes."""

    backend = "onnxruntime-tensorrt"

    def _gpu_source(
        self, directory: Path, manifest: Manifest, options: LoadOptions
    ) -> tuple[str, Source, list[Provider], int]:
        index = gpu_index(options.device, self.backend)
        if options.threads is not None:
            raise UsageError(f"threads on the backend {self.backend}", fix="leave the number of threads out")
        name = manifest.file_for(options.role or ROLE)
        path, entry = checked_file(directory, manifest, name), manifest.files[name]
        with suppress(MlpDeployError):  # TensorRT's package loads the libraries that the provider asks for by name
            load_tensorrt("tensorrt")
        with_plugin = entry.shift == "plugin"
        if with_plugin:
            _load_plugin()
        most = options.max_batch or DEFAULT_MAX_BATCH
        provider = Provider(
            TENSORRT,
            {
                "device_id": str(index),
                **_cache(directory / CACHE, entry.sha256),
                **_precision(manifest),
                **_profile(manifest.inputs, most),
            },
        )
        model = with_plugin_domain(path) if with_plugin else None
        return name, Source(path, model), [provider, cuda_provider(index)], index


def with_plugin_domain(path: Path) -> bytes:
    """Return a model whose nodes of ours stand in the domain in which ONNX Runtime looks for TensorRT's plugins."""
    onnx = require("onnx")
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.domain == OUR_DOMAIN:
            node.domain = PLUGIN_DOMAIN
    for entry in model.opset_import:
        if entry.domain == OUR_DOMAIN:
            entry.domain = PLUGIN_DOMAIN
    return bytes(model.SerializeToString())


def _load_plugin() -> None:
    """Load our library into the registry that ONNX Runtime's TensorRT asks: it is the same one in this process.

    ONNX Runtime's own option for plugins only opens a library, which registers nothing.
    """
    from mlpdeploy.plugins.find import find_plugin_library

    load_tensorrt("tensorrt").load_plugins(find_plugin_library("IPluginV3"))


def _cache(folder: Path, sha256: str) -> dict[str, str]:
    """Return the options that keep engines and timings; ONNX Runtime adds GPU and version to the names."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return {
        "trt_engine_cache_enable": _ON,
        "trt_engine_cache_path": str(folder),
        "trt_engine_cache_prefix": f"mlpdeploy-{sha256[:_KEY_DIGITS]}",
        "trt_timing_cache_enable": _ON,
        "trt_timing_cache_path": str(folder),
    }


def _precision(manifest: Manifest) -> dict[str, str]:
    """Return the options that allow the types which the graph has already; this provider's networks are not typed."""
    kinds = {manifest.precision, manifest.float_precision} - {"fp32"}
    return {f"trt_{kind}_enable": _ON for kind in sorted(kinds)}


def _profile(inputs: tuple[TensorSpec, ...], most: int) -> dict[str, str]:
    """Return one profile for the batch, so that a new batch size builds no new engine.

    Raises:
        UsageError: an image size is open: its range cannot be told.
    """
    if isinstance(inputs[0].shape[0], int):
        return {}
    shapes: dict[str, list[str]] = {"min": [], "opt": [], "max": []}
    for spec in inputs:
        sizes = spec.shape[1:]
        if any(not isinstance(size, int) for size in sizes):
            raise UsageError(
                f"the open image size of {spec.name!r} on the backend onnxruntime-tensorrt",
                "a model with a fixed image size",
                "export with --image-size, or use mlpdeploy build and the backend tensorrt",
            )
        for kind, rows in (("min", 1), ("opt", min(_OPTIMUM, most)), ("max", most)):
            shapes[kind].append(f"{spec.name}:{'x'.join(map(str, (rows, *sizes)))}")
    return {f"trt_profile_{kind}_shapes": ",".join(found) for kind, found in shapes.items()}
