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
    factor = _bf16_factor if bf16 else _factor
    given = [f"pb_half_{name}" if bf16 and name in MATRICES else name for name in INPUTS]
    floats = [f"{name} = Cast <to = 1> (pb_half_{name})" for name in MATRICES if bf16]
    line = "\n      "
    return _parsed(
        opset,
        BF16_NAME if bf16 else NAME,
        given,
        f"""{line.join(floats)}
      {_SIZES}
      pb_x = Reshape (X, pb_flat)
      {factor("LayerNormalization <axis = -1, epsilon: float = @epsilon> (pb_x, scale_1, bias_1)", "pb_n1")}
      {_HEIGHT}
      pb_h_mixed = MatMul (pb_h_rows, pb_h_weight)
      {_HEIGHT_BACK}
      {_WIDTH}
      pb_w_mixed = MatMul (pb_w_rows, pb_w_weight)
      {_WIDTH_BACK}
      pb_c_weight = Transpose <perm = [1, 0]> (W_c)
      pb_c_mixed = MatMul (pb_n1, pb_c_weight)
      pb_c_branch = Reshape (pb_c_mixed, pb_image)
      {_GATES}
      {_BLEND}
      {factor("Reshape (pb_sum, pb_flat)", "pb_rows")}
      pb_p_product = MatMul (pb_rows, W_p)
      pb_p = Add (pb_p_product, b_p)
      pb_x2 = Add (pb_x, pb_p)
      {factor("LayerNormalization <axis = -1, epsilon: float = @epsilon> (pb_x2, scale_2, bias_2)", "pb_n2")}
      pb_1_product = MatMul (pb_n2, W_1)
      pb_1 = Add (pb_1_product, b_1)
      {_gelu("pb_1", "pb_gelu")}
      {factor("Identity (pb_gelu)", "pb_hidden") if bf16 else ""}
      pb_2_product = MatMul ({"pb_hidden" if bf16 else "pb_gelu"}, W_2)
      pb_2 = Add (pb_2_product, b_2)
      pb_y = Add (pb_x2, pb_2)
      Y = Reshape (pb_y, pb_grid)""",
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
      pb_normal = LayerNormalization <axis = -1, epsilon: float = @epsilon> (X, scale_1, bias_1)
      pb_normal_rows = Reshape (pb_normal, pb_flat)
      {in_bytes("pb_normal_rows", "n", "pb_n1")}
      {_HEIGHT}
      {_int8_branch("h", "3, 2, 1, 0")}
      {_HEIGHT_BACK}
      {_WIDTH}
      {_int8_branch("w", "")}
      {_WIDTH_BACK}
      pb_c_weight = Transpose <perm = [1, 0]> (W_c)
      pb_c_floats = DequantizeLinear (pb_n1, pb_n1_step, pb_n1_zero)
      pb_c_matrix = DequantizeLinear <axis = 1> (pb_c_weight, S_c)
      pb_c_mixed = MatMul (pb_c_floats, pb_c_matrix)
      pb_c_branch = Reshape (pb_c_mixed, pb_image)
      {_GATES}
      {_BLEND}
      pb_rows = Reshape (pb_sum, pb_grid)
      {product("pb_rows", "p", "pb_p")}
      pb_x2 = Add (X, pb_p)
      pb_n2 = LayerNormalization <axis = -1, epsilon: float = @epsilon> (pb_x2, scale_2, bias_2)
      {product("pb_n2", "1", "pb_1")}
      pb_hidden = Gelu (pb_1)
      {product("pb_hidden", "2", "pb_2")}
      Y = Add (pb_x2, pb_2)""",
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
    return f"""pb_{axis}_steps_split = Concat <axis = 0> (pb_{axis}, pb_s, pb_one, pb_one)
      pb_{axis}_steps_four = Reshape (S_{axis}, pb_{axis}_steps_split)
      pb_{axis}_steps_turned = Transpose <{order}> (pb_{axis}_steps_four)
      pb_{axis}_steps = Reshape (pb_{axis}_steps_turned, pb_any)
      pb_{axis}_floats = DequantizeLinear (pb_{axis}_rows, pb_n1_step, pb_n1_zero)
      pb_{axis}_matrix = DequantizeLinear <axis = 1> (pb_{axis}_weight, pb_{axis}_steps)
      pb_{axis}_mixed = MatMul (pb_{axis}_floats, pb_{axis}_matrix)"""


def _factor(operator: str, y: str) -> str:
    return f"{y} = {operator}"


def _bf16_factor(operator: str, y: str) -> str:
    """Return nodes that round what an operator computes to bfloat16."""
    return f"""{y}_exact = {operator}
      {y}_half = Cast <to = 16> ({y}_exact)
      {y} = Cast <to = 1> ({y}_half)"""


def _size(attribute: str, value: str) -> str:
    return f"""{value}0 = Constant <value_int: int = @{attribute}> ()
      {value} = Reshape ({value}0, pb_one)"""


def _gelu(x: str, y: str) -> str:
    return f"""{y}_div = Div ({x}, pb_root)
      {y}_erf = Erf ({y}_div)
      {y}_add = Add ({y}_erf, pb_unit)
      {y}_mul = Mul ({x}, {y}_add)
      {y} = Mul ({y}_mul, pb_half)"""


_SIZES = f"""pb_any = Constant <value_ints = [-1]> ()
      pb_one = Constant <value_ints = [1]> ()
      pb_three = Constant <value_ints = [3]> ()
      pb_root = Constant <value_float = 1.4142135> ()
      pb_unit = Constant <value_float = 1.0> ()
      pb_half = Constant <value_float = 0.5> ()
      {_size("segments", "pb_g")}
      {_size("height", "pb_h")}
      {_size("width", "pb_w")}
      {_size("channels", "pb_c")}
      {_size("halves", "pb_a")}
      pb_s = Div (pb_c, pb_g)
      pb_wc = Mul (pb_w, pb_c)
      pb_tokens = Mul (pb_h, pb_w)
      pb_flat = Concat <axis = 0> (pb_any, pb_c)
      pb_image = Concat <axis = 0> (pb_any, pb_tokens, pb_c)
      pb_grid = Concat <axis = 0> (pb_any, pb_h, pb_w, pb_c)"""

# One plain transpose gives rows over (s, h), and the weights are reordered to match.
_HEIGHT = """pb_h_view = Concat <axis = 0> (pb_any, pb_h, pb_wc)
      pb_h_cells_shape = Concat <axis = 0> (pb_any, pb_wc, pb_h)
      pb_h_split = Concat <axis = 0> (pb_h, pb_s, pb_h, pb_s)
      pb_square = Concat <axis = 0> (pb_c, pb_c)
      pb_h_four = Reshape (W_h, pb_h_split)
      pb_h_turned = Transpose <perm = [3, 2, 1, 0]> (pb_h_four)
      pb_h_weight = Reshape (pb_h_turned, pb_square)
      pb_h_image = Reshape (pb_n1, pb_h_view)
      pb_h_moved = Transpose <perm = [0, 2, 1]> (pb_h_image)
      pb_h_rows = Reshape (pb_h_moved, pb_flat)"""

_HEIGHT_BACK = """pb_h_cells = Reshape (pb_h_mixed, pb_h_cells_shape)
      pb_h_back = Transpose <perm = [0, 2, 1]> (pb_h_cells)
      pb_h_branch = Reshape (pb_h_back, pb_image)"""

_WIDTH = """pb_w_view = Concat <axis = 0> (pb_a, pb_any, pb_w, pb_g, pb_s)
      pb_w_order = Constant <value_ints: ints = @width_perm> ()
      pb_w_cells_shape = Gather (pb_w_view, pb_w_order)
      pb_w_split = Concat <axis = 0> (pb_w, pb_s, pb_w, pb_s)
      pb_w_four = Reshape (W_w, pb_w_split)
      pb_w_turned = Transpose <perm: ints = @weight_perm> (pb_w_four)
      pb_w_weight = Reshape (pb_w_turned, pb_square)
      pb_w_image = Reshape (pb_n1, pb_w_view)
      pb_w_moved = Transpose <perm: ints = @width_perm> (pb_w_image)
      pb_w_rows = Reshape (pb_w_moved, pb_flat)"""

_WIDTH_BACK = """pb_w_cells = Reshape (pb_w_mixed, pb_w_cells_shape)
      pb_w_back = Transpose <perm: ints = @width_back> (pb_w_cells)
      pb_w_branch = Reshape (pb_w_back, pb_image)"""

# The mean of each branch is a product with a row of 1 / tokens; logits come out branch by branch.
_GATES = f"""pb_tokens_float = Cast <to = 1> (pb_tokens)
      pb_share = Div (pb_unit, pb_tokens_float)
      pb_ones_shape = Concat <axis = 0> (pb_one, pb_tokens)
      pb_ones = Expand (pb_share, pb_ones_shape)
      pb_mean_h = MatMul (pb_ones, pb_h_branch)
      pb_mean_w = MatMul (pb_ones, pb_w_branch)
      pb_mean_c = MatMul (pb_ones, pb_c_branch)
      pb_means = Sum (pb_mean_h, pb_mean_w, pb_mean_c)
      pb_mean = Reshape (pb_means, pb_flat)
      pb_gate1 = Gemm <transB = 1> (pb_mean, F_1, f_1)
      {_gelu("pb_gate1", "pb_active")}
      pb_by_channel = Concat <axis = 0> (pb_c, pb_three, pb_any)
      pb_by_branch = Concat <axis = 0> (pb_any, pb_three, pb_c)
      pb_three_c = Mul (pb_three, pb_c)
      pb_f2_shape = Concat <axis = 0> (pb_three_c, pb_any)
      pb_f2_split = Reshape (F_2, pb_by_channel)
      pb_f2_turned = Transpose <perm = [1, 0, 2]> (pb_f2_split)
      pb_f2 = Reshape (pb_f2_turned, pb_f2_shape)
      pb_f2_bias_split = Reshape (f_2, pb_by_channel)
      pb_f2_bias_turned = Transpose <perm = [1, 0, 2]> (pb_f2_bias_split)
      pb_f2_bias = Reshape (pb_f2_bias_turned, pb_any)
      pb_logits = Gemm <transB = 1> (pb_active, pb_f2, pb_f2_bias)
      pb_stacked = Reshape (pb_logits, pb_by_branch)
      pb_gates = Softmax <axis = 1> (pb_stacked)
      pb_gate_h, pb_gate_w, pb_gate_c = Split <axis = 1, num_outputs = 3> (pb_gates)"""


_BLEND = """pb_part_h = Mul (pb_h_branch, pb_gate_h)
      pb_part_w = Mul (pb_w_branch, pb_gate_w)
      pb_part_c = Mul (pb_c_branch, pb_gate_c)
      pb_parts = Add (pb_part_h, pb_part_w)
      pb_sum = Add (pb_parts, pb_part_c)"""


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
    import torch

    def keep(values: torch.Tensor) -> torch.Tensor:
        return values.to(torch.bfloat16).to(values.dtype) if bf16 else values

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
    matrices = {
        name: weights[name] * (steps[:, None] if OUTPUT_AXES[name] == 0 else steps)
        for name in MATRICES
        for steps in [weights[f"S_{name[2:]}"]]
    }
    return _block_ref(
        x, weights | matrices, segments, epsilon, lambda values, name: int8_round_trip_ref(values, scales[name])
    )


def _block_ref(
    x: torch.Tensor,
    w: dict[str, torch.Tensor],
    segments: int,
    epsilon: float,
    keep: Callable[[torch.Tensor, str], torch.Tensor],
) -> torch.Tensor:
    """Return Y; `keep` makes of what is multiplied what its type, of the attributes' K, keeps of it."""
    from torch.nn import functional as F

    from mlpdeploy.ops.permute_mlp import weighted_permute_mlp_ref

    normal = keep(F.layer_norm(x, x.shape[-1:], w["scale_1"], w["bias_1"], epsilon), "n")
    branches, gate = tuple(w[name] for name in BRANCHES), tuple(w[name] for name in GATE)
    x = x + keep(weighted_permute_mlp_ref(normal, branches, gate, segments), "p") @ w["W_p"] + w["b_p"]
    normal = keep(F.layer_norm(x, x.shape[-1:], w["scale_2"], w["bias_2"], epsilon), "1")
    return x + keep(F.gelu(normal @ w["W_1"] + w["b_1"]), "2") @ w["W_2"] + w["b_2"]
