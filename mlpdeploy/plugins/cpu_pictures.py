"""Resizing, cropping and normalizing a picture by the library of CPU kernels: the bits of Pillow and numpy."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpdeploy.errors import PluginError, UsageError
from mlpdeploy.plugins.cpu import find_cpu_library

if TYPE_CHECKING:
    from PIL import Image

_WIDE_PIXEL = 4  # bytes of a colour in Pillow's own memory
_INTEGERS_BEFORE_LEVELS = 11


@dataclass(frozen=True)
class _Pixels:
    """Where a picture's pixels lie; `owner` keeps them there."""

    address: int
    pixel_bytes: int
    row_bytes: int
    owner: object


def prepare_picture(
    image: Image.Image,
    resized: tuple[int, int],
    corner: tuple[int, int],
    crop: tuple[int, int],
    bicubic: bool,
    levels: np.ndarray,
) -> np.ndarray | None:
    """Return (C, H, W) float32 of what a crop shows of a resized picture; None where there is no library.

    Args:
        image: RGB for three channels, L for one.
        resized: (height, width) that the picture is resized to, with antialiasing.
        corner: the crop's first pixel in it, (top, left). What lies outside of the resized picture is black.
        crop: (H, W).
        bicubic: or else bilinear.
        levels: (C, 256) float32, contiguous: what becomes of each channel's values.

    Raises:
        MemoryError: there is none.
    """
    function = _function()
    if function is None:
        return None
    pixels = _pixels_in_place(image) or _pixels_copied(image)
    planes = np.empty((len(levels), *crop), np.float32)
    sizes = (image.height, image.width, pixels.pixel_bytes, pixels.row_bytes, *resized, *corner, *crop, bicubic)
    if function(pixels.address, *sizes, levels.ctypes.data, len(levels), planes.ctypes.data):
        raise MemoryError
    return planes


def _pixels_in_place(image: Image.Image) -> _Pixels | None:
    """Return the pixels of an RGB picture where Pillow has them; None where it does not say, or has no one place.

    Pillow says it since 11.2, by Arrow's C data interface (https://arrow.apache.org/docs/format/CDataInterface.html):
    a list of four bytes a pixel, whose buffers are (validity, values).
    """
    if image.mode != "RGB":
        return None
    try:
        _, capsule = image.__arrow_c_array__()
    except (AttributeError, ValueError):
        return None
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    array = _ArrowArray.from_address(get_pointer(capsule, b"arrow_array"))
    if array.n_children != 1 or array.offset or array.children[0].contents.offset:
        return None
    return _Pixels(array.children[0].contents.buffers[1], _WIDE_PIXEL, image.width * _WIDE_PIXEL, capsule)


def _pixels_copied(image: Image.Image) -> _Pixels:
    array = np.asarray(image)
    return _Pixels(array.ctypes.data, array.shape[2] if array.ndim == 3 else 1, array.strides[0], array)


class _ArrowArray(ctypes.Structure):
    """The structure `ArrowArray` of the C data interface."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    *((name, ctypes.c_void_p) for name in ("dictionary", "release", "private_data")),
]


@functools.cache
def _function() -> Any:
    """Return the library's function, or None: looked for once in a process."""
    try:
        library = find_cpu_library()
        return None if library is None else function_of(library)
    except (PluginError, UsageError, OSError, AttributeError):
        return None


def function_of(library: Path) -> Any:
    """Return the function of a library.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it has no such function.
    """
    function = ctypes.CDLL(str(library)).mlpdeploy_cpu_prepare
    integers: list[Any] = [ctypes.c_int] * _INTEGERS_BEFORE_LEVELS
    integers[3] = ctypes.c_ssize_t
    function.argtypes = [ctypes.c_void_p, *integers, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    return function
