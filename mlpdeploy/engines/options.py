"""What an engine is asked to be: the options, the contradictions in them, and the shapes of its profiles."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from mlpdeploy.engines.tensorrt_builder import EngineFlags
from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import Manifest, TensorSpec

EngineTarget = Literal["tensorrt", "tensorrt-rtx"]
EngineShift = Literal["auto", "plugin", "native"]
PluginForm = Literal["library", "embedded"]
TARGETS: tuple[str, ...] = get_args(EngineTarget)
SHIFTS: tuple[str, ...] = get_args(EngineShift)
PLUGINS: tuple[str, ...] = get_args(PluginForm)

# Min, opt and max of a profile's batch, or of its image size.
Triple = tuple[int, int, int]
SizeTriple = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
DEFAULT_BATCHES: Triple = (1, 8, 32)


@dataclass(frozen=True)
class BuildOptions:
    """What `mlpdeploy build` is asked for.

    Attributes:
        target: the flavour of TensorRT.
        batches: (min, opt, max) rows of each profile; empty means one profile with DEFAULT_BATCHES.
        image_sizes: (min, opt, max) as (height, width), for a model whose image size is open.
        shift: `plugin`, `native` layers, or `auto`: the faster one as measured, or what the target has.
        plugin: `library`, which an engine needs when it is loaded, or `embedded`: the engine carries the kernel's code;
            None means the library, and native layers where there is none.
        compute_capabilities: `8.9` and so on, for TensorRT-RTX; TensorRT builds for the GPU that is there.
        timing_cache: a file that keeps the tactics' timings; None means the one in the artifact.
        flags: `workspace_bytes` limits the builder's scratch memory; `optimization_level` is 0 to 5;
            `hardware_compatible` makes an engine for other GPUs of Ampere and later too, `version_compatible` for other
            versions of TensorRT of the same major; `strip` leaves the weights out, `refit` keeps them exchangeable;
            `tf32` lets products of an fp32 graph be rounded to ten bits, which TensorRT does unless told not to.
    """

    target: EngineTarget = "tensorrt"
    batches: tuple[Triple, ...] = ()
    image_sizes: SizeTriple | None = None
    shift: EngineShift = "auto"
    plugin: PluginForm | None = None
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None
    flags: EngineFlags = field(default_factory=EngineFlags)

    @property
    def asks_for_plugin(self) -> str:
        """How the plugin was asked for by name; empty where it is left to us."""
        if self.shift == "plugin":
            return "--shift plugin"
        return f"--plugin {self.plugin}" if self.plugin else ""

    def check(self) -> None:
        """Raise UsageError for what cannot be, or contradicts itself."""
        if self.target not in TARGETS:
            raise UsageError(f"unknown target {self.target!r}", fix=closest(self.target, TARGETS))
        if self.shift not in SHIFTS:
            raise UsageError(f"shift lowering {self.shift!r}", f"one of {', '.join(SHIFTS)}")
        if self.plugin is not None and self.plugin not in PLUGINS:
            raise UsageError(f"unknown form of the plugin {self.plugin!r}", fix=closest(self.plugin, PLUGINS))
        if self.plugin is not None and self.shift == "native":
            raise UsageError(f"--plugin {self.plugin} with --shift native", "one of the two")
        for batch in self.batches:
            _check_triple(batch, "batch", f"{batch[0]}:{batch[1]}:{batch[2]}")
        level, workspace = self.flags.optimization_level, self.flags.workspace_bytes
        if level is not None and not 0 <= level <= 5:
            raise UsageError(f"optimization level {level}", "0 to 5")
        if workspace is not None and workspace < 1:
            raise UsageError(f"a workspace of {workspace} bytes", "at least 1 MB")
        if self.target == "tensorrt-rtx":
            self._check_rtx()
        elif self.compute_capabilities:
            raise UsageError(
                "--compute-capability for the target tensorrt, which builds for the GPU that is there",
                fix="add --target tensorrt-rtx, or leave it out",
            )

    def _check_rtx(self) -> None:
        if not self.compute_capabilities:
            raise UsageError(
                "no compute capability for TensorRT-RTX", fix="add the GPUs' own, for example --compute-capability 8.9"
            )
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            raise UsageError(f"compute capabilities {', '.join(self.compute_capabilities)}", "each of them once")
        if self.plugin is not None:
            raise UsageError(f"--plugin {self.plugin} for TensorRT-RTX, which has no plugins", fix="leave it out")
        if self.shift == "plugin":
            raise UsageError("--shift plugin for TensorRT-RTX", "auto or native", "it has no plugins")
        given = {
            "--workspace": self.flags.workspace_bytes is not None,
            "--optimization-level": self.flags.optimization_level is not None,
            "--timing-cache": self.timing_cache is not None,
            "--hardware-compatible": self.flags.hardware_compatible,
            "--version-compatible": self.flags.version_compatible,
            "--strip": self.flags.strip,
            "--refit": self.flags.refit,
        }
        for option, is_given in given.items():
            if is_given:
                raise UsageError(
                    f"{option} for TensorRT-RTX, which has no such choice without a GPU", fix=f"leave {option} out"
                )


def parse_batches(text: str) -> Triple:
    """Return (min, opt, max) of `1:8:64`.

    Raises:
        UsageError: it is not three rising numbers.
    """
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise UsageError(f"the profile {text!r}", "min:opt:max rows, for example 1:8:64")
    low, middle, high = (int(part) for part in parts)
    _check_triple((low, middle, high), "batch", text)
    return low, middle, high


def parse_image_sizes(text: str) -> SizeTriple:
    """Return three (height, width) of `224:512:1024` or `224x224:512x640:1024x1024`.

    Raises:
        UsageError: it is not three sizes, none smaller than the one before.
    """
    sizes = []
    for part in text.lower().split(":"):
        height, _, width = part.partition("x")
        if not height.isdigit() or not (width.isdigit() or "x" not in part):
            raise UsageError(f"the image sizes {text!r}", "min:opt:max pixels, for example 224:512:1024 or 224x320:...")
        sizes.append((int(height), int(width or height)))
    if len(sizes) != 3:
        raise UsageError(f"the image sizes {text!r}", "min:opt:max pixels, for example 224:512:1024")
    for axis, name in enumerate(("height", "width")):
        _check_triple((sizes[0][axis], sizes[1][axis], sizes[2][axis]), name, text)
    return sizes[0], sizes[1], sizes[2]


def _check_triple(values: Triple, what: str, text: str) -> None:
    if not 1 <= values[0] <= values[1] <= values[2]:
        raise UsageError(f"{what} {text}", "1 <= min <= opt <= max")


def profiles_for(manifest: Manifest, options: BuildOptions) -> tuple[dict[str, Shapes], ...]:
    """Return {input name: (min, opt, max) shapes} for each profile; none for a model whose shapes are all fixed.

    Raises:
        UsageError: a range for a size that the model fixes, or none for one that it leaves open.
    """
    open_axes = {letter for spec in manifest.inputs for letter, _ in _open_axes(spec)}
    if options.batches and "N" not in open_axes:
        raise UsageError(
            f"a batch profile for a model with a fixed batch of {manifest.inputs[0].shape[0]}",
            fix="leave it out, or export with --batch dynamic",
        )
    open_sizes = bool(open_axes & {"H", "W"})
    if options.image_sizes is not None and not open_sizes:
        raise UsageError(
            "image sizes for a model with a fixed image size", fix="leave them out, or export with --image-size dynamic"
        )
    if open_sizes and options.image_sizes is None:
        raise UsageError(
            "no image sizes for a model that leaves them open", fix="add --image-size min:opt:max, e.g. 224:512:1024"
        )
    if not open_axes:
        return ()
    return tuple(
        {spec.name: _shapes(spec, batches, options.image_sizes) for spec in manifest.inputs}
        for batches in options.batches or (DEFAULT_BATCHES,)
    )


def _open_axes(spec: TensorSpec) -> list[tuple[str, str]]:
    """Return (layout letter, symbol) of an input's axes without a fixed size."""
    return [(letter, size) for letter, size in zip(spec.layout, spec.shape, strict=True) if isinstance(size, str)]


def _shapes(spec: TensorSpec, batches: Triple, sizes: SizeTriple | None) -> Shapes:
    """Return the (min, opt, max) shapes of one input."""
    shapes: list[tuple[int, ...]] = []
    for index in range(3):
        height, width = sizes[index] if sizes else (0, 0)
        ranges = {"N": batches[index], "H": height, "W": width}
        shape = []
        for letter, size in zip(spec.layout, spec.shape, strict=True):
            if isinstance(size, int):
                shape.append(size)
                continue
            factor = int(size.rpartition("*")[0] or 1)
            if ranges[letter] % factor:
                raise UsageError(f"the image size {height}x{width}", f"multiples of {factor} pixels")
            shape.append(ranges[letter])
        shapes.append(tuple(shape))
    return shapes[0], shapes[1], shapes[2]
