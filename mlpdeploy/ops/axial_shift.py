"""AxialShift: the operator of AS-MLP (Lian et al., ICLR 2022, section 3.2), apart from who runs it.

Contract. `mlpdeploy::AxialShift(X) -> (Y_w, Y_h)`

    X    (N, C, H, W), any float type or int8/uint8
    Y_w  shape and dtype of X: every channel moved along W
    Y_h  shape and dtype of X: every channel moved along H

Channel c belongs to group g = c // ceil(C / shift_size), and its group moves by
s = (g - shift_size // 2) * dilation:

    Y_w[n, c, h, w] = X~[n, c, h, w - s]        Y_h[n, c, h, w] = X~[n, c, h - s, w]

where X~ continues X outside of the image as `padding` says. Both directions leave one node, so that X is read once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from mlpdeploy.errors import UsageError

if TYPE_CHECKING:
    import onnx
    import torch

DOMAIN = "mlpdeploy"
NAME = "AxialShift"
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = "mlpdeploy"

Padding = Literal["zero", "circular", "reflect", "replicate"]
PADDINGS: tuple[str, ...] = get_args(Padding)

# How Pad names the continuations in ONNX and in PyTorch.
ONNX_PAD_MODE = {"zero": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}
_TORCH_PAD_MODE = {"zero": "constant", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
WRAP_OPSET = 19  # the first opset whose Pad knows mode="wrap"


@dataclass(frozen=True)
class ShiftSpec:
    """The attributes of one AxialShift.

    Attributes:
        shift_size: number of channel groups, odd, >= 1.
        dilation: pixels per step, >= 1.
        padding: how the image goes on outside of its border.

    Raises:
        UsageError: a value is outside of its range.
    """

    shift_size: int = 5
    dilation: int = 1
    padding: Padding = "zero"

    def __post_init__(self) -> None:
        if self.shift_size < 1 or self.shift_size % 2 == 0:
            raise UsageError(f"shift_size is {self.shift_size}", "an odd number of at least 1", "try 5")
        if self.dilation < 1:
            raise UsageError(f"dilation is {self.dilation}", "a whole number of at least 1")
        if self.padding not in PADDINGS:
            raise UsageError(f"padding is {self.padding!r}", f"one of {', '.join(PADDINGS)}")

    @property
    def reach(self) -> int:
        """The largest distance in pixels that a channel moves."""
        return self.shift_size // 2 * self.dilation

    def group_sizes(self, channels: int) -> list[int]:
        """Return the channels of each group; later groups are smaller or empty where C is no multiple."""
        size = -(-channels // self.shift_size)
        return [max(0, min(size, channels - start * size)) for start in range(self.shift_size)]

    def check_size(self, height: int, width: int) -> None:
        """Raise UsageError if an image of this size in pixels cannot be continued as `padding` says."""
        smallest = {"zero": 1, "replicate": 1, "circular": self.reach, "reflect": self.reach + 1}[self.padding]
        if min(height, width) < smallest:
            raise UsageError(
                f"{self.padding} padding by {self.reach} pixels on a {height}x{width} feature map",
                f"at least {smallest}x{smallest}",
                "use a larger image, a smaller shift size or dilation, or zero padding",
            )


def axial_shift_ref(x: torch.Tensor, spec: ShiftSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (Y_w, Y_h) as the authors publish it: pad, split into groups, roll each, join, cut the border off.

    It is slow and obvious: the truth in tests, and what a benchmark's peers run.

    Args:
        x: (N, C, H, W), any dtype, any strides.

    Returns:
        Two tensors of x's shape and dtype.
    """
    import torch

    height, width = x.shape[2:]
    reach = spec.reach
    if isinstance(height, int) and isinstance(width, int):
        spec.check_size(height, width)
    if reach == 0:
        return x, x
    padded = torch.nn.functional.pad(x, (reach,) * 4, mode=_TORCH_PAD_MODE[spec.padding])
    groups = torch.chunk(padded, spec.shift_size, 1)
    moves = range(-reach, reach + 1, spec.dilation)

    def moved(axis: int) -> torch.Tensor:
        # Fewer channels than shift_size give fewer groups.
        rolled = [torch.roll(group, move, axis) for group, move in zip(groups, moves, strict=False)]
        return torch.cat(rolled, 1).narrow(2, reach, height).narrow(3, reach, width)

    return moved(3), moved(2)


