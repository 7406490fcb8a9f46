"""What differs between TensorRT 8.6, 10, 11 and TensorRT-RTX; nothing else in the package asks for a version.

| | 8.6 | 10 | 11 | RTX |
|---|---|---|---|---|
| explicit batch | a flag | a flag without effect | always | always |
| strongly typed network | no: half and INT8 are builder flags | a flag | a flag | a flag |
| progress monitor | no | yes | yes | yes |
| name of a parser error's node | no, its index | yes | yes | yes |
| `STRIP_PLAN`, same compute capability | no | yes | yes | only on a GPU |
| plugins | V2 | V2, V3 | V3 (V2 deprecated) | none |
| plugins whose code the engine carries | no | later ones | yes | no |
| timing cache | yes | yes | yes | without effect |
| engine for | this GPU | this GPU | this GPU | the named compute capabilities |
| contexts that share a profile | asked for at the build | always | always | always |
| context with our scratch memory | a method of its own | a strategy | a strategy | a configuration |
| says whether it can be captured | no | no | no | yes |
| kernels for a shape | in the engine | in the engine | in the engine | compiled when it runs first |
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from mlpdeploy.env import require
from mlpdeploy.errors import MissingDependencyError, MlpDeployError, UsageError
from mlpdeploy.runtime.tensorrt_log import Complaints, Severity, logger_of

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OLDEST, NEWEST_MAJOR = (8, 6), 11
_LEGACY_STREAM = 1  # as cudaStreamLegacy
# Python plugins of TensorRT 10 take a number from an array of one, which numpy refuses since 2.4.
_ARRAYS_READ_SINCE, _STRICT_NUMPY = 11, (2, 4)


class EngineError(MlpDeployError):
    """TensorRT cannot parse, build, load or run what it was given."""


class ContextError(EngineError):
    """TensorRT gives no execution context, mostly for want of memory."""


class Monitor(Protocol):
    """Who is told how far a build is; `step` returns False to stop it."""

    def start(self, name: str, parent: str | None, steps: int) -> None: ...
    def step(self, name: str, done: int) -> bool: ...
    def finish(self, name: str) -> None: ...


@dataclass(frozen=True)
class EngineFlags:
    """The builder's options; None leaves one to TensorRT. See engines/options.py for what they mean."""

    tf32: bool = False
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    strip: bool = False
    refit: bool = False


# Names of `DataType` -> numpy's; bfloat16 is none of numpy's own.
_NUMPY = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip


# What is in the registry of a package; a second time TensorRT would refuse it.
_loaded_libraries: WeakKeyDictionary[Any, set[Path]] = WeakKeyDictionary()
_loading = threading.Lock()


