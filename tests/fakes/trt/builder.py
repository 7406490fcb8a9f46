"""The builder, its configuration and its timing cache. A plan is JSON that holds the ONNX file."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

from fakes.fake_cuda import require
from fakes.trt.network import INetworkDefinition
from fakes.trt.process import ILogger, Registry, kept_logger

from mlpdeploy.errors import MlpDeployError


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, low: Any, middle: Any, high: Any) -> None:
        require(all(a <= b <= c for a, b, c in zip(low, middle, high, strict=True)), "min <= opt <= max")
        self._shapes[name] = [low, middle, high]


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


class BuilderConfig:
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


class RtxBuilderConfig(BuilderConfig):
    num_compute_capabilities = 0

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        require(isinstance(compute_capability, self._trt.ComputeCapability), "a ComputeCapability")
        require(index < self.num_compute_capabilities, "a compute capability beyond their number")
        return True


class Builder:
    _trt: Any
    _registry: Registry

    def __init__(self, logger: ILogger) -> None:
        self._logger = kept_logger(self._trt, logger)
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
