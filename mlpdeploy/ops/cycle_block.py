"""CycleBlock: a whole block of CycleMLP as one node (Chen et al., section 3.2), for runtimes with a kernel for it.

Contract. `mlpdeploy::CycleBlock(X, scale_1, bias_1, W_w, b_w, W_h, b_h, W_c, F_1, f_1, F_2, f_2, W_p, b_p, scale_2,
bias_2, W_1, b_1, W_2, b_2) -> Y`

    X, Y              (N, H, W, C) float, channels last
    scale_*, bias_*   (C,): the affine part of the two layer norms, whose epsilon is an attribute
    W_w, b_w          (C, C, 1, 1), (C,): the branch along the width, (out, in), and W_h, b_h: along the height
    W_c               (C, C): the branch whose input does not move, (out, in)
    F_1, f_1          (G, C), (G,): the gate's first layer, and F_2, f_2: (3 C, G), (3 C,): its second one
    W_p, b_p          (C, C), (C,): the projection, (in, out)
    W_1, b_1          (C, M), (M,): the MLP's first layer, and W_2, b_2: (M, C), (C,): its second one

With `cycle_mlp.py`'s operator in the middle:

    x = X + WeightedCycleMlp(norm_1(X), W_w, b_w, W_h, b_h, W_c, F_1, f_1, F_2, f_2) W_p + b_p
    Y = x + gelu(norm_2(x) W_1 + b_1) W_2 + b_2

The function is what the CPU's lowering makes of the same nodes, in the same order, once a runtime has folded what it
computes from constants, so a runtime without the kernel loses nothing. The kernel is `plugins/csrc/cpu`.

`mlpdeploy::CycleBlockBf16` is the same with products of bfloat16: the six matrices W are of that type, what they are
multiplied with is rounded to it (nearest, ties to even), and everything else is float, the gate among it.

`mlpdeploy::CycleBlockInt8(X, scale_1, ..., b_2, S_w, S_h, S_c, S_p, S_1, S_2) -> Y` has products of 8 bits
(`ops/int8.py`): the matrices W are int8, (out, in) or (in, out) as above, in steps of S, one for each output, and the
attributes step_K and zero_K say what they are multiplied with, K being n (of the three branches), p, 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.block_parts import (
    CONSTANTS,
    bf16_factor,
    gates,
    gelu,
    in_bf16,
    matrices_of,
    plain_factor,
    size,
    token_block_ref,
)
from mlpdeploy.ops.int8 import Scale, int8_product, int8_round_trip_ref, round_trip, scale_attributes

if TYPE_CHECKING:
    import onnx
    import torch

NAME = "CycleBlock"
BF16_NAME = "CycleBlockBf16"
INT8_NAME = "CycleBlockInt8"
BRANCHES = ("W_w", "W_h", "W_c")
GATE = ("F_1", "f_1", "F_2", "f_2")
WEIGHTS = (
    *("scale_1", "bias_1", "W_w", "b_w", "W_h", "b_h", "W_c", *GATE, "W_p", "b_p"),
    *("scale_2", "bias_2", "W_1", "b_1", "W_2", "b_2"),
)
MATRICES = (*BRANCHES, "W_p", "W_1", "W_2")
INPUTS = ("X", *WEIGHTS)
STEPS = tuple(f"S_{name[2:]}" for name in MATRICES)
INT8_INPUTS = (*INPUTS, *STEPS)
# Matrix -> the attributes' K of what it is multiplied with, and its axis of outputs.
SCALES = {"W_w": "n", "W_h": "n", "W_c": "n", "W_p": "p", "W_1": "1", "W_2": "2"}
OUTPUT_AXES = {name: 0 if name in BRANCHES else 1 for name in MATRICES}


def cycle_block_function(opset: int, *, bf16: bool = False) -> onnx.FunctionProto:
    """Return the ONNX function behind the nodes in float32, or with products of bfloat16."""
    factor = bf16_factor if bf16 else plain_factor
    given = [f"mb_half_{name}" if bf16 and name in MATRICES else name for name in INPUTS]
    floats = [f"{name} = Cast <to = 1> (mb_half_{name})" for name in MATRICES if bf16]
    line = "\n      "
    return _parsed(
        opset,
        BF16_NAME if bf16 else NAME,
        given,
        f"""{line.join(floats)}
      {_SIZES}
      mb_x = Reshape (X, mb_flat)
      {factor("LayerNormalization <axis = -1, epsilon: float = @epsilon> (mb_x, scale_1, bias_1)", "mb_n1")}
      mb_n1_grid = Reshape (mb_n1, mb_grid)
      mb_planes = Transpose <perm = [0, 3, 1, 2]> (mb_n1_grid)
      {_MOVED}
      mb_c_shape = Concat <axis = 0> (mb_c, mb_c, mb_one, mb_one)
      mb_c_weight = Reshape (W_c, mb_c_shape)
      mb_w_branch = Conv <kernel_shape = [1, 1]> (mb_w_moved, W_w, b_w)
      mb_h_branch = Conv <kernel_shape = [1, 1]> (mb_h_moved, W_h, b_h)
      mb_c_branch = Conv <kernel_shape = [1, 1]> (mb_planes, mb_c_weight)
      mb_mean_w = GlobalAveragePool (mb_w_branch)
      mb_mean_h = GlobalAveragePool (mb_h_branch)
      mb_mean_c = GlobalAveragePool (mb_c_branch)
      {_BLEND}
      mb_mixed = Transpose <perm = [0, 2, 3, 1]> (mb_sum)
      {factor("Reshape (mb_mixed, mb_flat)", "mb_rows")}
      mb_p_product = MatMul (mb_rows, W_p)
      mb_p = Add (mb_p_product, b_p)
      mb_x2 = Add (mb_x, mb_p)
      {factor("LayerNormalization <axis = -1, epsilon: float = @epsilon> (mb_x2, scale_2, bias_2)", "mb_n2")}
      mb_1_product = MatMul (mb_n2, W_1)
      mb_1 = Add (mb_1_product, b_1)
      {gelu("mb_1", "mb_gelu")}
      {factor("Identity (mb_gelu)", "mb_hidden") if bf16 else ""}
      mb_2_product = MatMul ({"mb_hidden" if bf16 else "mb_gelu"}, W_2)
      mb_2 = Add (mb_2_product, b_2)
      mb_y = Add (mb_x2, mb_2)
      Y = Reshape (mb_y, mb_grid)""",
    )


def cycle_block_int8_function(opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind the nodes with products of 8 bits; opset 20 or newer.

    What moves are floats that 8 bits have kept, which lose nothing when they become bytes again for a product on rows,
    where ONNX Runtime makes products of 8 bits.
    """

    def product(x: str, name: str, y: str, *, turned: bool = True) -> str:
        return int8_product(x, f"W_{name}", f"S_{name}", f"b_{name}", SCALES[f"W_{name}"], y, turned=turned)

    return _parsed(
        opset,
        INT8_NAME,
        INT8_INPUTS,
        f"""{_SIZES}
      mb_normal = LayerNormalization <axis = -1, epsilon: float = @epsilon> (X, scale_1, bias_1)
      {round_trip("mb_normal", "n", "mb_n1")}
      mb_planes = Transpose <perm = [0, 3, 1, 2]> (mb_n1)
      {_MOVED}
      mb_w_rows = Transpose <perm = [0, 2, 3, 1]> (mb_w_moved)
      mb_h_rows = Transpose <perm = [0, 2, 3, 1]> (mb_h_moved)
      {product("mb_w_rows", "w", "mb_w_tokens", turned=False)}
      {product("mb_h_rows", "h", "mb_h_tokens", turned=False)}
      {round_trip("mb_normal", "n", "mb_c_floats")}
      mb_c_turned = Transpose <perm = [1, 0]> (W_c)
      mb_c_matrix = DequantizeLinear <axis = 1> (mb_c_turned, S_c)
      mb_c_tokens = MatMul (mb_c_floats, mb_c_matrix)
      mb_w_branch = Transpose <perm = [0, 3, 1, 2]> (mb_w_tokens)
      mb_h_branch = Transpose <perm = [0, 3, 1, 2]> (mb_h_tokens)
      mb_c_branch = Transpose <perm = [0, 3, 1, 2]> (mb_c_tokens)
      mb_mean_w = GlobalAveragePool (mb_w_branch)
      mb_mean_h = GlobalAveragePool (mb_h_branch)
      mb_mean_c = GlobalAveragePool (mb_c_branch)
      {_BLEND}
      mb_rows = Transpose <perm = [0, 2, 3, 1]> (mb_sum)
      {product("mb_rows", "p", "mb_p")}
      mb_x2 = Add (X, mb_p)
      mb_n2 = LayerNormalization <axis = -1, epsilon: float = @epsilon> (mb_x2, scale_2, bias_2)
      {product("mb_n2", "1", "mb_1")}
      mb_hidden = Gelu (mb_1)
      {product("mb_hidden", "2", "mb_2")}
      Y = Add (mb_x2, mb_2)""",
        f", {scale_attributes(dict.fromkeys(SCALES.values()))}",
    )


