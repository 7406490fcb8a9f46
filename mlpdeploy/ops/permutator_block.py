"""PermutatorBlock: a whole block of Vision Permutator as one node (Hou et al., section 3), for runtimes with a kernel.

Contract. `mlpdeploy::PermutatorBlock(X, scale_1, bias_1, W_h, W_w, W_c, F_1, f_1, F_2, f_2, W_p, b_p, scale_2, bias_2,
W_1, b_1, W_2, b_2) -> Y`

    X, Y              (N, H, W, C) float, channels last, with H = W = `segments`, which divides C
    scale_*, bias_*   (C,): the affine part of the two layer norms, whose epsilon is an attribute
    W_h, W_w, W_c     (C, C): the branches, (out, in)
    F_1, f_1          (G, C), (G,): the gate's first layer, and F_2, f_2: (3 C, G), (3 C,): its second one
    W_p, b_p          (C, C), (C,): the projection, (in, out)
    W_1, b_1          (C, M), (M,): the MLP's first layer, and W_2, b_2: (M, C), (C,): its second one

With `permute_mlp.py`'s operator in the middle:

    x = X + WeightedPermuteMlp(norm_1(X), W_h, W_w, W_c, F_1, f_1, F_2, f_2) W_p + b_p
    Y = x + gelu(norm_2(x) W_1 + b_1) W_2 + b_2

The function is what the CPU's lowering makes of the same nodes, in the same order, once a runtime has folded what it
computes from constants, so a runtime without the kernel loses nothing. How rows move along the width depends on the
size of a segment (`lower_permute_mlp`): the attributes `halves`, `width_perm`, `width_back` and `weight_perm` say it to
the function, and the kernel needs none of them. The kernel is `plugins/csrc/cpu`.

`mlpdeploy::PermutatorBlockBf16` is the same with products of bfloat16: the six matrices W are of that type, what they
are multiplied with is rounded to it (nearest, ties to even), and everything else is float, the gate among it.

`mlpdeploy::PermutatorBlockInt8(X, scale_1, ..., b_2, S_h, S_w, S_c, S_p, S_1, S_2) -> Y` has products of 8 bits
(`ops/int8.py`): the matrices W are int8 with the shapes above, in steps of S, one for each output, and the attributes
step_K and zero_K say what they are multiplied with, K being n (of the three branches), p, 1 and 2.
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
from mlpdeploy.ops.int8 import Scale, in_bytes, int8_product, int8_round_trip_ref, scale_attributes

if TYPE_CHECKING:
    import onnx
    import torch

NAME = "PermutatorBlock"
BF16_NAME = "PermutatorBlockBf16"
INT8_NAME = "PermutatorBlockInt8"
BRANCHES = ("W_h", "W_w", "W_c")
GATE = ("F_1", "f_1", "F_2", "f_2")
WEIGHTS = (
    *("scale_1", "bias_1", *BRANCHES, *GATE, "W_p", "b_p"),
    *("scale_2", "bias_2", "W_1", "b_1", "W_2", "b_2"),
)
MATRICES = (*BRANCHES, "W_p", "W_1", "W_2")
INPUTS = ("X", *WEIGHTS)
STEPS = tuple(f"S_{name[2:]}" for name in MATRICES)
INT8_INPUTS = (*INPUTS, *STEPS)
# Matrix -> the attributes' K of what it is multiplied with, and its axis of outputs.
SCALES = {"W_h": "n", "W_w": "n", "W_c": "n", "W_p": "p", "W_1": "1", "W_2": "2"}
OUTPUT_AXES = {name: 0 if name in BRANCHES else 1 for name in MATRICES}


def width_attributes(wide: bool) -> dict[str, list[int] | int]:
    """Return how the function moves rows along the width: whole segments, or single values.

    Seen as (halves, N * H / halves, W, g, S), a row's g segments become g rows of W * S values.
    """
    if wide:
        perm, weight_perm = [1, 3, 0, 2, 4], [2, 3, 0, 1]
    else:
        perm, weight_perm = [0, 1, 3, 4, 2], [3, 2, 1, 0]
    back = [perm.index(axis) for axis in range(5)]
    return {"halves": 2 if wide else 1, "width_perm": perm, "width_back": back, "weight_perm": weight_perm}


def permutator_block_function(opset: int, *, bf16: bool = False) -> onnx.FunctionProto:
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
      {_HEIGHT}
      mb_h_mixed = MatMul (mb_h_rows, mb_h_weight)
      {_HEIGHT_BACK}
      {_WIDTH}
      mb_w_mixed = MatMul (mb_w_rows, mb_w_weight)
      {_WIDTH_BACK}
      mb_c_weight = Transpose <perm = [1, 0]> (W_c)
      mb_c_mixed = MatMul (mb_n1, mb_c_weight)
      mb_c_branch = Reshape (mb_c_mixed, mb_image)
      {_GATES}
      {_BLEND}
      {factor("Reshape (mb_sum, mb_flat)", "mb_rows")}
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


def permutator_block_int8_function(opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind the nodes with products of 8 bits; opset 20 or newer.

    Bytes are moved, and become floats right before a product, as do the weights: of that, ONNX Runtime makes products
    of 8 bits. Rows of rank 4 keep it from joining a product and its bias before.
    """

    def product(x: str, name: str, y: str) -> str:
        return int8_product(x, f"W_{name}", f"S_{name}", f"b_{name}", SCALES[f"W_{name}"], y, turned=True)

    return _parsed(
        opset,
        INT8_NAME,
        INT8_INPUTS,
        f"""{_SIZES}
      mb_normal = LayerNormalization <axis = -1, epsilon: float = @epsilon> (X, scale_1, bias_1)
      mb_normal_rows = Reshape (mb_normal, mb_flat)
      {in_bytes("mb_normal_rows", "n", "mb_n1")}
      {_HEIGHT}
      {_int8_branch("h", "3, 2, 1, 0")}
      {_HEIGHT_BACK}
      {_WIDTH}
      {_int8_branch("w", "")}
      {_WIDTH_BACK}
      mb_c_weight = Transpose <perm = [1, 0]> (W_c)
      mb_c_floats = DequantizeLinear (mb_n1, mb_n1_step, mb_n1_zero)
      mb_c_matrix = DequantizeLinear <axis = 1> (mb_c_weight, S_c)
      mb_c_mixed = MatMul (mb_c_floats, mb_c_matrix)
      mb_c_branch = Reshape (mb_c_mixed, mb_image)
      {_GATES}
      {_BLEND}
      mb_rows = Reshape (mb_sum, mb_grid)
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
    {name} <segments: int, height: int, width: int, channels: int, epsilon: float, halves: int,
            width_perm: ints, width_back: ints, weight_perm: ints{attributes}>
      ({", ".join(inputs)}) => (Y) {{
      {body}
    }}""")


