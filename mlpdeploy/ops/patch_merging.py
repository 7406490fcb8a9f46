"""AS-MLP's patch merging (Lian et al., section 3.1) as one node, with a product of bfloat16 or of 8 bits.

Contract. `mlpdeploy::PatchMergingBf16(X, W, b) -> Y`

    X       (N, H, W, C) float, H and W even
    W, b    (O, C, 2, 2) bfloat16, (O,) float; 2 C and O are multiples of 32
    Y       (N, H / 2, W / 2, O) float

    Y = conv(n(X), W, stride 2) + b

n is the norm over a whole sample without an affine part, whose epsilon is an attribute; its result is rounded to
bfloat16 (nearest, ties to even), and the sums are float. The kernel is `plugins/csrc/cpu`.

`mlpdeploy::PatchMergingInt8(X, W, b, S) -> Y` is the same with a product of 8 bits (`ops/int8.py`): W is int8 in steps
of S (O,), and the attributes step_x and zero_x say what it is multiplied with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.axial_shift_block import bf16_factors
from mlpdeploy.ops.int8 import Scale, int8_product, int8_round_trip_ref, scale_attributes

if TYPE_CHECKING:
    import onnx
    import torch

BF16_NAME = "PatchMergingBf16"
INT8_NAME = "PatchMergingInt8"
UNIT = 32  # of 2 C and O


def patch_merging_bf16_function(opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind the node."""
    from onnx import parser

    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {BF16_NAME} <epsilon: float> (X, W, b) => (Y) {{
      {_NORMAL}
      {bf16_factors("pm_normal", "W", "pm_y")}
      pm_y = Conv <kernel_shape = [2, 2], strides = [2, 2]> (pm_y_rounded, pm_y_weight, b)
      Y = Transpose <perm = [0, 2, 3, 1]> (pm_y)
    }}""")


def patch_merging_int8_function(opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind the node with a product of 8 bits: a MatMul of four pixels' channels."""
    from onnx import parser

    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {INT8_NAME} <epsilon: float, {scale_attributes(["x"])}> (X, W, b, S) => (Y) {{
      {_NORMAL}
      pm_deep = SpaceToDepth <blocksize = 2> (pm_normal)
      pm_rows = Transpose <perm = [0, 2, 3, 1]> (pm_deep)
      pm_by_pixel = Transpose <perm = [0, 2, 3, 1]> (W)
      pm_matrix_shape = Constant <value_ints = [0, -1]> ()
      pm_matrix = Reshape (pm_by_pixel, pm_matrix_shape)
      {int8_product("pm_rows", "pm_matrix", "S", "b", "x", "Y")}
    }}""")


_NORMAL = """pm_planes = Transpose <perm = [0, 3, 1, 2]> (X)
      pm_sizes = Shape (pm_planes)
      pm_one = Constant <value_floats = [1.0]> ()
      pm_zero = Constant <value_floats = [0.0]> ()
      pm_flat_shape = Constant <value_ints = [0, 1, -1]> ()
      pm_flat = Reshape (pm_planes, pm_flat_shape)
      pm_normal0 = InstanceNormalization <epsilon: float = @epsilon> (pm_flat, pm_one, pm_zero)
      pm_normal = Reshape (pm_normal0, pm_sizes)"""


def patch_merging_bf16_ref(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return Y as the contract writes it.

    Args:
        x: (N, H, W, C), any float dtype.
        weight: (O, C, 2, 2), of the same dtype; rounded to bfloat16 here.
        bias: (O,).
        epsilon: of the norm.
    """
    import torch
    from torch.nn import functional as F

    normal = F.group_norm(x.permute(0, 3, 1, 2), 1, eps=epsilon)
    rounded, factor = (values.to(torch.bfloat16).to(values.dtype) for values in (normal, weight))
    return F.conv2d(rounded, factor, bias, stride=2).permute(0, 2, 3, 1)


def patch_merging_int8_ref(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, steps: torch.Tensor, scale: Scale, epsilon: float
) -> torch.Tensor:
    """Return Y of the node with a product of 8 bits as the contract writes it.

    Args:
        x: (N, H, W, C), any float dtype.
        weight: (O, C, 2, 2), whole numbers.
        bias: (O,).
        steps: (O,), of the weight.
        scale: of the norm's result.
        epsilon: of the norm.
    """
    from torch.nn import functional as F

    normal = int8_round_trip_ref(F.group_norm(x.permute(0, 3, 1, 2), 1, eps=epsilon), scale)
    return F.conv2d(normal, weight * steps.reshape(-1, 1, 1, 1), bias, stride=2).permute(0, 2, 3, 1)
