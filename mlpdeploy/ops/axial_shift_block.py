"""AxialShiftBlock: a whole AS-MLP block as one node (Lian et al., section 3.2), for runtimes with a kernel for it.

Contract. `mlpdeploy::AxialShiftBlock(X, W_1, b_1, scale, bias, W_w, b_w, W_h, b_h, W_3, b_3, W_4, b_4, W_5, b_5,
K_w, K_h, sizes) -> Y`

    X, Y               (N, C, H, W) float
    W_1, W_w, W_h, W_3 (C, C, 1, 1) float, and their biases (C,): 1x1 convolutions
    W_4, b_4           (M, C, 1, 1), (M,): the MLP's first layer
    W_5, b_5           (C, M, 1, 1), (C,): its second layer
    scale, bias        (C, 1, 1, 1), (C,): the affine part of the norm in front of the shift; the others have none
    K_w, K_h           the axial shift as one-hot kernels of depthwise convolutions (`lower_axial_shift`); who shifts
                       by the attributes needs neither
    sizes              (4,) int64: X's shape, with 0 for what may differ

With n for the norm without affine part, whose epsilon is an attribute:

    a      = gelu(n(W_1 n(X) + b_1) * scale + bias)
    (w, h) = AxialShift(a), by the attributes shift_size, dilation, padding
    x      = X + W_3 n(gelu(W_w w + b_w) + gelu(W_h h + b_h)) + b_3
    Y      = x + W_5 gelu(W_4 n(x) + b_4) + b_5

The function is what the CPU's lowering makes of the same nodes, in the same order, so a runtime without the kernel
loses nothing. The kernel is `plugins/csrc/cpu`.

`mlpdeploy::AxialShiftBlockBf16(X, W_1, ..., b_5, K_w, K_h) -> Y` is the same with products of bfloat16: the six
matrices W are of that type, what they are multiplied with is rounded to it (nearest, ties to even), and everything else
is float, the sums of the products among it. X and Y are (N, H, W, C) there: a kernel works on rows of channels, and
between two blocks nothing has to be turned.

`mlpdeploy::AxialShiftBlockInt8(X, W_1, ..., b_5, S_1, S_w, S_h, S_3, S_4, S_5, K_w, K_h) -> Y`, on rows too, has
products of 8 bits (`ops/int8.py`): the six matrices W are (out, in) int8, in steps of S (out,), scale is (C,), and the
attributes step_K and zero_K say what they are multiplied with, K being 1, a (of both W_w and W_h), 3, 4 and 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mlpdeploy.ops.axial_shift import DOMAIN, ONNX_PAD_MODE, ShiftSpec, axial_shift_ref
from mlpdeploy.ops.block_parts import gelu
from mlpdeploy.ops.int8 import Scale, int8_product, int8_product_ref, round_trip, scale_attributes

if TYPE_CHECKING:
    import onnx
    import torch

NAME = "AxialShiftBlock"
BF16_NAME = "AxialShiftBlockBf16"
INT8_NAME = "AxialShiftBlockInt8"
WEIGHTS = ("W_1", "b_1", "scale", "bias", "W_w", "b_w", "W_h", "b_h", "W_3", "b_3", "W_4", "b_4", "W_5", "b_5")
MATRICES = ("W_1", "W_w", "W_h", "W_3", "W_4", "W_5")
INPUTS = ("X", *WEIGHTS, "K_w", "K_h", "sizes")
BF16_INPUTS = INPUTS[:-1]
STEPS = tuple(f"S_{name[2:]}" for name in MATRICES)
INT8_INPUTS = ("X", *WEIGHTS, *STEPS, "K_w", "K_h")
# Matrix -> the attributes' K of what it is multiplied with.
SCALES = {"W_1": "1", "W_w": "a", "W_h": "a", "W_3": "3", "W_4": "4", "W_5": "5"}


def axial_shift_block_function(shift: ShiftSpec, opset: int, *, bf16: bool = False) -> onnx.FunctionProto:
    """Return the ONNX function behind the nodes of a file, all of which shift alike."""
    from onnx import parser

    attributes = "shift_size: int, dilation: int, padding: string, channels: int, epsilon: float"
    if not bf16:
        signature = f"{NAME} <{attributes}> ({', '.join(INPUTS)}) => (Y)"
        body = _body(shift, "X", "Y", _product)
    else:
        signature = f"{BF16_NAME} <{attributes}> ({', '.join(BF16_INPUTS)}) => (Y)"
        body = f"""ab_planes = Transpose <perm = [0, 3, 1, 2]> (X)
      sizes = Shape (ab_planes)
      {_body(shift, "ab_planes", "ab_result", _bf16_product)}
      Y = Transpose <perm = [0, 2, 3, 1]> (ab_result)"""
    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {signature} {{
      {body}
    }}""")


