"""A stand-in for TensorRT 8.6, 10 and 11 that refuses what the real one refuses, and what would crash it.

`make_tensorrt("11.4.0.106")` returns a module with exactly those names that this project uses and that the version has.
tests/runtime/test_tensorrt_api.py compares them with the real bindings of each version, in both directions. A wrong
call raises FakeError, which no code under test catches: it always fails the test.

The plan that it "builds" is JSON that holds the ONNX file; a layer of the engine is a node of the graph. It runs on the
simulated GPU of fake_cuda.py, computed by ONNX Runtime row by row.
"""

from __future__ import annotations

import base64
import enum
import json
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
from fakes.fake_cuda import Device, FakeError, require
from onnx import TensorProto

from mlpdeploy.errors import MlpDeployError

SCRATCH_BYTES = 4096
SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "INT8",
    TensorProto.INT64: "INT64",
}
KINDS = {
    "Conv": "CONVOLUTION",
    "MatMul": "MATRIX_MULTIPLY",
    "Gemm": "MATRIX_MULTIPLY",
    "LayerNormalization": "NORMALIZATION",
    "Cast": "CAST",
}
# What the versions do not share; all other names of this module are in all three.
MEMBERS = {
    "NetworkDefinitionCreationFlag": {
        8: ("EXPLICIT_BATCH",),
        10: ("EXPLICIT_BATCH", "STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS"),
        11: ("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS"),
    },
    "BuilderFlag": {
        8: ("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "TF32", "REFIT", "VERSION_COMPATIBLE"),
        10: ("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "TF32", "REFIT", "VERSION_COMPATIBLE", "STRIP_PLAN"),
        11: ("TF32", "REFIT", "VERSION_COMPATIBLE", "STRIP_PLAN"),
    },
    "DataType": {
        8: ("FLOAT", "HALF", "INT8", "INT32", "BOOL"),
        10: ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "BF16", "INT64"),
        11: ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "BF16", "INT64"),
    },
    "LayerType": {
        major: (*dict.fromkeys(KINDS.values()), "ELEMENTWISE", "PLUGIN_V2", *(("PLUGIN_V3",) if major > 8 else ()))
        for major in (8, 10, 11)
    },
    "HardwareCompatibilityLevel": {
        8: ("NONE", "AMPERE_PLUS"),
        10: ("NONE", "AMPERE_PLUS"),
        11: ("NONE", "AMPERE_PLUS"),
    },
    "QuickPluginCreationRequest": dict.fromkeys((10, 11), ("UNKNOWN", "PREFER_AOT", "STRICT_AOT")),
    "TensorFormat": dict.fromkeys((8, 10, 11), ("LINEAR", "HWC", "HWC8", "HWC16", "CHW32")),
    "MemoryPoolType": dict.fromkeys((8, 10, 11), ("WORKSPACE",)),
    "ProfilingVerbosity": dict.fromkeys((8, 10, 11), ("LAYER_NAMES_ONLY", "DETAILED")),
    "LayerInformationFormat": dict.fromkeys((8, 10, 11), ("ONELINE", "JSON")),
    "TensorIOMode": dict.fromkeys((8, 10, 11), ("NONE", "INPUT", "OUTPUT")),
    "PreviewFeature": {8: ("PROFILE_SHARING_0806",), 10: ("PROFILE_SHARING_0806",), 11: ()},
    "ExecutionContextAllocationStrategy": dict.fromkeys((10, 11), ("STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED")),
}


# What TensorRT-RTX has beside what 11 has.
RTX_MEMBERS = {
    "ComputeCapability": ("SM75", "SM80", "SM86", "SM89", "SM120"),
    "DynamicShapesKernelSpecializationStrategy": ("LAZY", "EAGER", "NONE"),
}


