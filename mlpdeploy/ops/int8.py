"""Products of 8 bits inside of our operators: what they mean, as ONNX functions and in PyTorch.

    product(x) = sum((q(x) - zero) * W) * step * S + b
    q(x)       = the whole number from 0 to 255 that is nearest to x / step + zero, as QuantizeLinear has it

step and zero are attributes of a node, step_K and zero_K for a product's input K. W (out, in) is int8 and symmetric, in
steps of S (out,); b (out,) is float. The sum is exact, in 32 bits, for at most 66,000 terms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Scale:
    """What 8-bit numbers stand for: (number - zero) * step.

    Attributes:
        step: of float32.
        zero: 0 to 255.
    """

    step: float
    zero: int

    def attributes(self, name: str) -> dict[str, float | int]:
        """Return a node's attributes for its input K = `name`."""
        return {f"step_{name}": self.step, f"zero_{name}": self.zero}


def scale_attributes(names: Iterable[str]) -> str:
    """Return the attributes of a function whose inputs K are `names`."""
    return ", ".join(f"step_{name}: float, zero_{name}: int" for name in names)


def in_bytes(x: str, name: str, y: str) -> str:
    """Return nodes that make of `x` its 8 bits `y`, and their `<y>_step` and `<y>_zero`."""
    return f"""{y}_step = Constant <value_float: float = @step_{name}> ()
      {y}_zero64 = Constant <value_int: int = @zero_{name}> ()
      {y}_zero = Cast <to = 2> ({y}_zero64)
      {y} = QuantizeLinear ({x}, {y}_step, {y}_zero)"""


def round_trip(x: str, name: str, y: str) -> str:
    """Return nodes that make of `x` what 8 bits keep of it, in floats."""
    return f"""{in_bytes(x, name, f"{y}_bytes")}
      {y} = DequantizeLinear ({y}_bytes, {y}_bytes_step, {y}_bytes_zero)"""


def int8_product(x: str, weight: str, steps: str, bias: str, name: str, y: str, *, turned: bool = False) -> str:
    """Return nodes that make a product `y` of rows `x` (..., in) and a matrix (out, in), or (in, out) if `turned`."""
    turn = "" if turned else f"{y}_turned = Transpose <perm = [1, 0]> ({weight})"
    return f"""{round_trip(x, name, f"{y}_x")}
      {turn}
      {y}_weight = DequantizeLinear <axis = 1> ({weight if turned else f"{y}_turned"}, {steps})
      {y}_sums = MatMul ({y}_x, {y}_weight)
      {y} = Add ({y}_sums, {bias})"""


def int8_round_trip_ref(x: torch.Tensor, scale: Scale) -> torch.Tensor:
    """Return what 8 bits keep of `x`."""
    return ((x / scale.step).round() + scale.zero).clamp(0, 255).sub(scale.zero) * scale.step


def int8_product_ref(
    x: torch.Tensor, weight: torch.Tensor, steps: torch.Tensor, bias: torch.Tensor, scale: Scale
) -> torch.Tensor:
    """Return a product as the contract writes it.

    Args:
        x: (..., in).
        weight: (out, in), whole numbers.
        steps: (out,).
        bias: (out,).
        scale: of `x`.
    """
    return int8_round_trip_ref(x, scale) @ (weight * steps[:, None]).T + bias
