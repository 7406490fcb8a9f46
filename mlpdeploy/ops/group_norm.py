"""GroupNorm1: group normalization with one group, the norm of AS-MLP.

Contract. `mlpdeploy::GroupNorm1(X, scale, bias) -> Y`

    X      (N, C, H, W) float
    scale  (C,) float       bias  (C,) float
    Y      (X - mean) / sqrt(var + epsilon) * scale + bias, with one mean and one (biased) variance per sample,
           over C, H and W

It is a node of its own because no single ONNX form is right and fast everywhere: TensorRT's importer turns
GroupNormalization(num_groups=1) into a per-channel norm, and the form that is fastest in ONNX Runtime is the slowest in
OpenVINO. `export/passes/lower_group_norm.py` picks the form per target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpdeploy.ops.axial_shift import DOMAIN

if TYPE_CHECKING:
    import onnx
    import torch

NAME = "GroupNorm1"
EPSILON = 1e-5


def group_norm1_ref(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return the normalized x: (N, C, H, W), dtype of x."""
    import torch

    return torch.nn.functional.group_norm(x, 1, scale, bias, epsilon)


def group_norm1(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, epsilon: float = EPSILON) -> torch.Tensor:
    """Return the normalized x; while a canonical export is traced, leave one `mlpdeploy::GroupNorm1` node instead.

    Equivalent to: `torch.nn.functional.group_norm(x, 1, scale, bias, epsilon)`.
    """
    from mlpdeploy.ops.tracing import leave_nodes

    if not leave_nodes():
        return group_norm1_ref(x, scale, bias, epsilon)
    import torch

    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{NAME}", (x, scale, bias), {"epsilon": epsilon}, dtype=x.dtype, shape=x.shape, version=1
    )


def group_norm1_function(opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind the node: one InstanceNormalization over the sample as a single channel."""
    from onnx import parser

    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {NAME} <epsilon: float> (X, scale, bias) => (Y) {{
      gn_one32 = Constant <value_floats = [1.0]> ()
      gn_zero32 = Constant <value_floats = [0.0]> ()
      gn_one = CastLike (gn_one32, X)
      gn_zero = CastLike (gn_zero32, X)
      gn_flat_shape = Constant <value_ints = [0, 1, -1]> ()
      gn_column = Constant <value_ints = [-1, 1, 1]> ()
      gn_shape = Shape (X)
      gn_flat = Reshape (X, gn_flat_shape)
      gn_flat_normal = InstanceNormalization <epsilon: float = @epsilon> (gn_flat, gn_one, gn_zero)
      gn_normal = Reshape (gn_flat_normal, gn_shape)
      gn_scale = Reshape (scale, gn_column)
      gn_bias = Reshape (bias, gn_column)
      gn_scaled = Mul (gn_normal, gn_scale)
      Y = Add (gn_scaled, gn_bias)
    }}""")