def axial_shift(x: torch.Tensor, spec: ShiftSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (Y_w, Y_h); while a canonical export is traced, leave one `mlpdeploy::AxialShift` node instead.

    Equivalent to: `axial_shift_ref(x, spec)`.
    """
    from mlpdeploy.ops.tracing import leave_nodes

    if not leave_nodes():
        return axial_shift_ref(x, spec)
    import torch

    along_w, along_h = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{NAME}",
        (x,),
        {**attributes(spec, x.shape[1])},
        dtypes=(x.dtype, x.dtype),
        shapes=(x.shape, x.shape),
        version=1,
    )
    return along_w, along_h


def attributes(spec: ShiftSpec, channels: int) -> dict[str, int | str]:
    """Return the attributes that an `mlpdeploy::AxialShift` node carries, in their fixed order."""
    return {
        "shift_size": spec.shift_size,
        "dilation": spec.dilation,
        "padding": spec.padding,
        "channels": channels,
        "plugin_version": PLUGIN_VERSION,
        "plugin_namespace": PLUGIN_NAMESPACE,
    }


def axial_shift_function(padding: Padding, opset: int) -> onnx.FunctionProto:
    """Return the ONNX function behind the node, for one padding mode: it runs wherever ONNX does.

    The body builds the one-hot kernels of two depthwise convolutions from the node's attributes. All of that folds to
    constants when a runtime loads the model, so the file as it is runs at the speed of the lowered one.

    Raises:
        UsageError: `circular` below opset 19, whose Pad cannot wrap.
    """
    from onnx import parser

    if padding == "circular" and opset < WRAP_OPSET:
        raise UsageError(f"circular padding at opset {opset}", f"opset {WRAP_OPSET} or newer", "leave --opset out")
    if padding == "zero":
        along_w = 'Y_w = Conv <auto_pad = "SAME_UPPER", group: int = @channels> (X, as_kernel_w)'
        along_h = 'Y_h = Conv <auto_pad = "SAME_UPPER", group: int = @channels> (X, as_kernel_h)'
    else:
        mode = ONNX_PAD_MODE[padding]
        along_w = f"""
          as_pads_w = Concat <axis = 0> (as_zeros3, as_reach, as_zeros3, as_reach)
          as_wide = Pad <mode = "{mode}"> (X, as_pads_w)
          Y_w = Conv <group: int = @channels> (as_wide, as_kernel_w)"""
        along_h = f"""
          as_pads_h = Concat <axis = 0> (as_zeros2, as_reach, as_zeros3, as_reach, as_zeros1)
          as_tall = Pad <mode = "{mode}"> (X, as_pads_h)
          Y_h = Conv <group: int = @channels> (as_tall, as_kernel_h)"""
    # The tap that carries the one sits at 2 * reach - (group * dilation): Conv correlates, the shift moves forwards.
    return parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {NAME} <shift_size: int, dilation: int, padding: string, channels: int,
            plugin_version: string, plugin_namespace: string> (X) => (Y_w, Y_h) {{
      as_size = Constant <value_int: int = @shift_size> ()
      as_step = Constant <value_int: int = @dilation> ()
      as_channels = Constant <value_int: int = @channels> ()
      as_0 = Constant <value_int = 0> ()
      as_1 = Constant <value_int = 1> ()
      as_2 = Constant <value_int = 2> ()
      as_zeros1 = Constant <value_ints = [0]> ()
      as_zeros2 = Constant <value_ints = [0, 0]> ()
      as_zeros3 = Constant <value_ints = [0, 0, 0]> ()
      as_more = Sub (as_size, as_1)
      as_sum = Add (as_channels, as_more)
      as_group_size = Div (as_sum, as_size)
      as_all = Range (as_0, as_channels, as_1)
      as_group = Div (as_all, as_group_size)
      as_mirrored = Sub (as_more, as_group)
      as_tap = Mul (as_mirrored, as_step)
      as_span = Mul (as_more, as_step)
      as_taps = Add (as_span, as_1)
      as_reach0 = Div (as_span, as_2)
      as_reach = Unsqueeze (as_reach0, as_zeros1)
      as_off_on = Constant <value_floats = [0.0, 1.0]> ()
      as_one_hot = OneHot <axis = -1> (as_tap, as_taps, as_off_on)
      as_shape_w = Constant <value_ints = [0, 1, 1, -1]> ()
      as_shape_h = Constant <value_ints = [0, 1, -1, 1]> ()
      as_kernel_w32 = Reshape (as_one_hot, as_shape_w)
      as_kernel_h32 = Reshape (as_one_hot, as_shape_h)
      as_kernel_w = CastLike (as_kernel_w32, X)
      as_kernel_h = CastLike (as_kernel_h32, X)
      {along_w}
      {along_h}
    }}""")