def axial_shift_block_int8_function(shift: ShiftSpec, opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind the nodes with products of 8 bits; opset 20 or newer.

    It works on rows, where a product is a MatMul: of that, ONNX Runtime makes one of 8 bits.
    """
    from onnx import parser

    def product(x: str, name: str, y: str) -> str:
        return int8_product(x, f"W_{name}", f"S_{name}", f"b_{name}", SCALES[f"W_{name}"], y)

    attributes = "shift_size: int, dilation: int, padding: string, channels: int, epsilon: float"
    scales = scale_attributes(dict.fromkeys(SCALES.values()))
    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {INT8_NAME} <{attributes}, {scales}> ({", ".join(INT8_INPUTS)}) => (Y) {{
      sizes = Shape (X)
      ab_one = Constant <value_floats = [1.0]> ()
      ab_zero = Constant <value_floats = [0.0]> ()
      ab_flat_shape = Constant <value_ints = [0, 1, -1]> ()
      {_norm("X", "ab_n1")}
      {product("ab_n1", "1", "ab_c1")}
      {_norm("ab_c1", "ab_n2")}
      ab_scaled = Mul (ab_n2, scale)
      ab_affine = Add (ab_scaled, bias)
      ab_active = Gelu (ab_affine)
      {round_trip("ab_active", "a", "ab_a8")}
      ab_a = Transpose <perm = [0, 3, 1, 2]> (ab_a8)
      {_shift(shift, "w")}
      {_shift(shift, "h")}
      ab_w_rows = Transpose <perm = [0, 2, 3, 1]> (ab_w)
      ab_h_rows = Transpose <perm = [0, 2, 3, 1]> (ab_h)
      {product("ab_w_rows", "w", "ab_cw")}
      ab_gw = Gelu (ab_cw)
      {product("ab_h_rows", "h", "ab_ch")}
      ab_gh = Gelu (ab_ch)
      ab_sum = Add (ab_gw, ab_gh)
      {_norm("ab_sum", "ab_n3")}
      {product("ab_n3", "3", "ab_c3")}
      ab_x = Add (X, ab_c3)
      {_norm("ab_x", "ab_n4")}
      {product("ab_n4", "4", "ab_c4")}
      ab_hidden = Gelu (ab_c4)
      {product("ab_hidden", "5", "ab_c5")}
      Y = Add (ab_x, ab_c5)
    }}""")


def _body(shift: ShiftSpec, x: str, y: str, product: Callable[[str, str, str, str], str]) -> str:
    """Return the block from planes `x` to planes `y`."""
    return f"""ab_one = Constant <value_floats = [1.0]> ()
      ab_zero = Constant <value_floats = [0.0]> ()
      ab_flat_shape = Constant <value_ints = [0, 1, -1]> ()
      ab_root = Constant <value_float = 1.4142135> ()
      ab_unit = Constant <value_float = 1.0> ()
      ab_half = Constant <value_float = 0.5> ()
      {_norm(x, "ab_n1")}
      {product("ab_n1", "W_1", "b_1", "ab_c1")}
      {_norm("ab_c1", "ab_n2")}
      ab_affine = Conv <kernel_shape = [1, 1], group: int = @channels> (ab_n2, scale, bias)
      {gelu("ab_affine", "ab_a", "ab")}
      {_shift(shift, "w")}
      {_shift(shift, "h")}
      {product("ab_w", "W_w", "b_w", "ab_cw")}
      {gelu("ab_cw", "ab_gw", "ab")}
      {product("ab_h", "W_h", "b_h", "ab_ch")}
      {gelu("ab_ch", "ab_gh", "ab")}
      ab_sum = Add (ab_gw, ab_gh)
      {_norm("ab_sum", "ab_n3")}
      {product("ab_n3", "W_3", "b_3", "ab_c3")}
      ab_x = Add ({x}, ab_c3)
      {_norm("ab_x", "ab_n4")}
      {product("ab_n4", "W_4", "b_4", "ab_c4")}
      {gelu("ab_c4", "ab_hidden", "ab")}
      {product("ab_hidden", "W_5", "b_5", "ab_c5")}
      {y} = Add (ab_x, ab_c5)"""


def _product(x: str, weight: str, bias: str, y: str) -> str:
    return f"{y} = Conv <kernel_shape = [1, 1]> ({x}, {weight}, {bias})"


def _bf16_product(x: str, weight: str, bias: str, y: str) -> str:
    """Return a product of what bfloat16 keeps of its factors, with sums in float."""
    return f"""{bf16_factors(x, weight, y)}
      {_product(f"{y}_rounded", f"{y}_weight", bias, y)}"""