def make_tensorrt(version: str, plugins: bool = True, device: Device | None = None, rtx: bool = False) -> ModuleType:
    """Return a fake of one version; with `plugins` false no library can be loaded, with `rtx` it is TensorRT-RTX.

    Engines run on `device`; without one they can be built and inspected only.
    """
    major = 11 if rtx else int(version.partition(".")[0])
    module = ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    enums = {
        name: enum.Enum(name, {m: i for i, m in enumerate(by[major]) if not (rtx and m.startswith("PREFER_"))})
        for name, by in MEMBERS.items()
        if major in by and not (rtx and name == "QuickPluginCreationRequest")
    }
    if rtx:
        members = [*enums["BuilderFlag"].__members__, "REQUIRE_USER_ALLOCATION"]
        enums["BuilderFlag"] = enum.Enum("BuilderFlag", {member: i for i, member in enumerate(members)})
        enums |= {name: enum.Enum(name, list(members)) for name, members in RTX_MEMBERS.items()}
    for name, kind in enums.items():
        # As pybind's enums: int() gives the value.
        kind.__int__ = lambda self: self.value  # type: ignore[attr-defined]
        setattr(module, name, kind)
    module.__version__ = version  # type: ignore[attr-defined]
    registry = _Registry(plugins and not rtx)
    v2 = {"device_memory_size_v2": _ENGINE_V2} if major >= 10 else {}
    base = _RtxEngine if rtx else ICudaEngine if major < 11 else _NewEngine
    engine = type("ICudaEngine", (base,), {"_trt": module, **v2})
    kind = _RtxContext if rtx else IExecutionContext if major == 8 else _NewContext
    context = type("IExecutionContext", (kind,), {"_trt": module})
    engine._context_class, engine._device = context, device
    monitor = {"progress_monitor": None} if major >= 10 else {}
    classes: dict[str, Any] = {
        "ILogger": ILogger,
        "IBuilderConfig": type("IBuilderConfig", (_RtxConfig if rtx else _Config,), monitor),
        "OnnxParser": type("OnnxParser", (_Parser,), {"_trt": module}),
        "Builder": type("Builder", (_Builder,), {"_trt": module, "_registry": registry}),
        "Runtime": type("Runtime", (_Runtime,), {"_trt": module, "_registry": registry, "_engine": engine}),
        "get_plugin_registry": lambda: registry,
    }
    module._inner = {  # type: ignore[attr-defined]
        "IPluginRegistry": _Registry,
        "INetworkDefinition": INetworkDefinition,
        "ILayer": ILayer if major < 11 else _NewLayer,
        "IOptimizationProfile": IOptimizationProfile,
        "ITimingCache": ITimingCache,
        "ParserError": _NamedParserError if major >= 10 else _ParserError,
        "ICudaEngine": engine,
        "IExecutionContext": context,
        "EngineInspector": EngineInspector,
    }
    if major >= 10:
        classes["IProgressMonitor"] = IProgressMonitor
    if rtx:
        module._inner["IRuntimeConfig"] = _RuntimeConfig  # type: ignore[attr-defined]
    for name, kind in classes.items():
        setattr(module, name, kind)
    return module


class ILogger:
    Severity = enum.Enum("Severity", SEVERITIES)

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: Any, message: str) -> None:
        raise FakeError("ILogger.log was not overridden")


def _kept_logger(trt: Any, logger: ILogger) -> ILogger:
    """Return the logger that the process uses: the first that TensorRT was given, of which it keeps a bare pointer."""
    require(getattr(logger, "_made", False), "the logger's __init__ was not called: pybind11 would raise")
    first = vars(trt).setdefault("_first_logger", weakref.ref(logger))()
    require(first is not None, "TensorRT's first logger was freed: it would crash")
    return first


class IProgressMonitor:
    def __init__(self) -> None:
        self._made = True


class _Registry:
    """The plugin registry: one AxialShift creator for every library that can be loaded."""

    def __init__(self, works: bool) -> None:
        self._works, self._loaded = works, []  # type: ignore[var-annotated]
        self._quick: Any = None  # the plugin of fake_quick_plugin.py, once it is registered

    def load_library(self, plugin_path: str) -> object | None:
        require(isinstance(plugin_path, str), "load_library takes a str")
        require(plugin_path not in self._loaded, "a library that is loaded twice")
        if not self._works:
            return None
        self._loaded.append(plugin_path)
        return object()


