"""WeightedPermuteMlp: the token mixer of Vision Permutator (Hou et al., TPAMI 2022, eq. 1 to 6), up to its projection.

Contract. `mlpdeploy::WeightedPermuteMlp(X, W_h, W_w, W_c, F_1, b_1, F_2, b_2) -> Y`

    X, Y           (N, H, W, C) float, channels last; with `segments` g, C = g * S, and g = H = W so that H * S = C
    W_h, W_w, W_c  (C, C): the projections along height, width and channels, (out, in)
    F_1, b_1       (C / 4, C), (C / 4,): the gate's first layer
    F_2, b_2       (3 C, C / 4), (3 C,): the gate's second layer; output 3 c + k is branch k's logit for channel c

A row of the height branch is one column w of the image and one segment: K runs over (h, s). The width branch likewise
over (w, s). The gates are softmax over the three branches of an MLP of their sum's mean over the image:

    Y = h * a_h + w * a_w + c * a_c

It is a node of its own because the fastest order of these transposes differs per target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.gated_sum import gated_sum_nodes, gated_sum_ref

if TYPE_CHECKING:
    import onnx
    import torch

NAME = "WeightedPermuteMlp"


def weighted_permute_mlp_ref(
    x: torch.Tensor, branches: tuple[torch.Tensor, ...], gate: tuple[torch.Tensor, ...], segments: int
) -> torch.Tensor:
    """Return Y by reshaping and permuting, as the paper writes it.

    Args:
        x: (N, H, W, C), any float dtype.
        branches: (W_h, W_w, W_c).
        gate: (F_1, b_1, F_2, b_2).
        segments: channel groups.
    """
    from torch.nn import functional as F

    _, height, width, channels = x.shape
    each = channels // segments
    split = x.reshape(-1, height, width, segments, each)
    h = split.permute(0, 3, 2, 1, 4).reshape(-1, segments, width, height * each)
    h = F.linear(h, branches[0]).reshape(-1, segments, width, height, each).permute(0, 3, 2, 1, 4)
    h = h.reshape(-1, height, width, channels)
    w = split.permute(0, 1, 3, 2, 4).reshape(-1, height, segments, width * each)
    w = F.linear(w, branches[1]).reshape(-1, height, segments, width, each).permute(0, 1, 3, 2, 4)
    w = w.reshape(-1, height, width, channels)
    c = F.linear(x, branches[2])
    return gated_sum_ref((h, w, c), gate)


def weighted_permute_mlp(
    x: torch.Tensor, branches: tuple[torch.Tensor, ...], gate: tuple[torch.Tensor, ...], segments: int
) -> torch.Tensor:
    """Return Y; while a canonical export is traced, leave one `mlpdeploy::WeightedPermuteMlp` node instead.

    Equivalent to: `weighted_permute_mlp_ref(x, branches, gate, segments)`.
    """
    from mlpdeploy.ops.tracing import leave_nodes

    if not leave_nodes():
        return weighted_permute_mlp_ref(x, branches, gate, segments)
    import torch

    _, height, width, channels = x.shape
    sizes: dict[str, Any] = {"segments": segments, "height": height, "width": width, "channels": channels}
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{NAME}", (x, *branches, *gate), sizes, dtype=x.dtype, shape=x.shape, version=1
    )


def weighted_permute_mlp_function(opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind the node, as the reference computes it."""
    from onnx import parser

    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {NAME} <segments: int, height: int, width: int, channels: int>
      (X, W_h, W_w, W_c, F_1, b_1, F_2, b_2) => (Y) {{
      wp_any = Constant <value_ints = [-1]> ()
      wp_one = Constant <value_ints = [1]> ()
      wp_three = Constant <value_ints = [3]> ()
      wp_g0 = Constant <value_int: int = @segments> ()
      wp_h0 = Constant <value_int: int = @height> ()
      wp_w0 = Constant <value_int: int = @width> ()
      wp_c0 = Constant <value_int: int = @channels> ()
      wp_g = Reshape (wp_g0, wp_one)
      wp_h = Reshape (wp_h0, wp_one)
      wp_w = Reshape (wp_w0, wp_one)
      wp_c = Reshape (wp_c0, wp_one)
      wp_s = Div (wp_c, wp_g)
      wp_image = Concat <axis = 0> (wp_any, wp_h, wp_w, wp_c)
      wp_split_shape = Concat <axis = 0> (wp_any, wp_h, wp_w, wp_g, wp_s)
      wp_split = Reshape (X, wp_split_shape)
      wp_h_rows_shape = Concat <axis = 0> (wp_any, wp_g, wp_w, wp_c)
      wp_h_cells_shape = Concat <axis = 0> (wp_any, wp_g, wp_w, wp_h, wp_s)
      wp_h_moved = Transpose <perm = [0, 3, 2, 1, 4]> (wp_split)
      wp_h_rows = Reshape (wp_h_moved, wp_h_rows_shape)
      wp_h_weight = Transpose <perm = [1, 0]> (W_h)
      wp_h_mixed = MatMul (wp_h_rows, wp_h_weight)
      wp_h_cells = Reshape (wp_h_mixed, wp_h_cells_shape)
      wp_h_back = Transpose <perm = [0, 3, 2, 1, 4]> (wp_h_cells)
      wp_h_branch = Reshape (wp_h_back, wp_image)
      wp_w_rows_shape = Concat <axis = 0> (wp_any, wp_h, wp_g, wp_c)
      wp_w_cells_shape = Concat <axis = 0> (wp_any, wp_h, wp_g, wp_w, wp_s)
      wp_w_moved = Transpose <perm = [0, 1, 3, 2, 4]> (wp_split)
      wp_w_rows = Reshape (wp_w_moved, wp_w_rows_shape)
      wp_w_weight = Transpose <perm = [1, 0]> (W_w)
      wp_w_mixed = MatMul (wp_w_rows, wp_w_weight)
      wp_w_cells = Reshape (wp_w_mixed, wp_w_cells_shape)
      wp_w_back = Transpose <perm = [0, 1, 3, 2, 4]> (wp_w_cells)
      wp_w_branch = Reshape (wp_w_back, wp_image)
      wp_c_weight = Transpose <perm = [1, 0]> (W_c)
      wp_c_branch = MatMul (X, wp_c_weight)
      {gated_sum_nodes("wp", "hwc", "1, 2", "wp_any, wp_one, wp_one, wp_c", "Y")}
    }}""")