def _int8_branch(axis: str, perm: str) -> str:
    """Return the product of a branch along the height or width; `perm` as that of its weight, or the attribute."""
    order = f"perm = [{perm}]" if perm else "perm: ints = @weight_perm"
    return f"""mb_{axis}_steps_split = Concat <axis = 0> (mb_{axis}, mb_s, mb_one, mb_one)
      mb_{axis}_steps_four = Reshape (S_{axis}, mb_{axis}_steps_split)
      mb_{axis}_steps_turned = Transpose <{order}> (mb_{axis}_steps_four)
      mb_{axis}_steps = Reshape (mb_{axis}_steps_turned, mb_any)
      mb_{axis}_floats = DequantizeLinear (mb_{axis}_rows, mb_n1_step, mb_n1_zero)
      mb_{axis}_matrix = DequantizeLinear <axis = 1> (mb_{axis}_weight, mb_{axis}_steps)
      mb_{axis}_mixed = MatMul (mb_{axis}_floats, mb_{axis}_matrix)"""


_SIZES = f"""{CONSTANTS}
      {size("segments", "mb_g")}
      {size("height", "mb_h")}
      {size("width", "mb_w")}
      {size("channels", "mb_c")}
      {size("halves", "mb_a")}
      mb_s = Div (mb_c, mb_g)
      mb_wc = Mul (mb_w, mb_c)
      mb_tokens = Mul (mb_h, mb_w)
      mb_flat = Concat <axis = 0> (mb_any, mb_c)
      mb_image = Concat <axis = 0> (mb_any, mb_tokens, mb_c)
      mb_grid = Concat <axis = 0> (mb_any, mb_h, mb_w, mb_c)"""

# One plain transpose gives rows over (s, h), and the weights are reordered to match.
_HEIGHT = """mb_h_view = Concat <axis = 0> (mb_any, mb_h, mb_wc)
      mb_h_cells_shape = Concat <axis = 0> (mb_any, mb_wc, mb_h)
      mb_h_split = Concat <axis = 0> (mb_h, mb_s, mb_h, mb_s)
      mb_square = Concat <axis = 0> (mb_c, mb_c)
      mb_h_four = Reshape (W_h, mb_h_split)
      mb_h_turned = Transpose <perm = [3, 2, 1, 0]> (mb_h_four)
      mb_h_weight = Reshape (mb_h_turned, mb_square)
      mb_h_image = Reshape (mb_n1, mb_h_view)
      mb_h_moved = Transpose <perm = [0, 2, 1]> (mb_h_image)
      mb_h_rows = Reshape (mb_h_moved, mb_flat)"""

