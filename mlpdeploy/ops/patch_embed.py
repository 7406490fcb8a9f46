"""The convolution that reads the image, from planes to rows, beside blocks with products of bfloat16 or of 8 bits.

Contract. `mlpdeploy::PatchEmbed(X, W, b) -> Y`

    X       (N, C, H, W) float
    W, b    (O, C, k, k), (O,) float; O is a multiple of 32
    Y       (N, P, Q, O) float

    Y = conv(X, W, stride, padding) + b

stride is an attribute, and so is padding: so many zeros are on every side.

`mlpdeploy::NormalizedPatchEmbed(X, W, b, scale, offset) -> Y`, AS-MLP's, normalizes that: each sample over all its
values, with an epsilon that is an attribute, and then scale (O,) and offset (O,). The kernel is `plugins/csrc/cpu`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpdeploy.ops.axial_shift import DOMAIN

if TYPE_CHECKING:
    import onnx
    import torch

NAME = "PatchEmbed"
NORMALIZED_NAME = "NormalizedPatchEmbed"
_UNIT = 32  # channels that the kernels write at once


def takes(weight_shape: tuple[int, ...]) -> bool:
    """Return whether the kernels take a convolution whose weight has this shape (O, C, k, k)."""
    return weight_shape[2] == weight_shape[3] and weight_shape[0] % _UNIT == 0


def patch_embed_function(stride: int, padding: int, opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind a node with these attributes."""
    from onnx import parser

    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {NAME} <stride: int, padding: int> (X, W, b) => (Y) {{
      {_convolution(stride, padding)}
      Y = Transpose <perm = [0, 2, 3, 1]> (pe_planes)
    }}""")


def normalized_patch_embed_function(stride: int, padding: int, opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind AS-MLP's node with these attributes."""
    from onnx import parser

    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {NORMALIZED_NAME} <stride: int, padding: int, epsilon: float> (X, W, b, scale, offset) => (Y) {{
      {_convolution(stride, padding)}
      pe_sizes = Shape (pe_planes)
      pe_one = Constant <value_floats = [1.0]> ()
      pe_zero = Constant <value_floats = [0.0]> ()
      pe_flat_shape = Constant <value_ints = [0, 1, -1]> ()
      pe_flat = Reshape (pe_planes, pe_flat_shape)
      pe_normal0 = InstanceNormalization <epsilon: float = @epsilon> (pe_flat, pe_one, pe_zero)
      pe_normal = Reshape (pe_normal0, pe_sizes)
      pe_rows = Transpose <perm = [0, 2, 3, 1]> (pe_normal)
      pe_scaled = Mul (pe_rows, scale)
      Y = Add (pe_scaled, offset)
    }}""")


def _convolution(stride: int, padding: int) -> str:
    sizes = f"strides = [{stride}, {stride}], pads = [{', '.join([str(padding)] * 4)}]"
    return f"pe_planes = Conv <{sizes}> (X, W, b)"


def patch_embed_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int,
    padding: int,
    norm: tuple[torch.Tensor, torch.Tensor, float] | None = None,
) -> torch.Tensor:
    """Return Y as the contract writes it.

    Args:
        x: (N, C, H, W), any float dtype.
        weight: (O, C, k, k), of the same dtype.
        bias: (O,).
        stride, padding: pixels.
        norm: scale (O,), offset (O,) and epsilon of NormalizedPatchEmbed; None for no norm.
    """
    from torch.nn import functional as F

    planes = F.conv2d(x, weight, bias, stride, padding)
    if norm is not None:
        scale, offset, epsilon = norm
        planes = F.group_norm(planes, 1, scale, offset, epsilon)
    return planes.permute(0, 2, 3, 1)
