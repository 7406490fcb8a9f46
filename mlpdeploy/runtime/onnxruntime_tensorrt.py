"""The backend `onnxruntime-tensorrt`: ONNX Runtime's TensorRT provider, which builds its engine when it is first asked.

For those whose programs have ONNX Runtime already; `mlpdeploy build` and the backend `tensorrt` check and measure more.
The engines and timings that it makes stay in the artifact's folder, in `engines/onnxruntime`. Never run on a GPU yet.
"""

from __future__ import annotations

import os
from pathlib import Path

from mlpdeploy.artifact import disk_errors
from mlpdeploy.env import installed_version, require
from mlpdeploy.errors import MissingDependencyError, MlpDeployError, UsageError
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
_LISTS_PLUGINS = (1, 22)
TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"


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
        with_plugin = entry.shift == "plugin"
        if with_plugin:
            _check_plugins_are_listed()
        _load_libraries(with_plugin)
        most = options.max_batch or DEFAULT_MAX_BATCH
        provider = Provider(
            TENSORRT,
            {
                "device_id": str(index),
                **_cache(directory / CACHE, f"{_float32_as_it_is(manifest)}-{entry.sha256[:_KEY_DIGITS]}"),
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


def _load_libraries(with_plugin: bool) -> None:
    """Load TensorRT, and our plugin into the registry that ONNX Runtime's TensorRT asks: the same one in this process.

    TensorRT's package loads the libraries that the provider asks for by name. The plugin is loaded for a file without
    one too: ONNX Runtime lists the plugins once in a process, before its first session. Its own option for them only
    opens a library, which registers nothing.

    Raises:
        MlpDeployError: one is not there, or is refused, and the file has plugin nodes.
    """
    from mlpdeploy.plugins.find import find_plugin_library

    try:
        load_tensorrt("tensorrt").load_plugins(find_plugin_library("IPluginV3"))
    except MlpDeployError:
        if with_plugin:
            raise


def _check_plugins_are_listed() -> None:
    """Raise MissingDependencyError if this ONNX Runtime lists no plugins with TensorRT's newer interface."""
    found = installed_version("onnxruntime")
    if found is not None and tuple(map(int, found.split(".")[:2])) < _LISTS_PLUGINS:
        raise MissingDependencyError(
            f"ONNX Runtime {found} does not know TensorRT's newer plugins",
            ".".join(map(str, _LISTS_PLUGINS)) + " or newer",
            "run: pip install --upgrade onnxruntime-gpu, or use the backend tensorrt",
        )


def _float32_as_it_is(manifest: Manifest) -> str:
    """Have NVIDIA's libraries compute float32 as it is, and return how the engines are called that follow.

    The provider lets TensorRT round products to ten bits (TF32) and has no option against it; this variable has, for
    all that the process computes on a GPU. Who has set it to something else keeps that.
    """
    if "fp32" not in (manifest.precision, manifest.float_precision):
        return "half"
    return "ieee" if os.environ.setdefault(TF32_VARIABLE, "0") == "0" else "tf32"


def _cache(folder: Path, key: str) -> dict[str, str]:
    """Return the options that keep engines and timings; ONNX Runtime adds GPU and version to the names."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return {
        "trt_engine_cache_enable": _ON,
        "trt_engine_cache_path": str(folder),
        "trt_engine_cache_prefix": f"mlpdeploy-{key}",
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
