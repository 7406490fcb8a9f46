"""A stand-in for onnxruntime-gpu on the simulated GPU: the installed onnxruntime with two providers more.

It computes on the CPU with the real one, and refuses what the real one refuses: a provider option that does not exist,
a pointer that is no memory, a binding of the wrong size. What a session still reads or writes must be allocated when it
runs. The names of the options are those in the provider libraries of onnxruntime-gpu 1.31.1, where they were looked up.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from fakes.fake_cuda import Device, require

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
OPTIONS = {
    CUDA: {"device_id", "use_tf32", "user_compute_stream", "gpu_mem_limit"},
    TENSORRT: {
        "device_id", "trt_engine_cache_enable", "trt_engine_cache_path", "trt_engine_cache_prefix",
        "trt_timing_cache_enable", "trt_timing_cache_path", "trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable",
        "trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes", "trt_extra_plugin_lib_paths",
    },
}  # fmt: skip


class FakeOnnxRuntime:
    """What is installed; `broken` names providers whose libraries cannot be loaded, `on_cpu` nodes left to the CPU."""

    def __init__(self, device: Device, folder: Path) -> None:
        self.device, self.broken, self.on_cpu = device, set[str](), 0
        self.sessions: list[dict[str, Any]] = []
        self.module = ModuleType("onnxruntime")
        self.module.__file__ = str(folder / "__init__.py")
        self.module.__version__ = onnxruntime.__version__  # type: ignore[attr-defined]
        self.module.SessionOptions = onnxruntime.SessionOptions  # type: ignore[attr-defined]
        self.module.get_available_providers = lambda: [TENSORRT, CUDA, CPU]  # type: ignore[attr-defined]
        self.module.InferenceSession = self._session  # type: ignore[attr-defined]
        self.module.preload_dlls = lambda: print("preloading")  # type: ignore[attr-defined]  # noqa: T201

    def _session(self, model: Any, options: Any, providers: list[Any]) -> Any:
        running = []
        for provider in providers:
            name, values = provider if isinstance(provider, tuple) else (provider, {})
            require(set(values) <= OPTIONS.get(name, set()), f"{name} has no option {set(values)}")
            require(all(isinstance(value, str) for value in values.values()), "provider options are texts")
            switches = {value for option, value in values.items() if option.startswith("trt_") and "_enable" in option}
            require(switches <= {"True", "False"}, "the switches of the TensorRT provider are True or False")
            if name not in self.broken:
                running.append(name)
        self.sessions.append({"model": model, "providers": providers})
        if isinstance(model, bytes):
            model = _without_plugins(model, options)
        real = onnxruntime.InferenceSession(model, options, providers=[CPU])
        return _Session(self, real, running)


def _without_plugins(model: bytes, options: Any) -> bytes:
    """Return a model that the CPU can run too: TensorRT's plugin gets the operator's own function."""
    from mlpdeploy.ops.axial_shift import axial_shift_function

    entry = "session.model_external_initializers_file_folder_path"
    require(Path(options.get_session_config_entry(entry)).is_dir(), "the folder of the weights")
    loaded = onnx.load_from_string(model)
    require(any(node.domain == "trt.plugins" for node in loaded.graph.node), "a plugin in its own domain")
    for node in loaded.graph.node:
        node.domain = node.domain.replace("trt.plugins", "mlpdeploy")
    for known in loaded.opset_import:
        known.domain = known.domain.replace("trt.plugins", "mlpdeploy")
    opset = next(known.version for known in loaded.opset_import if not known.domain)
    loaded.functions.append(axial_shift_function("zero", opset))
    return bytes(loaded.SerializeToString())


class _Session:
    def __init__(self, fake: FakeOnnxRuntime, real: Any, running: list[str]) -> None:
        self._fake, self._real, self._running = fake, real, running

    def get_providers(self) -> list[str]:
        return self._running

    def get_inputs(self) -> Any:
        return self._real.get_inputs()

    def get_outputs(self) -> Any:
        return self._real.get_outputs()

    def get_provider_graph_assignment_info(self) -> list[Any]:
        parts = [(self._running[0], 9), *([(CPU, self._fake.on_cpu)] if self._fake.on_cpu else [])]
        return [SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count) for name, count in parts]

    def io_binding(self) -> Any:
        return _Binding(self._fake.device)

    def run_with_iobinding(self, iobinding: _Binding) -> None:
        feeds = {name: read() for name, read in iobinding._inputs.items()}
        names = [value.name for value in self._real.get_outputs()]
        for name, result in zip(names, self._real.run(names, feeds), strict=True):
            iobinding._outputs[name](result)


class _Binding:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._made: list[np.ndarray] = []

    def _view(self, pointer: int, shape: Any, dtype: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._device.bytes_at(pointer, size).view(dtype).reshape(shape)

    def bind_cpu_input(self, name: str, arr_on_cpu: np.ndarray) -> None:
        self._inputs[name] = lambda: arr_on_cpu

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
    ) -> None:
        require(device_type == "cuda", "an input on the GPU")
        self._inputs[name] = lambda: self._view(buffer_ptr, shape, element_type).copy()

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Any = None,
        buffer_ptr: Any = None,
    ) -> None:
        def write(result: np.ndarray) -> None:
            if buffer_ptr is None:
                self._made.append(result)
                return
            require(tuple(shape) == result.shape and np.dtype(element_type) == result.dtype, "an output's place")
            if device_type == "cuda":
                self._view(buffer_ptr, shape, element_type)[...] = result
            else:
                ctypes.memmove(buffer_ptr, result.ctypes.data, result.nbytes)

        self._outputs[name] = write

    def synchronize_outputs(self) -> None:
        pass

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        return self._made