@dataclass(frozen=True)
class EngineTensor:
    """One input or output of an engine.

    Attributes:
        name: as in the ONNX file.
        is_input: or an output.
        dtype: numpy's name.
        shape: -1 where the profile decides.
    """

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorRt:
    """One installed TensorRT.

    Attributes:
        module: the Python package.
        target: `tensorrt` or `tensorrt-rtx`.
        version: in full, `11.4.0.106`.
    """

    module: Any
    target: str
    version: str

    @property
    def name(self) -> str:
        """The name for messages."""
        return f"{'TensorRT-RTX' if self.is_rtx else 'TensorRT'} {self.version}"

    @property
    def is_rtx(self) -> bool:
        """Whether it builds for named compute capabilities, without a GPU and without plugins."""
        return self.target == "tensorrt-rtx"

    @property
    def strongly_typed(self) -> bool:
        """Whether the graph's types are the engine's types; before TensorRT 10 they are builder flags."""
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def newest_opset(self) -> int | None:
        """The newest opset that its parser knows, where that is older than ours: it overlooks what is newer."""
        return 17 if self.version.startswith("8.") else None

    def logger(self, log: Callable[[Severity, str], None]) -> Any:
        """Return the process's logger, which hands messages to `log` as long as that lives; see tensorrt_log.py."""
        return logger_of(self.module, log)

    def check_driver(self, driver: str, served: str) -> None:
        """Raise EngineError where the driver is older than the CUDA that this TensorRT is made for.

        Args:
            driver: its version, for the message.
            served: the newest version of CUDA that it serves, `13.0`; empty where that is not known.
        """
        wanted = cuda_major(self.target)
        if wanted is not None and served and float(served) < wanted:
            raise EngineError(
                f"the NVIDIA driver {driver} serves CUDA {served}, TensorRT {self.version} here is for CUDA {wanted}",
                fix=f"update the driver, or run: pip install {self.target}-cu{int(float(served))}",
            )

    def create_builder(self, log: Complaints) -> Any:
        """Return a builder, of which `log` hears.

        Raises:
            EngineError: there is none: CUDA does not work.
        """
        try:
            builder = self.module.Builder(self.logger(log))
        except TypeError:  # how the bindings say that there is none
            builder = None
        if builder is None:
            raise EngineError(f"{self.name} cannot begin to build: {log.last()}", fix="see: mlpdeploy doctor")
        return builder

    def create_network(self, builder: Any, embedded: bool = False) -> Any:
        """Return an empty network with explicit batch, strongly typed where the version can.

        Args:
            embedded: whether plugins that are described in Python go into the engine as code.
        """
        flags = self.module.NetworkDefinitionCreationFlag
        wanted = 0
        if hasattr(flags, "EXPLICIT_BATCH"):
            wanted |= 1 << int(flags.EXPLICIT_BATCH)
        if self.strongly_typed:
            wanted |= 1 << int(flags.STRONGLY_TYPED)
        if embedded:
            wanted |= 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)
        return builder.create_network(wanted)

    def set_precision(self, config: Any, network: Any, types: set[str]) -> None:
        """Allow the types of the graph where a builder flag must do so, and have them obeyed.

        TensorRT obeys what a layer asks for, and a layer of the graph asks for nothing: so each asks for its own types.
        With INT8 the quantizing layers decide, and none asks for another type. Never run with TensorRT 8.6.

        Args:
            types: names of `DataType` that the graph's tensors have.
        """
        if self.strongly_typed:
            return
        flags = self.module.BuilderFlag
        for kind, flag in (("HALF", flags.FP16), ("INT8", flags.INT8)):
            if kind in types:
                config.set_flag(flag)
        if "BF16" in types:
            raise UsageError(f"a bfloat16 model for {self.name}", "TensorRT 10 or later, or fp16")
        config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
        floats = {self.module.DataType.FLOAT, self.module.DataType.HALF}
        for layer in map(network.get_layer, range(network.num_layers) if "INT8" not in types else ()):
            kinds = [layer.get_output(index).dtype for index in range(layer.num_outputs)]
            if kinds and floats.issuperset(kinds):
                layer.precision = kinds[0]
                for index, kind in enumerate(kinds):
                    layer.set_output_type(index, kind)

    def set_options(self, config: Any, options: EngineFlags) -> None:
        """Set the builder's options.

        Raises:
            UsageError: this version has no such option.
        """
        trt = self.module
        if not options.tf32:  # on unless it is cleared
            config.clear_flag(trt.BuilderFlag.TF32)
        if self.is_rtx:
            # Else it may allocate while it runs, which no CUDA graph can hold.
            if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
                config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
            return
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if not self.strongly_typed:  # later versions always let contexts share a profile
            config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.refit:
            config.set_flag(trt.BuilderFlag.REFIT)
        if options.strip:
            if not hasattr(trt.BuilderFlag, "STRIP_PLAN"):
                raise UsageError(f"--strip with {self.name}", "TensorRT 10 or later")
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)

    def known_faults(self, options: EngineFlags) -> list[str]:
        """Return what NVIDIA's release notes say can go wrong in this version with these options."""
        if options.refit and not self.is_rtx and self.version.startswith("11.3.0"):
            return [
                f"{self.name} may drop the bias of a matrix product with --refit: verify it, or take another version"
            ]
        return []

    def load_plugins(self, library: Path) -> None:
        """Load a library of plugins into TensorRT's registry, once in a process.

        Raises:
            EngineError: it cannot be loaded.
        """
        with _loading:  # sessions may be opened by several threads
            loaded = _loaded_libraries.setdefault(self.module, set())
            if library not in loaded:
                self._load_library(library)
                loaded.add(library)

    def _load_library(self, library: Path) -> None:
        complaints = Complaints()
        self.logger(complaints)
        if self.module.get_plugin_registry().load_library(str(library)) is None:
            reason = complaints.last()
            try:  # TensorRT says nothing before it has a logger, and never what the system's loader says
                ctypes.CDLL(str(library))
            except OSError as error:
                reason = str(error)
            raise EngineError(
                f"{self.name} cannot load the plugin library {library}: {reason}",
                fix="build it again: mlpdeploy plugin build",
            )

    def check_embedded(self) -> None:
        """Raise UsageError where an engine of this version cannot carry a plugin's code."""
        if not hasattr(self.module, "QuickPluginCreationRequest"):
            raise UsageError(f"--plugin embedded with {self.name}", "a later TensorRT 10, or 11", "leave --plugin out")
        numpy_version = tuple(int(part) for part in np.__version__.split(".")[:2])
        if int(self.version.partition(".")[0]) < _ARRAYS_READ_SINCE and numpy_version >= _STRICT_NUMPY:
            raise UsageError(
                f"--plugin embedded with {self.name} and numpy {np.__version__}, which its plugin module cannot read",
                "numpy before 2.4, or TensorRT 11",
                "run: pip install 'numpy<2.4', or leave --plugin out",
            )

    def plugin_module(self) -> Any:
        """Return the module in which plugins are described in Python, whose code an engine then carries.

        `check_embedded` says whether this version has one.
        """
        return require(f"{MODULES[self.target]}.plugin")

    def engine_information(
        self, log: Complaints, plan: Any, host_code: bool, shapes: dict[str, tuple[int, ...]]
    ) -> tuple[str, int]:
        """Return the inspector's JSON about a plan that was just built, and the bytes of scratch memory that it needs.

        This needs the GPU that it was built for. Without a context that has all shapes TensorRT tells no types.

        Args:
            log: hears what TensorRT says.
            plan: of the engine.
            host_code: whether it is version-compatible.
            shapes: of the inputs, within the first profile; empty for an engine whose shapes are fixed.

        Raises:
            EngineError: the plan cannot be loaded, or TensorRT gives no inspector or no context.
        """
        runtime, engine = self.open_engine(self.logger(log), plan, host_code)
        if runtime is None or engine is None:
            raise EngineError(f"{self.name} cannot load the engine that it has just built: {log.last()}")
        inspector = engine.create_engine_inspector()
        if inspector is None:  # as for version-compatible engines
            raise EngineError(f"{self.name} has no inspector for this engine")
        if shapes:
            context = self.create_context(engine)
            if not self.choose_profile(context, 0, _LEGACY_STREAM):
                raise EngineError(f"{self.name} refused the engine's first profile: {log.last()}")
            for name, shape in shapes.items():
                context.set_input_shape(name, shape)
            inspector.execution_context = context
        form = self.module.LayerInformationFormat.JSON
        return str(inspector.get_engine_information(form)), self.scratch_bytes(engine)

    def open_engine(self, logger: Any, plan: Any, host_code: bool) -> tuple[Any, Any]:
        """Return (runtime, engine) of a plan, the latter None where TensorRT refuses it and has told the logger why.

        The runtime must live as long as the engine.

        Args:
            host_code: whether the plan is version-compatible, and so carries a runtime of its own.
        """
        try:
            runtime = self.module.Runtime(logger)
        except TypeError:  # how the bindings say that there is none: CUDA does not work
            return None, None
        if host_code:
            runtime.engine_host_code_allowed = True
        return runtime, runtime.deserialize_cuda_engine(plan)

    def tensors(self, engine: Any) -> list[EngineTensor]:
        """Return the engine's inputs and outputs in its own order."""
        found = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == self.module.TensorIOMode.INPUT
            dtype = engine.get_tensor_dtype(name).name
            found.append(EngineTensor(name, is_input, _NUMPY.get(dtype, dtype), tuple(engine.get_tensor_shape(name))))
        return found

    def create_context(self, engine: Any) -> Any:
        """Return an execution context without scratch memory: contexts that run one after another share it.

        Raises:
            ContextError: TensorRT gives none.
        """
        strategies = getattr(self.module, "ExecutionContextAllocationStrategy", None)
        if strategies is None:
            context = engine.create_execution_context_without_device_memory()
        elif self.is_rtx:
            # By default it compiles kernels for a shape beside the first runs, which use slower ones: those would be
            # what a CUDA graph keeps.
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
            specialization = self.module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(strategies.USER_MANAGED)
        if context is None:
            raise ContextError(f"{self.name} cannot create an execution context", fix="free memory of the GPU")
        return context

    def choose_profile(self, context: Any, index: int, stream_handle: int) -> bool:
        """Return whether a context takes an optimization profile; the bindings raise where TensorRT does not."""
        try:
            return bool(context.set_optimization_profile_async(index, stream_handle))
        except RuntimeError:  # whose text says no more than that; the reason is in the log
            return False

    def can_capture(self, context: Any, stream_handle: int) -> bool:
        """Return whether a stream with this context's work can be captured, as far as the version tells: RTX does."""
        ask = getattr(context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream_handle))

    def scratch_bytes(self, engine: Any) -> int:
        """Return how much scratch memory a context needs."""
        return int(
            engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size
        )

    def give_scratch(self, context: Any, pointer: int, size_bytes: int) -> None:
        """Have a context use this device memory while it runs."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(pointer, size_bytes)
        else:
            context.device_memory = pointer

    def set_compute_capabilities(self, config: Any, wanted: tuple[str, ...]) -> None:
        """Tell TensorRT-RTX which GPUs the engine is for.

        Raises:
            UsageError: one that this version does not know.
        """
        known = {
            f"{digits[:-1]}.{digits[-1]}": value
            for name, value in self.module.ComputeCapability.__members__.items()
            if (digits := name.removeprefix("SM")).isdigit()
        }
        for capability in wanted:
            if capability not in known:
                raise UsageError(f"compute capability {capability} for {self.name}", f"one of {', '.join(known)}")
        config.num_compute_capabilities = len(wanted)
        for index, capability in enumerate(wanted):
            if not config.set_compute_capability(known[capability], index):
                raise EngineError(f"{self.name} refused the compute capability {capability}")

    def watch(self, config: Any, monitor: Monitor) -> bool:
        """Have the build tell `monitor` how far it is; return whether the version can."""
        trt = self.module
        if not hasattr(trt, "IProgressMonitor"):
            return False

        class Progress(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                monitor.start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return monitor.step(phase_name, step + 1)

            def phase_finish(self, phase_name: str) -> None:
                monitor.finish(phase_name)

        config.progress_monitor = Progress()
        return True

    def parse(self, network: Any, path: Path, logger: Any) -> Any:
        """Read an ONNX file into the network and return the parser, which must live as long as the network.

        Raises:
            EngineError: it cannot; the message names the node, its operator and the reason.
        """
        parser = self.module.OnnxParser(network, logger)
        if not parser.parse_from_file(str(path)):
            errors = [self._parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise EngineError(
                f"{self.name} cannot parse {path.name}: {errors[0] if errors else 'it does not say why'}{more}",
                fix="export the model again, or report this with the model's manifest",
            )
        return parser

    def _parser_error(self, error: Any) -> str:
        reason = " ".join(str(error.desc()).split())
        if error.node() < 0:
            return reason
        if not hasattr(error, "node_name"):
            return f"node {error.node()}: {reason}"
        return f"node {error.node_name()!r} ({error.node_operator()}): {reason}"


def load_tensorrt(target: str) -> TensorRt:
    """Return the installed TensorRT of a flavour; this is the only place that imports it.

    Raises:
        MissingDependencyError: it is not installed, or not whole.
        UsageError: its version is not one that this package knows.
    """
    name = MODULES[target]
    try:
        module = require(name)
    except (ImportError, OSError) as error:  # its libraries or the driver's are missing
        raise MissingDependencyError(
            f"the package {name} cannot be loaded ({error})", fix=f"run: pip install --force-reinstall {name}"
        ) from error
    found = TensorRt(module, target, str(module.__version__))
    numbers = tuple(int(part) for part in re.findall(r"\d+", found.version)[:2])
    if not found.is_rtx and not (numbers >= OLDEST and numbers[0] <= NEWEST_MAJOR):
        raise UsageError(
            found.name, f"TensorRT 8.6 to {NEWEST_MAJOR}.x", f"run: pip install 'tensorrt<{NEWEST_MAJOR + 1}'"
        )
    return found


def cuda_major(target: str) -> int | None:
    """Return the major version of CUDA that the installed TensorRT is made for, or None where its package hides it."""
    for number in (14, 13, 12):
        try:
            metadata.version(f"{MODULES[target].replace('_', '-')}-cu{number}")
        except metadata.PackageNotFoundError:
            continue
        return number
    return None
