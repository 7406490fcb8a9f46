"""ONNX Runtime on a GPU, for the two backends that run there: one session, its providers, arrays on the GPU.

ONNX Runtime goes on with the CPU where a provider's libraries cannot be loaded, and says so in its log only. Here that
is an error that names the libraries. Never run on a GPU yet.
"""

from __future__ import annotations

import ctypes
import io
import sys
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlpdeploy.env import cpu_count, require
from mlpdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from mlpdeploy.manifest import TensorSpec
from mlpdeploy.runtime.cuda.arrays import DeviceArray, device_array
from mlpdeploy.runtime.cuda.interface import open_cuda
from mlpdeploy.runtime.feeds import Arrays

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
_CPU = "CPUExecutionProvider"
_TITLES = {CUDA: "CUDA", TENSORRT: "TensorRT"}
_LIBRARIES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}
_INSTALL = "run: pip uninstall onnxruntime && pip install 'mlpdeploy[gpu]', or use --device cpu"
# For the libraries of CUDA; TensorRT's own come with its package.
_DRIVER = "libcuda.so.1"
_PACKAGES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's execution providers, with its options as it takes them."""

    name: str
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A model: a file, or its bytes with the folder in which its weights lie."""

    path: Path
    model: bytes | None = None


def cuda_provider(index: int) -> Provider:
    """Return the CUDA provider for one GPU, in float32 as it is: TF32 would round products to ten bits."""
    return Provider(CUDA, {"device_id": str(index), "use_tf32": "0"})


def has_provider(name: str) -> bool:
    """Return whether the installed ONNX Runtime was built with a provider; its libraries may be missing."""
    return name in require("onnxruntime").get_available_providers()


def gpu_index(device: str | None, backend: str) -> int:
    """Return the GPU of `cuda` or `cuda:1`; None is the first.

    Raises:
        UsageError: another device.
    """
    kind, _, number = (device or "cuda").partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise UsageError(f"device {device} on the backend {backend}", "cuda, or cuda:1 for the second GPU")
    return int(number or 0)


class GpuRunner:
    """A session of ONNX Runtime whose first provider is on a GPU.

    Attributes:
        session: the `onnxruntime.InferenceSession`.
        index: of the GPU.
        nodes: {provider: how many nodes it runs}; empty where this ONNX Runtime does not tell.
    """

    def __init__(self, source: Source, providers: list[Provider], index: int) -> None:
        self.session = open_on_gpu(source, providers)
        self.index = index
        self.nodes = _nodes(self.session)
        if self.nodes.get(_CPU):
            count = f"{self.nodes[_CPU]} of {sum(self.nodes.values())} nodes"
            sys.stderr.write(f"mlpdeploy: {count} run on the CPU, not on {providers[0].name}\n")

    def array(self, value: Any, what: str) -> DeviceArray:
        """Return an array on the GPU as ours; see `device_array`."""
        cuda = open_cuda(self.index)
        with cuda.current():  # PyTorch refuses where another GPU is the current one
            return device_array(value, what, cuda)

    def run(self, feeds: Arrays, into: Arrays | None, outputs: tuple[TensorSpec, ...]) -> Arrays:
        """Run once. Arrays on the GPU are bound where they are; a result without a place is copied to numpy.

        The session has a stream of its own that nothing outside knows: what other streams still write is waited for.
        """
        self._wait([*feeds.values(), *(into or {}).values()])
        binding = self.session.io_binding()
        for name, array in feeds.items():
            if isinstance(array, DeviceArray):
                where = ("cuda", self.index, array.dtype.type, array.shape, array.pointer)
                binding.bind_input(name, *where)
            else:
                binding.bind_cpu_input(name, array)
        for spec in outputs:
            target = None if into is None else into[spec.name]
            if isinstance(target, DeviceArray):
                where = ("cuda", self.index, target.dtype.type, target.shape, target.pointer)
                binding.bind_output(spec.name, *where)
            elif target is not None:
                binding.bind_output(spec.name, "cpu", 0, target.dtype.type, target.shape, target.ctypes.data)
            else:
                binding.bind_output(spec.name, "cpu")
        self.session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        if into is not None:
            return into
        return {spec.name: array for spec, array in zip(outputs, binding.copy_outputs_to_cpu(), strict=True)}

    def _wait(self, arrays: list[Any]) -> None:
        """Wait on the host for whoever writes the arrays on the GPU."""
        pending = [array for array in arrays if isinstance(array, DeviceArray)]
        if not pending:
            return
        cuda = open_cuda(self.index)
        with cuda.current():
            stream = cuda.create_stream()
            try:
                for array in pending:
                    array.wait(cuda, stream)
                cuda.synchronize(stream)
            finally:
                cuda.destroy_stream(stream)


def open_on_gpu(source: Source, providers: list[Provider]) -> Any:
    """Return an `onnxruntime.InferenceSession` with these providers, and the CPU's behind them.

    Raises:
        UsageError: this ONNX Runtime was built without a provider.
        MissingDependencyError: a provider's libraries are missing, or there is no GPU.
        ArtifactError: the file cannot be loaded.
    """
    ort = require("onnxruntime")
    for provider in providers:
        if not has_provider(provider.name):
            raise UsageError(f"this ONNX Runtime has no {_TITLES[provider.name]} provider", "onnxruntime-gpu", _INSTALL)
    if hasattr(ort, "preload_dlls"):  # loads CUDA and cuDNN from their packages, which no loader's path names
        with redirect_stdout(io.StringIO()):  # what cannot be loaded is named by `missing_libraries`
            ort.preload_dlls()
    options = ort.SessionOptions()
    options.intra_op_num_threads = cpu_count()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    model: Any = str(source.path)
    if source.model is not None:
        model = source.model
        entry = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(entry, str(source.path.parent))
    asked = [(provider.name, provider.options) for provider in providers]
    try:
        with redirect_stdout(sys.stderr):  # it tells there of its fallback, and stdout is for data
            session = ort.InferenceSession(model, options, providers=[*asked, _CPU])
    except Exception as error:  # ONNX Runtime's errors have no common class but Exception
        first = str(error).strip().splitlines()[0]
        raise ArtifactError(
            f"ONNX Runtime {ort.__version__} cannot load {source.path} on the GPU ({first})",
            fix="see: mlpdeploy doctor; if it finds nothing, export the model again",
        ) from error
    running = session.get_providers()
    for provider in providers:
        if provider.name not in running:
            raise _did_not_start(ort, provider.name)
    return session


def _did_not_start(ort: Any, name: str) -> MissingDependencyError:
    """Return the error for a provider that ONNX Runtime left out, with the libraries that it lacks."""
    missing = missing_libraries(Path(ort.__file__).parent / "capi" / _LIBRARIES[name])
    if not missing:
        return MissingDependencyError(
            f"ONNX Runtime {ort.__version__} does not start its {name}, though its libraries are there",
            "a GPU and a driver that is new enough",
            "see: mlpdeploy doctor",
        )
    tensorrt = next((library for library in missing if library.startswith("libnvinfer")), "")
    steps = [f"run: {_PACKAGES}"] if set(missing) != {_DRIVER} else []
    if tensorrt:
        steps.append(f"pip install 'tensorrt=={tensorrt.rpartition('.')[2]}.*' and put its folder on LD_LIBRARY_PATH")
    if _DRIVER in missing:
        steps.append("install the NVIDIA driver")
    fix = ", ".join(steps)
    return MissingDependencyError(
        f"ONNX Runtime {ort.__version__} does not start its {name}: {', '.join(missing)} cannot be loaded", fix=fix
    )


def missing_libraries(library: Path) -> list[str]:
    """Return which of the libraries that one asks for cannot be loaded."""
    from mlpdeploy.plugins.elf import needed_libraries

    missing = []
    for name in needed_libraries(library) if library.is_file() else (library.name,):
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing


def _nodes(session: Any) -> dict[str, int]:
    """Return how many nodes each provider runs."""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # since ONNX Runtime 1.24
        return {}
    found: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        found[part.ep_name] += len(part.get_nodes())
    return dict(found)
