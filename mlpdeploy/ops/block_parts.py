"""What whole blocks have in common: parts of their torch references, and of their ONNX functions as text.

Inner names of the functions begin with `mb_`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CONSTANTS = """mb_any = Constant <value_ints = [-1]> ()
      mb_one = Constant <value_ints = [1]> ()
      mb_three = Constant <value_ints = [3]> ()
      mb_root = Constant <value_float = 1.4142135> ()
      mb_unit = Constant <value_float = 1.0> ()
      mb_half = Constant <value_float = 0.5> ()"""


def size(attribute: str, value: str) -> str:
    """Return nodes that make a list of one number of an attribute; they need `CONSTANTS`."""
    return f"""{value}0 = Constant <value_int: int = @{attribute}> ()
      {value} = Reshape ({value}0, mb_one)"""


def gelu(x: str, y: str, p: str = "mb") -> str:
    """Return the exact GELU as the operators that ONNX Runtime fuses; `<p>_root`, `_unit` and `_half` are constants."""
    return f"""{y}_div = Div ({x}, {p}_root)
      {y}_erf = Erf ({y}_div)
      {y}_add = Add ({y}_erf, {p}_unit)
      {y}_mul = Mul ({x}, {y}_add)
      {y} = Mul ({y}_mul, {p}_half)"""


def plain_factor(operator: str, y: str) -> str:
    """Return the node of an operator."""
    return f"{y} = {operator}"


def bf16_factor(operator: str, y: str) -> str:
    """Return nodes that round what an operator computes to bfloat16."""
    return f"""{y}_exact = {operator}
      {y}_half = Cast <to = 16> ({y}_exact)
      {y} = Cast <to = 1> ({y}_half)"""


def gates(*names: str) -> str:
    """Return nodes that make three gates (N, 1, C), called so, of `mb_mean` (N, C) by F_1, f_1, F_2 and f_2.

    They need `CONSTANTS` and `mb_c`, a list of the channels. Logits come out branch by branch.
    """
    return f"""mb_gate1 = Gemm <transB = 1> (mb_mean, F_1, f_1)
      {gelu("mb_gate1", "mb_active")}
      mb_by_channel = Concat <axis = 0> (mb_c, mb_three, mb_any)
      mb_by_branch = Concat <axis = 0> (mb_any, mb_three, mb_c)
      mb_three_c = Mul (mb_three, mb_c)
      mb_f2_shape = Concat <axis = 0> (mb_three_c, mb_any)
      mb_f2_split = Reshape (F_2, mb_by_channel)
      mb_f2_turned = Transpose <perm = [1, 0, 2]> (mb_f2_split)
      mb_f2 = Reshape (mb_f2_turned, mb_f2_shape)
      mb_f2_bias_split = Reshape (f_2, mb_by_channel)
      mb_f2_bias_turned = Transpose <perm = [1, 0, 2]> (mb_f2_bias_split)
      mb_f2_bias = Reshape (mb_f2_bias_turned, mb_any)
      mb_logits = Gemm <transB = 1> (mb_active, mb_f2, mb_f2_bias)
      mb_stacked = Reshape (mb_logits, mb_by_branch)
      mb_gates = Softmax <axis = 1> (mb_stacked)
      {", ".join(names)} = Split <axis = 1, num_outputs = 3> (mb_gates)"""


def in_bf16(values: torch.Tensor) -> torch.Tensor:
    """Return what bfloat16 keeps of some values, in their own type."""
    import torch

    return values.to(torch.bfloat16).to(values.dtype)


def matrices_of(weights: Mapping[str, torch.Tensor], output_axes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Return 8-bit matrices W_K multiplied with their steps S_K; `output_axes`: {matrix: its axis of outputs}."""
    found = {}
    for name, axis in output_axes.items():
        steps = weights[f"S_{name[2:]}"]
        found[name] = weights[name].flatten(1) * (steps[:, None] if axis == 0 else steps)
    return found


def token_block_ref(
    x: torch.Tensor,
    w: Mapping[str, torch.Tensor],
    epsilon: float,
    mix: Callable[[torch.Tensor], torch.Tensor],
    keep: Callable[[torch.Tensor, str], torch.Tensor],
) -> torch.Tensor:
    """Return a block around a mixer.

    Args:
        x: (N, H, W, C), any float dtype.
        w: {name in the block's contract: weight}.
        epsilon: of the norms.
        mix: the mixer, up to its projection.
        keep: makes of what is multiplied what its type, of the attributes' K, keeps of it.
    """
    from torch.nn import functional as F

    normal = keep(F.layer_norm(x, x.shape[-1:], w["scale_1"], w["bias_1"], epsilon), "n")
    x = x + keep(mix(normal), "p") @ w["W_p"] + w["b_p"]
    normal = keep(F.layer_norm(x, x.shape[-1:], w["scale_2"], w["bias_2"], epsilon), "1")
    return x + keep(F.gelu(normal @ w["W_1"] + w["b_1"]), "2") @ w["W_2"] + w["b_2"]