class _Builder:
    _trt: Any
    _registry: _Registry

    def __init__(self, logger: ILogger) -> None:
        self._logger = _kept_logger(self._trt, logger)
        if os.environ.get("FAKE_BUILDER") == "no CUDA":  # as with a driver that is too old
            self._logger.log(ILogger.Severity.WARNING, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int) -> Any:
        names = self._trt.NetworkDefinitionCreationFlag
        if hasattr(names, "EXPLICIT_BATCH") and not hasattr(names, "STRONGLY_TYPED"):
            require(flags & 1 << int(names.EXPLICIT_BATCH), "TensorRT 8.6 parses ONNX with explicit batch only")
        if hasattr(names, "STRONGLY_TYPED"):
            require(flags & 1 << int(names.STRONGLY_TYPED), "a network that is not strongly typed")
        if self._registry._quick is not None:
            require(flags & 1 << int(names.PREFER_AOT_PYTHON_PLUGINS), "a plugin in Python without the network's flag")
        return INetworkDefinition(self._trt, self._registry)

    def create_builder_config(self) -> Any:
        return self._trt.IBuilderConfig(self._trt)

    def create_optimization_profile(self) -> Any:
        return IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        if os.environ.get("FAKE_BUILDER") == "raises":
            self._logger.log(ILogger.Severity.ERROR, "Could not find any implementation")
            raise RuntimeError("std::exception")
        trt, graph = self._trt, network._model.graph
        _check_profiles(network, config)
        if hasattr(trt.BuilderFlag, "FP16"):
            half, flag = "HALF" in network._types.values(), trt.BuilderFlag.FP16 in config._flags
            typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
            require(not (typed and flag), "precision flags with a strongly typed network")
            require(typed or flag or not half, "half types without the FP16 flag")
            layers = map(network.get_layer, range(network.num_layers))
            asks = [layer for layer in layers if layer.precision]
            require(not (typed and asks), "layers that ask for a type in a strongly typed network")
            if flag and "INT8" not in network._types.values():
                wanted = [trt.DataType[network._types[node.output[0]]] for node in graph.node]
                floats = [kind for kind in wanted if kind.name in ("FLOAT", "HALF")]
                require(
                    [layer.precision for layer in asks] == floats, "layers in fp32 that the builder may run in half"
                )
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            require(monitor._made, "the monitor's __init__ was not called")
            monitor.phase_start("Building engine", None, 2)
            monitor.phase_start("Timing tactics", "Building engine", len(graph.node))
            for index in range(len(graph.node)):
                if not monitor.step_complete("Timing tactics", index):
                    return None
            monitor.phase_finish("Timing tactics")
            monitor.phase_finish("Building engine")
        if config._cache is not None:
            config._cache._entries += 1
        quick = self._registry._quick
        if quick is not None:
            try:
                code = quick.compiled(network._model, network._types, config._profiles)
            except MlpDeployError as error:  # the real one prints it and has no engine to give
                self._logger.log(ILogger.Severity.ERROR, f"Exception in the plugin: {type(error)}")
                return None
        plan = {
            "embedded": [] if quick is None else code,
            "version": trt.__version__,
            "onnx": base64.b64encode(network._model.SerializeToString()).decode(),
            "types": network._types,
            "profiles": [profile._shapes for profile in config._profiles],
            "detailed": config.profiling_verbosity is trt.ProfilingVerbosity.DETAILED,
            "options": {
                "level": config.builder_optimization_level,
                "workspace": config._limits.get(trt.MemoryPoolType.WORKSPACE),
                "compatibility": config.hardware_compatibility_level and config.hardware_compatibility_level.name,
            },
            "flags": sorted(flag.name for flag in config._flags),
            "shared_profiles": not trt.__version__.startswith("8") or "PROFILE_SHARING_0806" in config._previews,
        }
        return _HostMemory(json.dumps(plan).encode())


def _check_profiles(network: Any, config: Any) -> None:
    """Refuse what the real builder refuses: open shapes without a profile, a profile that does not fit."""
    for value in network._model.graph.input:
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
        if -1 in dims:
            require(config._profiles, "open shapes without an optimization profile")
        for profile in config._profiles:
            for shape in profile._shapes.get(value.name, ()):
                fits = len(shape) == len(dims) and all(d in (-1, s) for d, s in zip(dims, shape, strict=True))
                require(fits, f"the profile {shape} for {value.name} {dims}")
            require(value.name in profile._shapes, f"a profile without {value.name}")


class INetworkDefinition:
    def __init__(self, trt: Any, registry: _Registry) -> None:
        self._trt, self._registry = trt, registry
        self._model: Any = None
        self._types: dict[str, str] = {}
        self._layers: dict[int, Any] = {}

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_layer(self, index: int) -> Any:
        if index in self._layers:
            return self._layers[index]
        node = self._model.graph.node[index]
        plugin = "PLUGIN_V3" if hasattr(self._trt.LayerType, "PLUGIN_V3") else "PLUGIN_V2"
        kind = plugin if node.domain else KINDS.get(node.op_type, "ELEMENTWISE")
        outputs = [SimpleNamespace(dtype=self._trt.DataType[self._types[name]], name=name) for name in node.output]
        return self._layers.setdefault(index, self._trt._inner["ILayer"](node.name, self._trt.LayerType[kind], outputs))


