"""What differs between TensorRT 8.6, 10, 11 and TensorRT-RTX; for the builder, engines/tensorrt_builder.py does it.

Nothing else in the package asks for a version.

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
from typing import Any
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
