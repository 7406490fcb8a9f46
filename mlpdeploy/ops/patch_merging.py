"""PatchMergingBf16: AS-MLP's patch merging (Lian et al., section 3.1) as one node, with a product of bfloat16.

Contract. `mlpdeploy::PatchMergingBf16(X, W, b) -> Y`

    X       (N, H, W, C) float, H and W even
    W, b    (O, C, 2, 2) bfloat16, (O,) float; 2 C and O are multiples of 32
    Y       (N, H / 2, W / 2, O) float

    Y = conv(n(X), W, stride 2) + b

n is the norm over a whole sample without an affine part, whose epsilon is an attribute; its result is rounded to
bfloat16 (nearest, ties to even), and the sums are float. The kernel is `plugins/csrc/cpu`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.axial_shift_block import bf16_factors

if TYPE_CHECKING:
    import onnx
    import torch

NAME = "PatchMergingBf16"
UNIT = 32  # of 2 C and O


def patch_merging_function(opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind the node."""
    from onnx import parser

    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {NAME} <epsilon: float> (X, W, b) => (Y) {{
      pm_planes = Transpose <perm = [0, 3, 1, 2]> (X)
      pm_sizes = Shape (pm_planes)
      pm_one = Constant <value_floats = [1.0]> ()
      pm_zero = Constant <value_floats = [0.0]> ()
      pm_flat_shape = Constant <value_ints = [0, 1, -1]> ()
      pm_flat = Reshape (pm_planes, pm_flat_shape)
      pm_normal0 = InstanceNormalization <epsilon: float = @epsilon> (pm_flat, pm_one, pm_zero)
      pm_normal = Reshape (pm_normal0, pm_sizes)
      {bf16_factors("pm_normal", "W", "pm_y")}
      pm_y = Conv <kernel_shape = [2, 2], strides = [2, 2]> (pm_y_rounded, pm_y_weight, b)
      Y = Transpose <perm = [0, 2, 3, 1]> (pm_y)
    }}""")


def patch_merging_ref(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
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