class _NewLayer:
    def __init__(self, name: str, kind: Any, outputs: list[Any]) -> None:
        self.name, self.type, self._outputs = name, kind, outputs

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_output(self, index: int) -> Any:
        return self._outputs[index]


class ILayer(_NewLayer):
    """With what TensorRT 8 and 10 have, and 11 does not."""

    precision: Any = None

    def __init__(self, name: str, kind: Any, outputs: list[Any]) -> None:
        super().__init__(name, kind, outputs)
        self._asked: dict[int, Any] = {}

    def set_output_type(self, index: int, dtype: Any) -> None:
        require(dtype is self._outputs[index].dtype, "a type that is not the graph's")
        self._asked[index] = dtype


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, low: Any, middle: Any, high: Any) -> None:
        require(all(a <= b <= c for a, b, c in zip(low, middle, high, strict=True)), "min <= opt <= max")
        self._shapes[name] = [low, middle, high]


class _Config:
    """The builder's configuration; as with pybind11's classes, an unknown attribute cannot be set."""

    profiling_verbosity: Any = None
    builder_optimization_level = 3
    hardware_compatibility_level: Any = None

    def __init__(self, trt: Any) -> None:
        self._trt = trt
        self._profiles: list[Any] = []
        self._flags = {trt.BuilderFlag.TF32}
        self._cache: Any = None
        self._limits: dict[Any, int] = {}
        self._previews: set[str] = set()

    def __setattr__(self, name: str, value: Any) -> None:
        require(name.startswith("_") or hasattr(type(self), name), f"IBuilderConfig has no {name} in this version")
        super().__setattr__(name, value)

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_flag(self, flag: Any) -> None:
        require(isinstance(flag, self._trt.BuilderFlag), f"{flag} is no BuilderFlag")
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        require(isinstance(flag, self._trt.BuilderFlag), f"{flag} is no BuilderFlag")
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        require(isinstance(pool, self._trt.MemoryPoolType) and isinstance(size, int), "a pool and bytes")
        self._limits[pool] = size

    def create_timing_cache(self, data: bytes) -> Any:
        return ITimingCache(data) if data.isdigit() or data in (b"", b"another GPU") else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        require(not ignore_mismatch, "a cache of another GPU or version must not be taken")
        if cache._entries is None:
            return False
        self._cache = cache
        return True

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        require(isinstance(feature, self._trt.PreviewFeature) and enable, "a preview feature")
        self._previews.add(feature.name)

    def get_timing_cache(self) -> Any:
        return self._cache


class _RtxConfig(_Config):
    num_compute_capabilities = 0

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        require(isinstance(compute_capability, self._trt.ComputeCapability), "a ComputeCapability")
        require(index < self.num_compute_capabilities, "a compute capability beyond their number")
        return True


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._entries: Any = None if data == b"another GPU" else int(data or b"0")

    def serialize(self) -> Any:
        if os.environ.get("FAKE_TIMINGS") == "none":
            return None
        return _HostMemory(str(self._entries).encode())


class _HostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class _ParserError:
    def __init__(self, node: Any, index: int, text: str) -> None:
        self._node, self._index, self._text = node, index, text

    def desc(self) -> str:
        return self._text

    def node(self) -> int:
        return self._index


class _NamedParserError(_ParserError):
    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type


class _Parser:
    _trt: Any

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._errors = network, []  # type: ignore[var-annotated]

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse_from_file(self, path: str) -> bool:
        require(isinstance(path, str), "parse_from_file takes a str")
        model = onnx.load(path)
        kind = _NamedParserError if hasattr(self._trt, "IProgressMonitor") else _ParserError
        for index, node in enumerate(model.graph.node):
            registry = self._network._registry
            rtx = hasattr(self._trt, "ComputeCapability")
            require(not (node.domain and rtx), "a node of ours, on which TensorRT-RTX aborts")
            if node.domain and not registry._loaded and registry._quick is None:
                self._errors.append(kind(node, index, "Plugin not found, are the name, version and namespace correct?"))
                return False
        self._network._model = model
        self._network._types = _types_of(model, Path(path))
        return True


