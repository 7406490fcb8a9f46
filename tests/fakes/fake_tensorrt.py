"""A stand-in for TensorRT 8.6, 10 and 11 that refuses what the real one refuses, and what would crash it.

`make_tensorrt("11.4.0.106")` returns a module with exactly those names that this project uses and that the version has.
tests/runtime/test_tensorrt_api.py compares them with the real bindings of each version, in both directions. A wrong
call raises FakeError, which no code under test catches: it always fails the test.

The plan that it "builds" is JSON that holds the ONNX file; a layer of the engine is a node of the graph.
"""

from __future__ import annotations

import base64
import enum
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
from onnx import TensorProto

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
        10: ("EXPLICIT_BATCH", "STRONGLY_TYPED"),
        11: ("STRONGLY_TYPED",),
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
    "MemoryPoolType": dict.fromkeys((8, 10, 11), ("WORKSPACE",)),
    "ProfilingVerbosity": dict.fromkeys((8, 10, 11), ("LAYER_NAMES_ONLY", "DETAILED")),
    "LayerInformationFormat": dict.fromkeys((8, 10, 11), ("ONELINE", "JSON")),
}


class FakeError(BaseException):
    """The code under test used TensorRT wrongly. A BaseException, so that nothing swallows it."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise FakeError(text)


def make_tensorrt(version: str, plugins: bool = True) -> ModuleType:
    """Return a fake of one version; with `plugins` false no library can be loaded."""
    major = int(version.partition(".")[0])
    module = ModuleType("tensorrt")
    enums = {name: enum.Enum(name, {m: i for i, m in enumerate(by[major])}) for name, by in MEMBERS.items()}
    for name, kind in enums.items():
        # As pybind's enums: int() gives the value.
        kind.__int__ = lambda self: self.value  # type: ignore[attr-defined]
        setattr(module, name, kind)
    module.__version__ = version  # type: ignore[attr-defined]
    registry = _Registry(plugins)
    classes: dict[str, Any] = {
        "ILogger": ILogger,
        "IBuilderConfig": type("IBuilderConfig", (_Config,), {"progress_monitor": None} if major >= 10 else {}),
        "OnnxParser": type("OnnxParser", (_Parser,), {"_trt": module}),
        "Builder": type("Builder", (_Builder,), {"_trt": module, "_registry": registry}),
        "Runtime": type("Runtime", (_Runtime,), {"_trt": module, "_registry": registry}),
        "get_plugin_registry": lambda: registry,
    }
    module._inner = {  # type: ignore[attr-defined]
        "IPluginRegistry": _Registry,
        "INetworkDefinition": INetworkDefinition,
        "ILayer": ILayer,
        "IOptimizationProfile": IOptimizationProfile,
        "ITimingCache": ITimingCache,
        "ParserError": _NamedParserError if major >= 10 else _ParserError,
        "ICudaEngine": ICudaEngine,
        "EngineInspector": EngineInspector,
    }
    if major >= 10:
        classes["IProgressMonitor"] = IProgressMonitor
    for name, kind in classes.items():
        setattr(module, name, kind)
    return module


class ILogger:
    Severity = enum.Enum("Severity", SEVERITIES)

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: Any, message: str) -> None:
        raise FakeError("ILogger.log was not overridden")


class IProgressMonitor:
    def __init__(self) -> None:
        self._made = True


class _Registry:
    """The plugin registry: one AxialShift creator for every library that can be loaded."""

    def __init__(self, works: bool) -> None:
        self._works, self._loaded = works, []  # type: ignore[var-annotated]

    def load_library(self, plugin_path: str) -> object | None:
        require(isinstance(plugin_path, str), "load_library takes a str")
        if not self._works:
            return None
        self._loaded.append(plugin_path)
        return object()


class _Builder:
    _trt: Any
    _registry: _Registry

    def __init__(self, logger: ILogger) -> None:
        require(getattr(logger, "_made", False), "the logger's __init__ was not called: pybind11 would raise")
        self._logger = logger

    def create_network(self, flags: int) -> Any:
        names = self._trt.NetworkDefinitionCreationFlag
        if hasattr(names, "EXPLICIT_BATCH") and not hasattr(names, "STRONGLY_TYPED"):
            require(flags & 1 << int(names.EXPLICIT_BATCH), "TensorRT 8.6 parses ONNX with explicit batch only")
        if hasattr(names, "STRONGLY_TYPED"):
            require(flags & 1 << int(names.STRONGLY_TYPED), "a network that is not strongly typed")
        return INetworkDefinition(self._trt, self._registry)

    def create_builder_config(self) -> Any:
        return self._trt.IBuilderConfig(self._trt)

    def create_optimization_profile(self) -> Any:
        return IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        trt, graph = self._trt, network._model.graph
        _check_profiles(network, config)
        if hasattr(trt.BuilderFlag, "FP16"):
            half, flag = "HALF" in network._types.values(), trt.BuilderFlag.FP16 in config._flags
            typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
            require(not (typed and flag), "precision flags with a strongly typed network")
            require(typed or flag or not half, "half types without the FP16 flag")
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
        plan = {
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

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_layer(self, index: int) -> Any:
        node = self._model.graph.node[index]
        plugin = "PLUGIN_V3" if hasattr(self._trt.LayerType, "PLUGIN_V3") else "PLUGIN_V2"
        kind = plugin if node.domain else KINDS.get(node.op_type, "ELEMENTWISE")
        dtype = self._trt.DataType[self._types[node.output[0]]]
        output = SimpleNamespace(dtype=dtype, name=node.output[0])
        return ILayer(node.name, self._trt.LayerType[kind], output)


class ILayer:
    def __init__(self, name: str, kind: Any, output: Any) -> None:
        self.name, self.type, self._output = name, kind, output

    def get_output(self, index: int) -> Any:
        require(index == 0, "only the first output")
        return self._output


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
        return ITimingCache(data) if data.isdigit() or not data else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        require(not ignore_mismatch, "a cache of another GPU or version must not be taken")
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._entries = int(data or b"0")

    def serialize(self) -> Any:
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
            if node.domain and not self._network._registry._loaded:
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
    engine_host_code_allowed = False

    def __init__(self, logger: ILogger) -> None:
        require(getattr(logger, "_made", False), "the logger's __init__ was not called: pybind11 would raise")
        self._logger = logger

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
        if any(node.domain for node in model.graph.node) and not self._registry._loaded:
            self._logger.log(ILogger.Severity.ERROR, "Cannot find plugin creator AxialShift")
            return None
        return ICudaEngine(self, model, body)


class ICudaEngine:
    def __init__(self, runtime: _Runtime, model: Any, plan: dict[str, Any]) -> None:
        self._runtime, self._model, self._plan = runtime, model, plan

    def create_engine_inspector(self) -> Any:
        return EngineInspector(self._model, self._plan)


class EngineInspector:
    """Layers as the real inspector gives them: a name, a type, inputs and outputs with a format text."""

    def __init__(self, model: Any, plan: dict[str, Any]) -> None:
        self._model, self._plan = model, plan

    def get_engine_information(self, form: Any) -> str:
        require(form.name == "JSON", "the JSON form")
        if not self._plan["detailed"]:
            return json.dumps({"Layers": [node.name for node in self._model.graph.node]})
        layers = []
        for node in self._model.graph.node:
            formats = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT8": "Int8", "INT64": "Int64"}
            outputs = [
                {"Name": name, "Format/Datatype": f"Row major linear {formats[self._plan['types'][name]]} format"}
                for name in node.output
            ]
            kind = "PluginV3" if node.domain else KINDS.get(node.op_type, "ELEMENTWISE").title()
            layers.append({"Name": node.name, "LayerType": kind, "Inputs": [], "Outputs": outputs})
        return json.dumps({"Layers": layers, "Bindings": []})
