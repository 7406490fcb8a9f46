"""A stand-in for TensorRT 8.6, 10 and 11 that refuses what the real one refuses, and what would crash it.

`make_tensorrt("11.4.0.106")` returns a module with exactly those names that this project uses and that the version has.
tests/runtime/test_tensorrt_api.py compares them with the real bindings of each version, in both directions. A wrong
call raises FakeError, which no code under test catches: it always fails the test.

The plan that it "builds" is JSON that holds the ONNX file; a layer of the engine is a node of the graph. It runs on the
simulated GPU of fake_cuda.py, computed by ONNX Runtime row by row.
"""

from __future__ import annotations

import enum
from types import ModuleType
from typing import Any

from fakes.fake_cuda import Device
from fakes.trt.builder import Builder, BuilderConfig, IOptimizationProfile, ITimingCache, RtxBuilderConfig
from fakes.trt.context import IExecutionContext, NewContext, RtxContext
from fakes.trt.engine import ENGINE_V2, ICudaEngine, NewEngine, RtxEngine, Runtime, RuntimeConfig
from fakes.trt.inspector import EngineInspector
from fakes.trt.network import ILayer, INetworkDefinition, NamedParserError, NewLayer, OnnxParser, ParserError
from fakes.trt.process import ILogger, IProgressMonitor, Registry
from fakes.trt.versions import MEMBERS, RTX_MEMBERS


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
    registry = Registry(plugins and not rtx)
    v2 = {"device_memory_size_v2": ENGINE_V2} if major >= 10 else {}
    base = RtxEngine if rtx else ICudaEngine if major < 11 else NewEngine
    engine = type("ICudaEngine", (base,), {"_trt": module, **v2})
    kind = RtxContext if rtx else IExecutionContext if major == 8 else NewContext
    context = type("IExecutionContext", (kind,), {"_trt": module})
    engine._context_class, engine._device = context, device
    monitor = {"progress_monitor": None} if major >= 10 else {}
    classes: dict[str, Any] = {
        "ILogger": ILogger,
        "IBuilderConfig": type("IBuilderConfig", (RtxBuilderConfig if rtx else BuilderConfig,), monitor),
        "OnnxParser": type("OnnxParser", (OnnxParser,), {"_trt": module}),
        "Builder": type("Builder", (Builder,), {"_trt": module, "_registry": registry}),
        "Runtime": type("Runtime", (Runtime,), {"_trt": module, "_registry": registry, "_engine": engine}),
        "get_plugin_registry": lambda: registry,
    }
    module._inner = {  # type: ignore[attr-defined]
        "IPluginRegistry": Registry,
        "INetworkDefinition": INetworkDefinition,
        "ILayer": ILayer if major < 11 else NewLayer,
        "IOptimizationProfile": IOptimizationProfile,
        "ITimingCache": ITimingCache,
        "ParserError": NamedParserError if major >= 10 else ParserError,
        "ICudaEngine": engine,
        "IExecutionContext": context,
        "EngineInspector": EngineInspector,
    }
    if major >= 10:
        classes["IProgressMonitor"] = IProgressMonitor
    if rtx:
        module._inner["IRuntimeConfig"] = RuntimeConfig  # type: ignore[attr-defined]
    for name, kind in classes.items():
        setattr(module, name, kind)
    return module
