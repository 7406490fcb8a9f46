"""The torch operator `mlpdeploy::axial_shift`: the plugin's own kernel on a GPU, the reference elsewhere.

For tests, and for those who stay in PyTorch:

    from mlpdeploy.torch_operator import axial_shift, use_operator

    along_w, along_h = axial_shift(x, ShiftSpec(5))  # one kernel instead of pad, roll and cat
    model = torch.compile(use_operator(model))  # an AS-MLP whose blocks call the operator

On a GPU it needs the library that `mlpdeploy plugin build` makes. That path has never run on a GPU.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

from mlpdeploy.errors import PluginError, UsageError
from mlpdeploy.ops.axial_shift import PADDINGS, ShiftSpec, axial_shift_ref

Pair = tuple[torch.Tensor, torch.Tensor]

# Numbers of ElementType in csrc/axial_shift/axial_shift_params.h.
ELEMENT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
# Whose adjoint is the opposite shift, with the same continuation.
DIFFERENTIABLE = ("zero", "circular")
_PLANAR = 1


def axial_shift(x: torch.Tensor, spec: ShiftSpec) -> Pair:
    """Return (Y_w, Y_h).

    Equivalent to: `axial_shift_ref(x, spec)`.

    Args:
        x: (N, C, H, W); on a GPU float32, float16, bfloat16 or int8. Channels-last memory gives channels-last results;
            other strides are copied first.

    Raises:
        UsageError: an image that is too small for the padding; a dtype that the kernel does not move; or a gradient
            with reflect or replicate padding.
        PluginError: x is on a GPU, and the library is not built.
    """
    result: Pair = operator(x, spec.shift_size, spec.dilation, spec.padding)
    return result


def use_operator(model: torch.nn.Module) -> torch.nn.Module:
    """Have every axial shift of an AS-MLP call the operator, and return the model.

    Raises:
        UsageError: it has none.
    """
    shifts = [module for module in model.modules() if hasattr(module, "shift_by")]
    if not shifts:
        raise UsageError(f"a {type(model).__name__} has no axial shift", "an AS-MLP of mlpdeploy.models")
    for module in shifts:
        setattr(module, "shift_by", axial_shift)  # noqa: B010 - torch's own types allow modules and tensors only
    return model


@torch.library.custom_op("mlpdeploy::axial_shift", mutates_args=())
def operator(x: torch.Tensor, shift_size: int, dilation: int, padding: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (Y_w, Y_h) by the reference: on the CPU, and wherever there is no kernel."""
    outputs = _outputs(x)
    for output, moved in zip(outputs, axial_shift_ref(x, _spec(shift_size, dilation, padding)), strict=True):
        output.copy_(moved)
    return outputs


@operator.register_fake
def _(x: torch.Tensor, shift_size: int, dilation: int, padding: str) -> Pair:
    _spec(shift_size, dilation, padding)
    return _outputs(x)


@operator.register_kernel("cuda")
def _(x: torch.Tensor, shift_size: int, dilation: int, padding: str) -> Pair:
    outputs = _outputs(x)
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream().cuda_stream
        launch(launcher(), x, _spec(shift_size, dilation, padding), outputs, stream)
    return outputs


def _setup_context(ctx: Any, inputs: tuple[torch.Tensor, int, int, str], output: Pair) -> None:
    ctx.attributes = inputs[1:]


def _backward(ctx: Any, along_w: torch.Tensor, along_h: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
    """Return x's gradient: both gradients moved back. Mirrored, a shift forwards is one backwards."""
    padding = ctx.attributes[2]
    if padding not in DIFFERENTIABLE:
        raise UsageError(
            f"a gradient through axial_shift with {padding} padding", " or ".join(DIFFERENTIABLE), "use axial_shift_ref"
        )
    back_w = operator(along_w.flip(3), *ctx.attributes)[0].flip(3)
    back_h = operator(along_h.flip(2), *ctx.attributes)[1].flip(2)
    return back_w + back_h, None, None, None


operator.register_autograd(_backward, setup_context=_setup_context)


def launch(launcher: Any, x: torch.Tensor, spec: ShiftSpec, outputs: Pair, stream: int) -> None:
    """Put the kernel into a stream; the outputs are those of `_outputs`.

    Args:
        launcher: the library's function `mlpdeploy_axial_shift`.
        stream: its handle.

    Raises:
        UsageError: a dtype that the kernel does not move, or an image that is too small.
        PluginError: CUDA refuses.
    """
    if x.dtype not in ELEMENT_TYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in ELEMENT_TYPES)
        raise UsageError(f"axial_shift of {x.dtype} on {x.device}", names)
    n, channels, height, width = x.shape
    spec.check_size(height, width)
    form = _memory_format(x)
    block = channels if form == torch.channels_last else _PLANAR
    source = x.contiguous(memory_format=form)
    sizes = (n, channels, height, width, block, spec.shift_size, spec.dilation)
    pointers = (tensor.data_ptr() for tensor in (source, *outputs))
    status = launcher(*sizes, PADDINGS.index(spec.padding), ELEMENT_TYPES[x.dtype], *pointers, stream)
    if status:
        raise PluginError(f"the axial shift of {x.dtype} {tuple(x.shape)} was not launched (CUDA error {status})")


@functools.cache
def launcher() -> Any:
    """Return the function `mlpdeploy_axial_shift` of the plugin library, whichever TensorRT that is for.

    Raises:
        PluginError: the library is not built, or is one without this function.
    """
    from mlpdeploy.plugins.find import find_plugin_library

    try:
        path = find_plugin_library("IPluginV3")
    except PluginError:
        try:
            path = find_plugin_library("IPluginV2DynamicExt")
        except PluginError as error:
            raise PluginError(f"axial_shift on a GPU: {error.got}", error.wanted, error.fix) from error
    return launcher_of(path)


def launcher_of(path: Path) -> Any:
    """Return the function `mlpdeploy_axial_shift` of one library."""
    try:
        function = ctypes.CDLL(str(path)).mlpdeploy_axial_shift
    except (OSError, AttributeError) as error:
        told = f"{path} has no mlpdeploy_axial_shift ({error})"
        raise PluginError(told, fix="run: mlpdeploy plugin build") from error
    function.argtypes = [ctypes.c_int64] * 7 + [ctypes.c_int32] * 2 + [ctypes.c_void_p] * 4
    function.restype = ctypes.c_int32
    return function


def _spec(shift_size: int, dilation: int, padding: str) -> ShiftSpec:
    return ShiftSpec(shift_size, dilation, padding)  # type: ignore[arg-type]  # it checks what it is given


def _memory_format(x: torch.Tensor) -> torch.memory_format:
    """Return the layout that x is read in and results are given in."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _outputs(x: torch.Tensor) -> Pair:
    """Return two tensors of x's shape and dtype, dense in x's layout, with nothing in them yet."""
    form = _memory_format(x)
    return torch.empty_like(x, memory_format=form), torch.empty_like(x, memory_format=form)