def _parsed(opset: int, name: str, inputs: Sequence[str], body: str, attributes: str = "") -> onnx.FunctionProto:
    from onnx import parser

    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {name} <channels: int, epsilon: float{attributes}> ({", ".join(inputs)}) => (Y) {{
      {body}
    }}""")


_SIZES = f"""{CONSTANTS}
      {size("channels", "mb_c")}
      mb_flat = Concat <axis = 0> (mb_any, mb_c)
      mb_grid = Shape (X)"""

# As depthwise convolutions whose kernels have one 1 for each channel.
_MOVED = """mb_0 = Constant <value_int = 0> ()
      mb_1st = Constant <value_int = 1> ()
      mb_3 = Constant <value_int = 3> ()
      mb_numbers = Range (mb_0, mb_c0, mb_1st)
      mb_next = Add (mb_numbers, mb_1st)
      mb_tap = Mod (mb_next, mb_3)
      mb_off_on = Constant <value_floats = [0.0, 1.0]> ()
      mb_hot = OneHot <axis = -1> (mb_tap, mb_3, mb_off_on)
      mb_wide = Concat <axis = 0> (mb_c, mb_one, mb_one, mb_three)
      mb_tall = Concat <axis = 0> (mb_c, mb_one, mb_three, mb_one)
      mb_kernel_w = Reshape (mb_hot, mb_wide)
      mb_kernel_h = Reshape (mb_hot, mb_tall)
      mb_w_moved = Conv <pads = [0, 1, 0, 1], group: int = @channels> (mb_planes, mb_kernel_w)
      mb_h_moved = Conv <pads = [1, 0, 1, 0], group: int = @channels> (mb_planes, mb_kernel_h)"""

_BLEND = f"""mb_means = Sum (mb_mean_w, mb_mean_h, mb_mean_c)
      mb_mean = Reshape (mb_means, mb_flat)
      {gates("mb_gate_w0", "mb_gate_h0", "mb_gate_c0")}
      mb_gate_shape = Concat <axis = 0> (mb_any, mb_c, mb_one, mb_one)
      mb_gate_w = Reshape (mb_gate_w0, mb_gate_shape)
      mb_gate_h = Reshape (mb_gate_h0, mb_gate_shape)
      mb_gate_c = Reshape (mb_gate_c0, mb_gate_shape)
      mb_part_w = Mul (mb_w_branch, mb_gate_w)
      mb_part_h = Mul (mb_h_branch, mb_gate_h)
      mb_part_c = Mul (mb_c_branch, mb_gate_c)
      mb_parts = Add (mb_part_w, mb_part_h)
      mb_sum = Add (mb_parts, mb_part_c)"""


def cycle_block_ref(
    x: torch.Tensor, weights: tuple[torch.Tensor, ...], epsilon: float, *, bf16: bool = False
) -> torch.Tensor:
    """Return Y as the contract writes it.

    Args:
        x: (N, H, W, C), any float dtype.
        weights: in the order of `WEIGHTS` and with the shapes of the contract.
        epsilon: of the norms.
        bf16: round the factors of the products to bfloat16.
    """
    keep = in_bf16 if bf16 else lambda values: values
    w = {name: keep(v) if name in MATRICES else v for name, v in zip(WEIGHTS, weights, strict=True)}
    return _block_ref(x, w, epsilon, lambda values, name: keep(values))


def cycle_block_int8_ref(
    x: torch.Tensor, weights: dict[str, torch.Tensor], scales: dict[str, Scale], epsilon: float
) -> torch.Tensor:
    """Return Y of the node with products of 8 bits as the contract writes it.

    Args:
        x: (N, H, W, C), any float dtype.
        weights: {name: of `WEIGHTS` and `STEPS`}, matrices of whole numbers.
        scales: {K: what a product's input becomes}.
        epsilon: of the norms.
    """
    w = weights | matrices_of(weights, OUTPUT_AXES)
    return _block_ref(x, w, epsilon, lambda values, name: int8_round_trip_ref(values, scales[name]))


def _block_ref(
    x: torch.Tensor,
    w: dict[str, torch.Tensor],
    epsilon: float,
    keep: Callable[[torch.Tensor, str], torch.Tensor],
) -> torch.Tensor:
    """Return Y; `keep` makes of what is multiplied what its type, of the attributes' K, keeps of it."""
    from mlpdeploy.ops.cycle_mlp import weighted_cycle_mlp_ref

    branches = tuple(w[name] for name in ("W_w", "b_w", "W_h", "b_h", "W_c"))
    gate = tuple(w[name] for name in GATE)
    return token_block_ref(x, w, epsilon, lambda y: weighted_cycle_mlp_ref(y, branches, gate), keep)
