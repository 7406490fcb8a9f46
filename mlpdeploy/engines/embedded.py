"""`--plugin embedded`: the axial shift described to TensorRT in Python, with our kernel as PTX for the engine to carry.

TensorRT calls these functions while it builds, and none of them when the engine runs: then it launches the kernel by
itself, with arguments that it works out from the shapes. So the plan of csrc/axial_shift/axial_shift_index.h is written
here once more, in symbols.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import GenericAlias
from typing import Any

from mlpdeploy.errors import MlpDeployError
from mlpdeploy.plugins.ptx import kernel_name, ptx_file
from mlpdeploy.runtime.tensorrt_api import EngineError, TensorRt

PLUGIN_ID = "mlpdeploy::AxialShift"
PADDINGS = ("zero", "circular", "reflect", "replicate")  # as enum Padding counts
EMBEDDED_THREADS = 256
CHUNK_BYTES = 16
# kNARROW_LIMIT: elements that 32-bit indices can count.
MOST_ELEMENTS = 1 << 30


@dataclass(frozen=True)
class Form:
    """A tensor format that the kernel reads: memory is (n, ceil(c / block), h, w, block).

    Attributes:
        format: name in `TensorFormat`.
        block: channels of a block; 0 means all of them, rounded up to `multiple`.
    """

    format: str
    block: int = 0
    multiple: int = 1


# Name in `DataType` -> (name in an AutoTuneCombination, bytes, formats); as kCOMBINATIONS of plugin_core.cpp.
_PLANAR = Form("LINEAR", block=1)
TYPES = {
    "FLOAT": ("FP32", 4, (_PLANAR, Form("HWC"))),
    "HALF": ("FP16", 2, (_PLANAR, Form("HWC8", multiple=8))),
    "BF16": ("BF16", 2, (_PLANAR, Form("HWC8", multiple=8))),
    "INT8": ("INT8", 1, (_PLANAR, Form("HWC16", multiple=16), Form("CHW32", block=32))),
}


def register_embedded(api: TensorRt, ptx: Path) -> list[MlpDeployError]:
    """Have TensorRT find the axial shift as a plugin of which the engine carries the code; once in a process.

    Args:
        ptx: the folder of `plugins.ptx.build_ptx`.

    Returns:
        A list that collects why the plugin refused a layer: TensorRT itself does not hand that on.
    """
    trtp = api.plugin_module()
    problems: list[MlpDeployError] = []
    tensor, outputs_type = trtp.TensorDesc, GenericAlias(tuple, (trtp.TensorDesc,))
    attributes = {"shift_size": int, "dilation": int, "padding": str, "channels": int}

    def describe(x: Any, shift_size: Any, dilation: Any, padding: Any, channels: Any) -> Any:
        return x.like(), x.like()

    def forms(x: Any, outputs: Any) -> Any:
        if x.dtype.name not in TYPES:
            problems.append(EngineError(f"the embedded axial shift got {x.dtype.name}", ", ".join(TYPES)))
            raise problems[-1]
        name, _, found = TYPES[x.dtype.name]
        layouts = "|".join(form.format for form in found)
        return [trtp.AutoTuneCombination(", ".join([name] * 3), ", ".join([layouts] * 3))]

    def kernel(
        x: Any, shift_size: int, dilation: int, padding: str, channels: int, outputs: Any, tactic: int
    ) -> tuple[str, str, Any, Any]:
        padding = padding.rstrip("\0")  # some callers count the closing zero
        _, element_bytes, found = TYPES[x.dtype.name]
        form = next(form for form in found if form.format == x.format.name)
        try:
            check(x, form, shift_size, dilation, padding, channels)
        except MlpDeployError as error:
            problems.append(error)
            raise
        values = plan(x.shape_expr, form, shift_size, dilation, padding, trtp.cdiv)
        launch = trtp.KernelLaunchParams()
        launch.grid_x = trtp.cdiv(values[0], EMBEDDED_THREADS * CHUNK_BYTES // element_bytes)
        launch.block_x = EMBEDDED_THREADS
        arguments = trtp.SymIntExprs(len(values))
        for index, value in enumerate(values):
            arguments[index] = trtp.SymInt32(value)
        return kernel_name(element_bytes), (ptx / ptx_file(element_bytes)).read_text(), launch, arguments

    two = GenericAlias(tuple, (tensor, tensor))
    code = GenericAlias(tuple, (str, str, trtp.KernelLaunchParams, trtp.SymExprs))
    several = GenericAlias(list, (trtp.AutoTuneCombination,))
    trtp.register(PLUGIN_ID)(_annotated(describe, two, x=tensor, **attributes))
    trtp.autotune(PLUGIN_ID)(_annotated(forms, several, x=tensor, outputs=outputs_type))
    trtp.aot_impl(PLUGIN_ID)(
        _annotated(kernel, code, x=tensor, **attributes, outputs=outputs_type, tactic=int),
    )
    return problems


def _annotated(function: Callable[..., Any], result: Any, **arguments: Any) -> Callable[..., Any]:
    """Give a function the annotations that TensorRT reads: types of a module that is loaded only now."""
    function.__annotations__ = {**arguments, "return": result}
    return function


def plan(shape: Any, form: Form, shift_size: int, dilation: int, padding: str, ceil_divide: Any) -> tuple[Any, ...]:
    """Return the fields of ShiftPlan, in its order: numbers, or symbols where they depend on the shape.

    Args:
        shape: the symbols N, C, H, W.
        ceil_divide: divides a symbol and rounds up.
    """
    n, channels, height, width = shape
    block = form.block or ceil_divide(channels, form.multiple) * form.multiple
    blocks = ceil_divide(channels, block)
    block_size = height * width * block
    total = n * blocks * block_size
    group_size = ceil_divide(channels, shift_size)
    along_w, along_h = (block, width), (width * block, height)
    number = PADDINGS.index(padding)
    return (
        total, channels, block, blocks, block_size, group_size, shift_size // 2, dilation, *along_w, *along_h, number,
    )  # fmt: skip


def check(x: Any, form: Form, shift_size: int, dilation: int, padding: str, channels: int) -> None:
    """Raise EngineError for a shift that the kernel cannot do, by what is known of its shape while building."""
    problem = ""
    if shift_size < 1 or shift_size % 2 == 0 or dilation < 1 or padding not in PADDINGS:
        problem = f"shift_size {shift_size}, dilation {dilation}, padding {padding!r}"
    smallest, largest = (x.shape.min, x.shape.max) if x.shape.is_dynamic else (tuple(x.shape), tuple(x.shape))
    reach = shift_size // 2 * dilation
    needed = {"circular": reach, "reflect": reach + 1}.get(padding, 1)
    if not problem and min(smallest[2:]) < needed:
        problem = f"{padding} padding by {reach} pixels on {smallest[2]}x{smallest[3]}"
    if channels not in (0, smallest[1]):
        problem = f"a node for {channels} channels on {smallest[1]}"
    block = form.block or -(-largest[1] // form.multiple) * form.multiple
    elements = -(-largest[1] // block) * block  # with the channels that fill a block
    for size in (largest[0], *largest[2:]):
        elements *= size
    if elements > MOST_ELEMENTS or reach > MOST_ELEMENTS:
        problem = f"a tensor of {elements} elements"
    if problem:
        raise EngineError(
            f"the embedded axial shift got {problem}",
            f"an image that the padding allows, of at most {MOST_ELEMENTS} elements in a batch",
            "build with --plugin library, a smaller --max-batch or --shift native",
        )