def _types_of(model: Any, path: Path) -> dict[str, str]:
    """Return {value name: type} of everything that a node gives; our shift's outputs have its input's type."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]
    types = {value.name: TYPES[value.type.tensor_type.elem_type] for value in values}
    types |= {tensor.name: TYPES[tensor.data_type] for tensor in model.graph.initializer if tensor.data_type in TYPES}
    for node in model.graph.node:
        for name in node.output:
            types.setdefault(name, types.get(node.input[0], "FLOAT"))
    return types


class _Runtime:
    """Deserializes a plan of the same version; the engine tells its layers, as the real one does."""

    _trt: Any
    _registry: _Registry
    _engine: Any
    engine_host_code_allowed = False

    def __init__(self, logger: ILogger) -> None:
        self._logger = _kept_logger(self._trt, logger)

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


class _NewEngine:
    """An engine as all versions have it."""

    _trt: Any
    _device: Device | None
    _context_class: Any

    def __init__(self, runtime: _Runtime, model: Any, plan: dict[str, Any]) -> None:
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
_ENGINE_V2 = property(lambda self: SCRATCH_BYTES)


class ICudaEngine(_NewEngine):
    """With what TensorRT 8 and 10 have, and 11 does not."""

    @property
    def device_memory_size(self) -> int:
        require(not hasattr(self, "device_memory_size_v2"), "the old name where there is a new one")
        return SCRATCH_BYTES

    def create_execution_context_without_device_memory(self) -> Any:
        require(not hasattr(self._trt, "ExecutionContextAllocationStrategy"), "the old name where there is a new one")
        return self._context_class(self)


class _RuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self) -> None:
        self._strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy


class _RtxEngine(_NewEngine):
    """Compiles kernels when it runs: the configuration of a context says when."""

    def create_runtime_config(self) -> _RuntimeConfig:
        return _RuntimeConfig()

    def create_execution_context(self, strategy: Any = None) -> Any:
        require(isinstance(strategy, _RuntimeConfig), "a context with a configuration of the runtime")
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


class IExecutionContext:
    """Refuses what would be undefined behaviour; the work itself runs when somebody waits for the stream."""

    _trt: Any

    def __init__(self, engine: _NewEngine) -> None:
        require(engine._device is not None and engine._device.stack, "a context without a current CUDA context")
        self._engine, self._device = engine, engine._device
        require(engine._runtime() is not None, "an engine that outlives its runtime")
        self._busy = threading.Lock()
        self._profile: int | None = None
        self._open = any(-1 in engine.get_tensor_shape(value.name) for value in engine._model.graph.input)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = 0
        self._ran = self._captured = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "device_memory":
            require(not hasattr(self, "set_device_memory"), "the old name where there is a new one")
            return self._set_scratch(value)
        require(name.startswith("_"), f"IExecutionContext has no {name}")
        super().__setattr__(name, value)

    device_memory: Any = 0

    @contextmanager
    def _alone(self, changes: bool = True) -> Iterator[None]:
        require(self._busy.acquire(blocking=False), "one context used by two threads at once")
        try:
            require(not (changes and self._captured), "a context that changes after a graph was captured of it")
            require(self._device.stack, "a context used without a current CUDA context")
            yield
        finally:
            self._busy.release()

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        with self._alone():
            self._device.stream_of(stream_handle)
            if profile_index >= self._engine.num_optimization_profiles:
                raise RuntimeError("Error in set optimization profile async.")  # the bindings never return False
            other = self._engine._profile_users.get(profile_index, lambda: None)()
            if not self._engine._plan["shared_profiles"]:
                require(other in (None, self), "two contexts with one profile, in an engine that does not share them")
            self._engine._profile_users[profile_index] = weakref.ref(self)
            self._profile, self._shapes = profile_index, {}
            return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        with self._alone():
            fixed = self._engine.get_tensor_shape(name)
            if self._open:
                require(self._profile is not None, "a shape before the profile")
                low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
                if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                    return False
            elif tuple(shape) != fixed:
                return False
            self._shapes[name], self._ran = tuple(shape), False
            return True

    def get_tensor_shape(self, name: str) -> Any:
        inputs = [value.name for value in self._engine._model.graph.input]
        if name in inputs:
            return self._shapes.get(name, self._engine.get_tensor_shape(name))
        require(set(inputs) <= set(self._shapes), "the shape of an output before those of the inputs")
        dims = self._engine._values[name].type.tensor_type.shape.dim
        value = next(iter(self._engine._model.graph.input))
        known = dict(zip([d.dim_param for d in value.type.tensor_type.shape.dim], self._shapes[inputs[0]], strict=True))
        if all(dim.HasField("dim_value") or dim.dim_param in known for dim in dims):
            return tuple(dim.dim_value if dim.HasField("dim_value") else known[dim.dim_param] for dim in dims)
        return self._engine._shapes_of(tuple(self._shapes.items()))[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        with self._alone():
            require(isinstance(memory, int) and memory % 256 == 0, "an address that is no multiple of 256")
            require(set(self._shapes) or not self._open, "an address before the shapes")
            self._device.bytes_at(memory, 1)
            self._addresses[name] = memory
            return True

    def _set_scratch(self, pointer: int) -> None:
        with self._alone():
            self._device.bytes_at(pointer, SCRATCH_BYTES)
            super().__setattr__("_scratch", pointer)

    def execute_async_v3(self, stream_handle: int) -> bool:
        with self._alone(changes=False):
            stream = self._device.stream_of(stream_handle)
            require(stream_handle != 1, "the default stream")
            require(self._scratch, "no scratch memory")
            self._device.bytes_at(self._scratch, SCRATCH_BYTES)
            user = self._device.scratch_users.setdefault(self._scratch, stream_handle)
            require(user == stream_handle, "one scratch memory in two streams")
            arrays = {}
            for name in self._engine._values:
                require(name in self._addresses, f"{name} has no address")
                shape = self.get_tensor_shape(name)
                dtype = onnx.helper.tensor_dtype_to_np_dtype(self._engine._values[name].type.tensor_type.elem_type)
                arrays[name] = (self._addresses[name], shape, np.dtype(dtype))
                view(self._device, *arrays[name])
            if stream.capture is not None:
                require(self._ran, "a capture before the shapes were run once")
                self._captured = True
            self._ran = True
            alive, engine, device = weakref.ref(self), self._engine, self._device
            inputs = [value.name for value in engine._model.graph.input]

            def work() -> None:
                require(alive() is not None, "a context that was destroyed before its work had run")
                feeds = {name: view(device, *arrays[name]).copy() for name in inputs}
                for name, result in engine._run(feeds).items():
                    view(device, *arrays[name])[...] = result

            device.enqueue("execute", stream, work)
            return True


def view(device: Device, pointer: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return device memory as an array."""
    return device.bytes_at(pointer, int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)