_HEIGHT_BACK = """mb_h_cells = Reshape (mb_h_mixed, mb_h_cells_shape)
      mb_h_back = Transpose <perm = [0, 2, 1]> (mb_h_cells)
      mb_h_branch = Reshape (mb_h_back, mb_image)"""

_WIDTH = """mb_w_view = Concat <axis = 0> (mb_a, mb_any, mb_w, mb_g, mb_s)
      mb_w_order = Constant <value_ints: ints = @width_perm> ()
      mb_w_cells_shape = Gather (mb_w_view, mb_w_order)
      mb_w_split = Concat <axis = 0> (mb_w, mb_s, mb_w, mb_s)
      mb_w_four = Reshape (W_w, mb_w_split)
      mb_w_turned = Transpose <perm: ints = @weight_perm> (mb_w_four)
      mb_w_weight = Reshape (mb_w_turned, mb_square)
      mb_w_image = Reshape (mb_n1, mb_w_view)
      mb_w_moved = Transpose <perm: ints = @width_perm> (mb_w_image)
      mb_w_rows = Reshape (mb_w_moved, mb_flat)"""

_WIDTH_BACK = """mb_w_cells = Reshape (mb_w_mixed, mb_w_cells_shape)
      mb_w_back = Transpose <perm: ints = @width_back> (mb_w_cells)
      mb_w_branch = Reshape (mb_w_back, mb_image)"""

# The mean of each branch is a product with a row of 1 / tokens; logits come out branch by branch.
_GATES = f"""mb_tokens_float = Cast <to = 1> (mb_tokens)
      mb_share = Div (mb_unit, mb_tokens_float)
      mb_ones_shape = Concat <axis = 0> (mb_one, mb_tokens)
      mb_ones = Expand (mb_share, mb_ones_shape)
      mb_mean_h = MatMul (mb_ones, mb_h_branch)
      mb_mean_w = MatMul (mb_ones, mb_w_branch)
      mb_mean_c = MatMul (mb_ones, mb_c_branch)
      mb_means = Sum (mb_mean_h, mb_mean_w, mb_mean_c)
      mb_mean = Reshape (mb_means, mb_flat)
      {gates("mb_gate_h", "mb_gate_w", "mb_gate_c")}"""

_BLEND = """mb_part_h = Mul (mb_h_branch, mb_gate_h)
      mb_part_w = Mul (mb_w_branch, mb_gate_w)
      mb_part_c = Mul (mb_c_branch, mb_gate_c)
      mb_parts = Add (mb_part_h, mb_part_w)
      mb_sum = Add (mb_parts, mb_part_c)"""


def permutator_block_ref(
    x: torch.Tensor, weights: tuple[torch.Tensor, ...], segments: int, epsilon: float, *, bf16: bool = False
) -> torch.Tensor:
    """Return Y as the contract writes it.

    Args:
        x: (N, H, W, C), any float dtype.
        weights: in the order of `WEIGHTS` and with the shapes of the contract.
        segments: channel groups.
        epsilon: of the norms.
        bf16: round the factors of the products to bfloat16.
    """
    keep = in_bf16 if bf16 else lambda values: values
    w = {name: keep(v) if name in MATRICES else v for name, v in zip(WEIGHTS, weights, strict=True)}
    return _block_ref(x, w, segments, epsilon, lambda values, name: keep(values))


def permutator_block_int8_ref(
    x: torch.Tensor, weights: dict[str, torch.Tensor], scales: dict[str, Scale], segments: int, epsilon: float
) -> torch.Tensor:
    """Return Y of the node with products of 8 bits as the contract writes it.

    Args:
        x: (N, H, W, C), any float dtype.
        weights: {name: of `WEIGHTS` and `STEPS`}, matrices of whole numbers.
        scales: {K: what a product's input becomes}.
        segments: channel groups.
        epsilon: of the norms.
    """
    w = weights | matrices_of(weights, OUTPUT_AXES)
    return _block_ref(x, w, segments, epsilon, lambda values, name: int8_round_trip_ref(values, scales[name]))


def _block_ref(
    x: torch.Tensor,
    w: dict[str, torch.Tensor],
    segments: int,
    epsilon: float,
    keep: Callable[[torch.Tensor, str], torch.Tensor],
) -> torch.Tensor:
    """Return Y; `keep` makes of what is multiplied what its type, of the attributes' K, keeps of it."""
    from mlpdeploy.ops.permute_mlp import weighted_permute_mlp_ref

    branches, gate = tuple(w[name] for name in BRANCHES), tuple(w[name] for name in GATE)
    return token_block_ref(x, w, epsilon, lambda y: weighted_permute_mlp_ref(y, branches, gate, segments), keep)
