"""The convolutions of stride 2 between stages as nodes on rows, with a product of bfloat16 or of 8 bits.

Contract. `mlpdeploy::DownsampleBf16(X, W, b) -> Y`, as in Vision Permutator (k = 2) and CycleMLP (k = 3)

    X       (N, H, W, C) float
    W, b    (O, C, k, k) bfloat16, (O,) float; O and C are multiples of 32, or 2 C where k = 2
    Y       (N, P, Q, O) float

    Y = conv(X, W, stride 2, (k - 1) // 2 zeros on every side) + b

X is rounded to bfloat16 (nearest, ties to even), and the sums are float. The kernel is `plugins/csrc/cpu`.

`mlpdeploy::PatchMergingBf16(X, W, b) -> Y`, AS-MLP's (Lian et al., section 3.1), is the same for k = 2 and even H and
W, with n(X) in the place of X: n is the norm over a whole sample without an affine part, whose epsilon is an
attribute.

`mlpdeploy::DownsampleInt8(X, W, b, S) -> Y` and `PatchMergingInt8` are the same with a product of 8 bits
(`ops/int8.py`): W is int8 in steps of S (O,), and the attributes step_x and zero_x say what it is multiplied with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.axial_shift_block import bf16_factors
from mlpdeploy.ops.int8 import Scale, in_bytes, int8_product, int8_round_trip_ref, scale_attributes

if TYPE_CHECKING:
    import onnx
    import torch

BF16_NAME = "DownsampleBf16"
INT8_NAME = "DownsampleInt8"
MERGING_BF16_NAME = "PatchMergingBf16"
MERGING_INT8_NAME = "PatchMergingInt8"
_UNIT = 32  # channels that the kernels read or write at once
_TO_THE_END = 2**63 - 1


def takes(weight_shape: tuple[int, ...]) -> bool:
    """Return whether the kernels take a convolution of stride 2 whose weight has this shape (O, C, k, k)."""
    out_channels, channels, kernel = weight_shape[:3]
    return weight_shape[2:] in ((2, 2), (3, 3)) and kernel * channels % _UNIT == 0 and out_channels % _UNIT == 0


def downsample_bf16_function(opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind a node with a product of bfloat16."""
    from onnx import parser

    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {BF16_NAME} (X, W, b) => (Y) {{
      {_PADDED}
      {bf16_factors("ds_padded", "W", "ds_y")}
      ds_y = Conv <strides = [2, 2]> (ds_y_rounded, ds_y_weight, b)
      Y = Transpose <perm = [0, 2, 3, 1]> (ds_y)
    }}""")


def downsample_int8_function(kernel: int, opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind a node with a product of 8 bits whose weight is (O, C, kernel, kernel).

    A MatMul of the pixels that each output sees, of which ONNX Runtime makes a product of 8 bits. They are gathered as
    bytes.
    """
    from onnx import parser

    around, behind = (kernel - 1) // 2, kernel - 1
    taps = {f"ds_tap_{y}{x}": (y, x) for y in range(kernel) for x in range(kernel)}
    # Every second pixel; the last one has as many behind it as the kernel still has.
    gather = "\n      ".join(
        f"""{tap}_from = Constant <value_ints = [{y}, {x}]> ()
      {tap}_to = Constant <value_ints = [{y - behind or _TO_THE_END}, {x - behind or _TO_THE_END}]> ()
      {tap} = Slice (ds_padded, {tap}_from, {tap}_to, ds_axes, ds_steps)"""
        for tap, (y, x) in taps.items()
    )
    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {INT8_NAME} <{scale_attributes(["x"])}> (X, W, b, S) => (Y) {{
      {in_bytes("X", "x", "ds_x")}
      ds_pads = Constant <value_ints = [0, {around}, {around}, 0, 0, {around}, {around}, 0]> ()
      ds_padded = Pad (ds_x, ds_pads, ds_x_zero)
      ds_axes = Constant <value_ints = [1, 2]> ()
      ds_steps = Constant <value_ints = [2, 2]> ()
      {gather}
      ds_bytes = Concat <axis = 3> ({", ".join(taps)})
      ds_rows = DequantizeLinear (ds_bytes, ds_x_step, ds_x_zero)
      ds_by_pixel = Transpose <perm = [0, 2, 3, 1]> (W)
      ds_flat = Constant <value_ints = [0, -1]> ()
      ds_turned = Reshape (ds_by_pixel, ds_flat)
      ds_matrix = Transpose <perm = [1, 0]> (ds_turned)
      ds_weight = DequantizeLinear <axis = 1> (ds_matrix, S)
      ds_sums = MatMul (ds_rows, ds_weight)
      Y = Add (ds_sums, b)
    }}""")


def patch_merging_bf16_function(opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind AS-MLP's node with a product of bfloat16."""
    from onnx import parser

    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {MERGING_BF16_NAME} <epsilon: float> (X, W, b) => (Y) {{
      {_NORMAL}
      {bf16_factors("pm_normal", "W", "pm_y")}
      pm_y = Conv <kernel_shape = [2, 2], strides = [2, 2]> (pm_y_rounded, pm_y_weight, b)
      Y = Transpose <perm = [0, 2, 3, 1]> (pm_y)
    }}""")


def patch_merging_int8_function(opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind AS-MLP's node with a product of 8 bits: a MatMul of four pixels' channels."""
    from onnx import parser

    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {MERGING_INT8_NAME} <epsilon: float, {scale_attributes(["x"])}> (X, W, b, S) => (Y) {{
      {_NORMAL}
      pm_deep = SpaceToDepth <blocksize = 2> (pm_normal)
      pm_rows = Transpose <perm = [0, 2, 3, 1]> (pm_deep)
      pm_by_pixel = Transpose <perm = [0, 2, 3, 1]> (W)
      pm_matrix_shape = Constant <value_ints = [0, -1]> ()
      pm_matrix = Reshape (pm_by_pixel, pm_matrix_shape)
      {int8_product("pm_rows", "pm_matrix", "S", "b", "x", "Y")}
    }}""")


# Zeros for (k - 1) // 2 lines and columns on every side, where k is the side of W.
_PADDED = """ds_planes = Transpose <perm = [0, 3, 1, 2]> (X)
      ds_side = Shape <start = 2, end = 3> (W)
      ds_one = Constant <value_ints = [1]> ()
      ds_two = Constant <value_ints = [2]> ()
      ds_around = Sub (ds_side, ds_one)
      ds_pad = Div (ds_around, ds_two)
      ds_none = Sub (ds_one, ds_one)
      ds_pads = Concat <axis = 0> (ds_none, ds_none, ds_pad, ds_pad, ds_none, ds_none, ds_pad, ds_pad)
      ds_padded = Pad (ds_planes, ds_pads)"""

_NORMAL = """pm_planes = Transpose <perm = [0, 3, 1, 2]> (X)
      pm_sizes = Shape (pm_planes)
      pm_one = Constant <value_floats = [1.0]> ()
      pm_zero = Constant <value_floats = [0.0]> ()
      pm_flat_shape = Constant <value_ints = [0, 1, -1]> ()
      pm_flat = Reshape (pm_planes, pm_flat_shape)
      pm_normal0 = InstanceNormalization <epsilon: float = @epsilon> (pm_flat, pm_one, pm_zero)
      pm_normal = Reshape (pm_normal0, pm_sizes)"""


def downsample_bf16_ref(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float | None = None
) -> torch.Tensor:
    """Return Y as the contract writes it.

    Args:
        x: (N, H, W, C), any float dtype.
        weight: (O, C, k, k), of the same dtype; rounded to bfloat16 here.
        bias: (O,).
        epsilon: of PatchMerging's norm; None for no norm.
    """
    import torch

    rounded, factor = (values.to(torch.bfloat16).to(values.dtype) for values in (_normal(x, epsilon), weight))
    return _convolution(rounded, factor, bias)


def downsample_int8_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    steps: torch.Tensor,
    scale: Scale,
    epsilon: float | None = None,
) -> torch.Tensor:
    """Return Y of the node with a product of 8 bits as the contract writes it.

    Args:
        x: (N, H, W, C), any float dtype.
        weight: (O, C, k, k), whole numbers.
        bias: (O,).
        steps: (O,), of the weight.
        scale: of what is multiplied.
        epsilon: of PatchMerging's norm; None for no norm.
    """
    return _convolution(int8_round_trip_ref(_normal(x, epsilon), scale), weight * steps.reshape(-1, 1, 1, 1), bias)


def _normal(x: torch.Tensor, epsilon: float | None) -> torch.Tensor:
    """Return the planes (N, C, H, W) that are multiplied."""
    from torch.nn import functional as F

    planes = x.permute(0, 3, 1, 2)
    return planes if epsilon is None else F.group_norm(planes, 1, eps=epsilon)


def _convolution(planes: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional as F

    return F.conv2d(planes, weight, bias, stride=2, padding=(weight.shape[2] - 1) // 2).permute(0, 2, 3, 1)