class _NewContext(IExecutionContext):
    def set_device_memory(self, memory: int, size: int) -> None:
        require(size == SCRATCH_BYTES, "the size of the scratch memory")
        self._set_scratch(memory)


class _RtxContext(_NewContext):
    def is_stream_capturable(self, stream: int) -> bool:
        self._device.stream_of(stream)
        return "REQUIRE_USER_ALLOCATION" in self._engine._plan["flags"]


class EngineInspector:
    """Layers as the real inspector gives them: a name, a type, inputs and outputs with a format text."""

    execution_context: Any = None

    def __init__(self, model: Any, plan: dict[str, Any]) -> None:
        self._model, self._plan = model, plan

    def _shapes_are_known(self) -> bool:
        """Whether the engine has no profiles, or a context is given that has all shapes of the inputs."""
        names = {value.name for value in self._model.graph.input}
        if os.environ.get("FAKE_INSPECTOR") == "silent":
            return False
        return not self._plan["profiles"] or names <= set(getattr(self.execution_context, "_shapes", {}))

    def get_engine_information(self, form: Any) -> str:
        require(form.name == "JSON", "the JSON form")
        if os.environ.get("FAKE_INSPECTOR") == "other":
            return '{"layers": []}'
        if os.environ.get("FAKE_INSPECTOR") == "no text":
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        if os.environ.get("FAKE_INSPECTOR") == "lost":
            return '{"Layers": []}'
        if not self._plan["detailed"]:
            return json.dumps({"Layers": [node.name for node in self._model.graph.node]})
        layers = []
        for node in self._model.graph.node:
            formats = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT8": "Int8", "INT64": "Int64"}
            outputs = [
                {
                    "Name": name,
                    "Format/Datatype": f"Row major linear {formats[self._plan['types'][name]]} format"
                    if self._shapes_are_known()
                    else "N/A due to dynamic shapes",
                }
                for name in node.output
            ]
            kind = "PluginV3" if node.domain else KINDS.get(node.op_type, "ELEMENTWISE").title()
            if node.domain and self._plan["embedded"]:
                kind = "kgen"  # nobody has seen yet what the real inspector calls it
            metadata = f"[ONNX Layer: {node.name}]\x1e[ONNX Layer: ]"
            layers.append(
                {"Name": node.name, "LayerType": kind, "Inputs": [], "Outputs": outputs, "Metadata": metadata}
            )
        # As 8.6 and 10 write it: control characters as they are.
        return json.dumps({"Layers": layers, "Bindings": []}).replace("\\u001e", "\x1e")
