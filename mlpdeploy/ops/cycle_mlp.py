"""WeightedCycleMlp: the token mixer of CycleMLP (Chen et al., ICLR 2022, section 3.2), up to its projection.

Contract. `mlpdeploy::WeightedCycleMlp(X, W_w, b_w, W_h, b_h, W_c, F_1, b_1, F_2, b_2) -> Y`

    X, Y      (N, H, W, C) float, channels last
    W_w, b_w  (C, C, 1, 1), (C,): the layer whose input moves along the width, (out, in), and W_h, b_h: along the height
    W_c       (C, C): the layer whose input stays where it is
    F_1, b_1  (C / 4, C), (C / 4,): the gate's first layer
    F_2, b_2  (3 C, C / 4), (3 C,): the gate's second layer; output 3 c + k is branch k's logit for channel c

Channel c is read s(c) = (c + 1) % 3 - 1 pixels further on, with zeros outside of the image:

    X_w[n, h, w, c] = X[n, h, w + s(c), c]        X_h[n, h, w, c] = X[n, h + s(c), w, c]
    y_w = W_w X_w + b_w        y_h = W_h X_h + b_h        y_c = W_c X

The gates are softmax over the three branches of an MLP of their sum's mean over the image:

    Y = y_w * a_w + y_h * a_h + y_c * a_c

The authors write the moves as a deformable convolution whose offsets are whole numbers and never change. That operator
is slow, and not every exporter and runtime knows it; as a depthwise convolution with a one for each channel the values
are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpdeploy.ops.axial_shift import DOMAIN
from mlpdeploy.ops.gated_sum import gated_sum_nodes, gated_sum_ref

if TYPE_CHECKING:
    import onnx
    import torch

NAME = "WeightedCycleMlp"
CYCLE = 3  # pixels that the channels are read from in turns


def offsets(channels: int) -> list[int]:
    """Return s(c) of every channel."""
    return [(channel + CYCLE // 2) % CYCLE - CYCLE // 2 for channel in range(channels)]


def cycle_shift_ref(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (X_w, X_h) of x: (N, H, W, C), any float dtype."""
    import torch
    from torch.nn import functional as F

    channels, reach = x.shape[3], CYCLE // 2
    taps = (torch.arange(channels, device=x.device) + reach) % CYCLE
    kernel = F.one_hot(taps, CYCLE).to(x.dtype).reshape(channels, 1, 1, CYCLE)
    planes = x.permute(0, 3, 1, 2)
    along_w = F.conv2d(planes, kernel, padding=(0, reach), groups=channels)
    along_h = F.conv2d(planes, kernel.transpose(2, 3), padding=(reach, 0), groups=channels)
    return along_w.permute(0, 2, 3, 1), along_h.permute(0, 2, 3, 1)


def weighted_cycle_mlp_ref(
    x: torch.Tensor, branches: tuple[torch.Tensor, ...], gate: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """Return Y as the contract writes it.

    Args:
        x: (N, H, W, C), any float dtype.
        branches: (W_w, b_w, W_h, b_h, W_c).
        gate: (F_1, b_1, F_2, b_2).
    """
    from torch.nn import functional as F

    along_w, along_h = cycle_shift_ref(x)
    w = F.linear(along_w, branches[0].flatten(1), branches[1])
    h = F.linear(along_h, branches[2].flatten(1), branches[3])
    c = F.linear(x, branches[4])
    return gated_sum_ref((w, h, c), gate)


def weighted_cycle_mlp(
    x: torch.Tensor, branches: tuple[torch.Tensor, ...], gate: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """Return Y; while a canonical export is traced, leave one `mlpdeploy::WeightedCycleMlp` node instead.

    Equivalent to: `weighted_cycle_mlp_ref(x, branches, gate)`.
    """
    from mlpdeploy.ops.tracing import leave_nodes

    if not leave_nodes():
        return weighted_cycle_mlp_ref(x, branches, gate)
    import torch

    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{NAME}", (x, *branches, *gate), {"channels": x.shape[3]}, dtype=x.dtype, shape=x.shape, version=1
    )


def weighted_cycle_mlp_function(opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind the node, as the reference computes it."""
    from onnx import parser

    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {NAME} <channels: int> (X, W_w, b_w, W_h, b_h, W_c, F_1, b_1, F_2, b_2) => (Y) {{
      wc_any = Constant <value_ints = [-1]> ()
      wc_one = Constant <value_ints = [1]> ()
      wc_three = Constant <value_ints = [3]> ()
      wc_0 = Constant <value_int = 0> ()
      wc_1 = Constant <value_int = 1> ()
      wc_3 = Constant <value_int = 3> ()
      wc_count = Constant <value_int: int = @channels> ()
      wc_c = Reshape (wc_count, wc_one)
      wc_numbers = Range (wc_0, wc_count, wc_1)
      wc_turned = Add (wc_numbers, wc_1)
      wc_tap = Mod (wc_turned, wc_3)
      wc_off_on = Constant <value_floats = [0.0, 1.0]> ()
      wc_hot_float = OneHot <axis = -1> (wc_tap, wc_3, wc_off_on)
      wc_hot = CastLike (wc_hot_float, X)
      wc_wide = Concat <axis = 0> (wc_c, wc_one, wc_one, wc_three)
      wc_tall = Concat <axis = 0> (wc_c, wc_one, wc_three, wc_one)
      wc_kernel_w = Reshape (wc_hot, wc_wide)
      wc_kernel_h = Reshape (wc_hot, wc_tall)
      wc_planes = Transpose <perm = [0, 3, 1, 2]> (X)
      wc_w_moved = Conv <pads = [0, 1, 0, 1], group: int = @channels> (wc_planes, wc_kernel_w)
      wc_h_moved = Conv <pads = [1, 0, 1, 0], group: int = @channels> (wc_planes, wc_kernel_h)
      wc_c_shape = Concat <axis = 0> (wc_c, wc_c, wc_one, wc_one)
      wc_c_weight = Reshape (W_c, wc_c_shape)
      wc_w_branch = Conv (wc_w_moved, W_w, b_w)
      wc_h_branch = Conv (wc_h_moved, W_h, b_h)
      wc_c_branch = Conv (wc_planes, wc_c_weight)
      {gated_sum_nodes("wc", "whc", "2, 3", "wc_any, wc_c, wc_one, wc_one", "wc_mixed")}
      Y = Transpose <perm = [0, 2, 3, 1]> (wc_mixed)
    }}""")
