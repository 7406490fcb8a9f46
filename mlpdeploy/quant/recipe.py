"""What a quantization was asked for, as one frozen value that the manifest keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError
from mlpdeploy.quant.scales import MOST

Precision = Literal["fp16", "bf16", "int8"]
Io = Literal["fp32", "fp16"]
Rest = Literal["fp32", "fp16", "bf16"]
Calibrator = Literal["minmax", "percentile", "entropy", "mse"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
CALIBRATORS: tuple[str, ...] = get_args(Calibrator)
DEFAULT_IMAGES = 512


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized. Options that contradict each other are refused when it is made.

    Attributes:
        precision: `fp16`, `bf16` or `int8`.
        io: the type of the model's inputs and outputs; `fp16` only with precision fp16.
        calibrator: how an activation's range follows from its histogram (int8 only); None means the default.
        images: at most so many calibration images are read.
        keep: names of blocks or nodes that stay in float32, or out of int8 where there is a `rest`; a name covers
            everything below it (`layers.0.blocks.1` covers `layers.0.blocks.1.mlp.fc1/Conv`).
        rest: what an int8 model computes in where it does not in int8: norms and sums stay in float32 in any case.
        weight_bits: of int8 weights, 8 or 7. With 7 the sum of two products fits into 16 bits, in which processors
            without VNNI add them.

    Raises:
        UsageError: an unknown or contradictory option.
    """

    precision: Precision
    io: Io = "fp32"
    calibrator: Calibrator | None = None
    images: int = DEFAULT_IMAGES
    keep: tuple[str, ...] = ()
    rest: Rest = "fp32"
    weight_bits: int = 8

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}", fix=closest(self.precision, PRECISIONS))
        if self.io not in get_args(Io):
            raise UsageError(f"unknown type {self.io!r} of inputs and outputs", "fp32 or fp16")
        if self.io == "fp16" and self.precision != "fp16":
            raise UsageError(f"inputs and outputs in fp16 for precision {self.precision}", "--io fp32")
        if self.calibrator is not None and self.calibrator not in CALIBRATORS:
            raise UsageError(f"unknown calibrator {self.calibrator!r}", fix=closest(self.calibrator, CALIBRATORS))
        if self.calibrator is not None and self.precision != "int8":
            raise UsageError(
                f"a calibrator for precision {self.precision}", "--precision int8", "leave one of them out"
            )
        if self.rest not in get_args(Rest):
            raise UsageError(f"unknown type {self.rest!r} for the rest", "fp32, fp16 or bf16")
        if self.rest != "fp32" and self.precision != "int8":
            raise UsageError(f"a type for the rest in precision {self.precision}", "--precision int8")
        if self.weight_bits not in MOST:
            raise UsageError(f"weights of {self.weight_bits} bits", "8 or 7")
        if self.weight_bits != 8 and self.precision != "int8":
            raise UsageError(f"weights of {self.weight_bits} bits for precision {self.precision}", "--precision int8")
        if self.images < 1:
            raise UsageError(f"{self.images} calibration images", "at least 1")

    def keeps(self, node: str) -> bool:
        """Return whether a node's name lies under one of the kept names."""
        return any(_covers(name, node) for name in self.keep)

    def check_names(self, nodes: Iterable[str]) -> None:
        """Raise UsageError unless every kept name is a node's or covers one."""
        known = list(nodes)
        for name in self.keep:
            if not any(_covers(name, node) for node in known):
                paths = [node.partition("/")[0].split(".") for node in known]
                scopes = {".".join(path[:depth]) for path in paths for depth in range(1, len(path) + 1)}
                raise UsageError(f"no node of the model is {name!r} or below it", fix=closest(name, scopes))


def _covers(name: str, node: str) -> bool:
    return node == name or node.startswith((f"{name}.", f"{name}/", f"{name}:"))