def bf16_factors(x: str, weight: str, y: str) -> str:
    """Return nodes that make `<y>_rounded` and `<y>_weight`: what bfloat16 keeps of `x`, and a weight, as floats."""
    return f"""{y}_half = Cast <to = 16> ({x})
      {y}_rounded = Cast <to = 1> ({y}_half)
      {y}_weight = Cast <to = 1> ({weight})"""


def _norm(x: str, y: str) -> str:
    return f"""{y}_flat = Reshape ({x}, ab_flat_shape)
      {y}_normal = InstanceNormalization <epsilon: float = @epsilon> ({y}_flat, ab_one, ab_zero)
      {y} = Reshape ({y}_normal, sizes)"""


def _shift(shift: ShiftSpec, axis: str) -> str:
    """Return the shift along one axis, as `lower_axial_shift` writes it."""
    at = 1 if axis == "w" else 0
    pads, kernel, dilations = [0] * 4, [1, 1], [1, 1]
    pads[at] = pads[at + 2] = shift.reach
    kernel[at], dilations[at] = shift.shift_size, shift.dilation
    source, padding = "ab_a", ""
    if shift.padding != "zero" and shift.reach:
        amounts = [0, 0, *pads[:2], 0, 0, *pads[2:]]
        source, pads = f"ab_a{axis}", [0] * 4
        padding = f"""ab_pads_{axis} = Constant <value_ints = {amounts}> ()
      {source} = Pad <mode = "{ONNX_PAD_MODE[shift.padding]}"> (ab_a, ab_pads_{axis})
      """
    return f"""{padding}ab_{axis} = Conv <group: int = @channels, kernel_shape = {kernel}, pads = {pads},
        dilations = {dilations}> ({source}, K_{axis})"""


def axial_shift_block_ref(
    x: torch.Tensor, weights: tuple[torch.Tensor, ...], shift: ShiftSpec, epsilon: float, *, bf16: bool = False
) -> torch.Tensor:
    """Return Y as the contract writes it.

    Args:
        x: (N, C, H, W), any float dtype.
        weights: W_1 to b_5, in the order of `WEIGHTS` and with the shapes of the contract.
        shift: the shift's attributes.
        epsilon: of the norms.
        bf16: round the factors of the products to bfloat16.
    """
    import torch
    from torch.nn import functional as F

    def norm(values: torch.Tensor) -> torch.Tensor:
        return F.group_norm(values, 1, eps=epsilon)

    def rounded(values: torch.Tensor) -> torch.Tensor:
        return values.to(torch.bfloat16).to(values.dtype) if bf16 else values

    def product(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.conv2d(rounded(values), rounded(weight), bias)

    w_1, b_1, scale, bias, w_w, b_w, w_h, b_h, w_3, b_3, w_4, b_4, w_5, b_5 = weights
    a = F.gelu(norm(product(norm(x), w_1, b_1)) * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1))
    along_w, along_h = axial_shift_ref(a, shift)
    mixed = F.gelu(product(along_w, w_w, b_w)) + F.gelu(product(along_h, w_h, b_h))
    x = x + product(norm(mixed), w_3, b_3)
    return x + product(F.gelu(product(norm(x), w_4, b_4)), w_5, b_5)


def axial_shift_block_int8_ref(
    x: torch.Tensor,
    weights: dict[str, torch.Tensor],
    scales: dict[str, Scale],
    shift: ShiftSpec,
    epsilon: float,
) -> torch.Tensor:
    """Return Y of the node with products of 8 bits as the contract writes it.

    Args:
        x: (N, H, W, C), any float dtype.
        weights: {name: of `WEIGHTS` and `STEPS`}, matrices (out, in) of whole numbers.
        scales: {K: what a product's input becomes}.
        shift: the shift's attributes.
        epsilon: of the norms.
    """
    from torch.nn import functional as F

    def norm(values: torch.Tensor) -> torch.Tensor:
        return F.group_norm(values.permute(0, 3, 1, 2), 1, eps=epsilon).permute(0, 2, 3, 1)

    def product(values: torch.Tensor, name: str) -> torch.Tensor:
        matrix, steps, bias = (weights[f"{kind}_{name}"] for kind in ("W", "S", "b"))
        return int8_product_ref(values, matrix, steps, bias, scales[SCALES[f"W_{name}"]])

    a = F.gelu(norm(product(norm(x), "1")) * weights["scale"] + weights["bias"])
    along_w, along_h = (moved.permute(0, 2, 3, 1) for moved in axial_shift_ref(a.permute(0, 3, 1, 2), shift))
    x = x + product(norm(F.gelu(product(along_w, "w")) + F.gelu(product(along_h, "h"))), "3")
    return x + product(F.gelu(product(norm(x), "4")), "5")
