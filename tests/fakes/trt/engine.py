"""Engines that a runtime reads from plans, computed by ONNX Runtime row by row."""

from __future__ import annotations

import base64
import json
import os
import weakref
from typing import Any

import numpy as np
import onnx
from fakes.fake_cuda import Device, require
from fakes.trt.inspector import EngineInspector
from fakes.trt.network import TYPES
from fakes.trt.process import ILogger, Registry, kept_logger

SCRATCH_BYTES = 4096


class Runtime:
    """Deserializes a plan of the same version; the engine tells its layers, as the real one does."""

    _trt: Any
    _registry: Registry
    _engine: Any
    engine_host_code_allowed = False

    def __init__(self, logger: ILogger) -> None:
        self._logger = kept_logger(self._trt, logger)

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        try:
            body = json.loads(bytes(plan))
        except json.JSONDecodeError:
            self._logger.log(ILogger.Severity.ERROR, "Serialization assertion magicTag failed")
            return None
        if body["version"] != self._trt.__version__:
            self._logger.log(ILogger.Severity.ERROR, "Version tag does not match")
            return None
        if "VERSION_COMPATIBLE" in body["flags"]:
            require(self.engine_host_code_allowed, "a version-compatible plan without engine_host_code_allowed")
        model = onnx.load_from_string(base64.b64decode(body["onnx"]))
        needs_library = any(node.domain for node in model.graph.node) and not body["embedded"]
        if needs_library and not self._registry._loaded:
            self._logger.log(ILogger.Severity.ERROR, "Cannot find plugin creator AxialShift")
            return None
        device = self._engine._device
        require(device is None or device.stack, "an engine loaded without a current CUDA context")
        return self._engine(self, model, body)


class NewEngine:
    """An engine as all versions have it."""

    _trt: Any
    _device: Device | None
    _context_class: Any

    def __init__(self, runtime: Runtime, model: Any, plan: dict[str, Any]) -> None:
        self._runtime, self._model, self._plan = weakref.ref(runtime), model, plan
        self._values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
        self._profile_users: dict[int, weakref.ref[Any]] = {}
        self._session: Any = None
        self._known_shapes: dict[Any, dict[str, tuple[int, ...]]] = {}

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    @property
    def num_optimization_profiles(self) -> int:
        return max(len(self._plan["profiles"]), 1)

    def get_tensor_name(self, index: int) -> str:
        return list(self._values)[index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._trt.TensorIOMode
        return mode.INPUT if name in {value.name for value in self._model.graph.input} else mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType[TYPES[self._values[name].type.tensor_type.elem_type]]

    def get_tensor_shape(self, name: str) -> Any:
        dims = self._values[name].type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
        return [tuple(shape) for shape in self._plan["profiles"][profile_index][name]]

    def create_execution_context(self, strategy: Any = None) -> Any:
        strategies = getattr(self._trt, "ExecutionContextAllocationStrategy", None)
        require(strategies and strategy is strategies.USER_MANAGED, "a context that allocates its own scratch memory")
        if os.environ.get("FAKE_INSPECTOR") == "no context":
            return None
        return self._context_class(self)

    def create_engine_inspector(self) -> Any:
        if os.environ.get("FAKE_INSPECTOR") == "none":
            return None
        return EngineInspector(self._model, self._plan)

    def _shapes_of(self, inputs: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, tuple[int, ...]]:
        """Return the outputs' shapes for those of the inputs, by computing zeros: symbols may say nothing."""
        if inputs not in self._known_shapes:
            results = self._run({name: np.zeros(shape, np.float32) for name, shape in inputs})
            self._known_shapes[inputs] = {name: array.shape for name, array in results.items()}
        return self._known_shapes[inputs]

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute row by row, so that a row's bits do not depend on its neighbours."""
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            text = runnable(self._model).SerializeToString()
            self._session = onnxruntime.InferenceSession(text, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in self._model.graph.output]
        if all(self.get_tensor_shape(name)[0] != -1 for name in feeds):
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        rows = range(len(next(iter(feeds.values()))))
        results = [self._session.run(names, {name: array[i : i + 1] for name, array in feeds.items()}) for i in rows]
        return {name: np.concatenate([row[k] for row in results]) for k, name in enumerate(names)}


# As a property that a class of a version may or may not have.
ENGINE_V2 = property(lambda self: SCRATCH_BYTES)


class ICudaEngine(NewEngine):
    """With what TensorRT 8 and 10 have, and 11 does not."""

    @property
    def device_memory_size(self) -> int:
        require(not hasattr(self, "device_memory_size_v2"), "the old name where there is a new one")
        return SCRATCH_BYTES

    def create_execution_context_without_device_memory(self) -> Any:
        require(not hasattr(self._trt, "ExecutionContextAllocationStrategy"), "the old name where there is a new one")
        return self._context_class(self)


class RuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self) -> None:
        self._strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy


class RtxEngine(NewEngine):
    """Compiles kernels when it runs: the configuration of a context says when."""

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, strategy: Any = None) -> Any:
        require(isinstance(strategy, RuntimeConfig), "a context with a configuration of the runtime")
        eager = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        require(strategy.dynamic_shapes_kernel_specialization_strategy is eager, "a graph of kernels that are replaced")
        return super().create_execution_context(strategy._strategy)


def runnable(model: Any) -> Any:
    """Return a model with the function of our operator for ONNX Runtime, where the plan leaves it to the plugin."""
    if not any(node.domain for node in model.graph.node):
        return model
    from mlpdeploy.ops.axial_shift import axial_shift_function

    model = onnx.load_from_string(model.SerializeToString())
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    model.functions.append(axial_shift_function("zero", opset))
    return model
