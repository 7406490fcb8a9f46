"""TensorRT's builder, and what of it differs between versions: the table is in runtime/tensorrt_api.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlpdeploy.errors import UsageError
from mlpdeploy.runtime.tensorrt_api import EngineError, TensorRt
from mlpdeploy.runtime.tensorrt_log import Complaints


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


def create_builder(api: TensorRt, log: Complaints) -> Any:
    """Return a builder, of which `log` hears.

    Raises:
        EngineError: there is none: CUDA does not work.
    """
    try:
        builder = api.module.Builder(api.logger(log))
    except TypeError:  # how the bindings say that there is none
        builder = None
    if builder is None:
        raise EngineError(f"{api.name} cannot begin to build: {log.last()}", fix="see: mlpdeploy doctor")
    return builder


def create_network(api: TensorRt, builder: Any, embedded: bool = False) -> Any:
    """Return an empty network with explicit batch, strongly typed where the version can.

    Args:
        embedded: whether plugins that are described in Python go into the engine as code.
    """
    flags = api.module.NetworkDefinitionCreationFlag
    wanted = 0
    if hasattr(flags, "EXPLICIT_BATCH"):
        wanted |= 1 << int(flags.EXPLICIT_BATCH)
    if api.strongly_typed:
        wanted |= 1 << int(flags.STRONGLY_TYPED)
    if embedded:
        wanted |= 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)
    return builder.create_network(wanted)


def set_precision(api: TensorRt, config: Any, network: Any, types: set[str]) -> None:
    """Allow the types of the graph where a builder flag must do so, and have them obeyed.

    TensorRT obeys what a layer asks for, and a layer of the graph asks for nothing: so each asks for its own types.
    With INT8 the quantizing layers decide, and none asks for another type. Never run with TensorRT 8.6.

    Args:
        types: names of `DataType` that the graph's tensors have.
    """
    if api.strongly_typed:
        return
    flags = api.module.BuilderFlag
    for kind, flag in (("HALF", flags.FP16), ("INT8", flags.INT8)):
        if kind in types:
            config.set_flag(flag)
    if "BF16" in types:
        raise UsageError(f"a bfloat16 model for {api.name}", "TensorRT 10 or later, or fp16")
    config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
    floats = {api.module.DataType.FLOAT, api.module.DataType.HALF}
    for layer in map(network.get_layer, range(network.num_layers) if "INT8" not in types else ()):
        kinds = [layer.get_output(index).dtype for index in range(layer.num_outputs)]
        if kinds and floats.issuperset(kinds):
            layer.precision = kinds[0]
            for index, kind in enumerate(kinds):
                layer.set_output_type(index, kind)


def set_options(api: TensorRt, config: Any, options: EngineFlags) -> None:
    """Set the builder's options.

    Raises:
        UsageError: this version has no such option.
    """
    trt = api.module
    if not options.tf32:  # on unless it is cleared
        config.clear_flag(trt.BuilderFlag.TF32)
    if api.is_rtx:
        # Else it may allocate while it runs, which no CUDA graph can hold.
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        return
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not api.strongly_typed:  # later versions always let contexts share a profile
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
            raise UsageError(f"--strip with {api.name}", "TensorRT 10 or later")
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)


def set_compute_capabilities(api: TensorRt, config: Any, wanted: tuple[str, ...]) -> None:
    """Tell TensorRT-RTX which GPUs the engine is for.

    Raises:
        UsageError: one that this version does not know.
    """
    known = {
        f"{digits[:-1]}.{digits[-1]}": value
        for name, value in api.module.ComputeCapability.__members__.items()
        if (digits := name.removeprefix("SM")).isdigit()
    }
    for capability in wanted:
        if capability not in known:
            raise UsageError(f"compute capability {capability} for {api.name}", f"one of {', '.join(known)}")
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        if not config.set_compute_capability(known[capability], index):
            raise EngineError(f"{api.name} refused the compute capability {capability}")


def watch_build(api: TensorRt, config: Any, monitor: Monitor) -> bool:
    """Have the build tell `monitor` how far it is; return whether the version can."""
    trt = api.module
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


def parse_network(api: TensorRt, network: Any, path: Path, logger: Any) -> Any:
    """Read an ONNX file into the network and return the parser, which must live as long as the network.

    Raises:
        EngineError: it cannot; the message names the node, its operator and the reason.
    """
    parser = api.module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [_parser_error(api, parser.get_error(index)) for index in range(parser.num_errors)]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise EngineError(
            f"{api.name} cannot parse {path.name}: {errors[0] if errors else 'it does not say why'}{more}",
            fix="export the model again, or report this with the model's manifest",
        )
    return parser


def _parser_error(api: TensorRt, error: Any) -> str:
    reason = " ".join(str(error.desc()).split())
    if error.node() < 0:
        return reason
    if not hasattr(error, "node_name"):
        return f"node {error.node()}: {reason}"
    return f"node {error.node_name()!r} ({error.node_operator()}): {reason}"


def known_faults(api: TensorRt, options: EngineFlags) -> list[str]:
    """Return what NVIDIA's release notes say can go wrong in this version with these options."""
    if options.refit and not api.is_rtx and api.version.startswith("11.3.0"):
        return [f"{api.name} may drop the bias of a matrix product with --refit: verify it, or take another version"]
    return []
