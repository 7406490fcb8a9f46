"""What goes into a Session and comes out of it: arrays are checked before a backend sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import TensorSpec

# A backend whose arrays may be on a GPU has its own class for those; they have an array's shape, dtype and row slices.
Arrays = dict[str, np.ndarray]
OnGpu = Callable[[Any, str], Any]  # of an array, and what it is, for the errors: "input 'input'"

_CUDA_DEVICE = 2  # kDLCUDA of dlpack.h


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, Any], on_gpu: OnGpu | None = None) -> Arrays:
    """Return the feeds as contiguous arrays, in the model's order, after checking names, dtypes and shapes.

    Args:
        on_gpu: gives a backend's own array for one on a GPU; None refuses it.
    """
    names = [spec.name for spec in specs]
    if not isinstance(feeds, Mapping):
        raise UsageError(f"inputs are a {type(feeds).__name__}", f"a dict: {{{names[0]!r}: array}}")
    unknown = sorted(set(feeds) - set(names))
    if unknown:
        raise UsageError(f"unknown input {unknown[0]!r}", fix=closest(unknown[0], names))
    arrays: Arrays = {}
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.name not in feeds:
            raise UsageError(f"input {spec.name!r} is missing", f"inputs {', '.join(names)}")
        value = feeds[spec.name]
        if on_gpu is not None and _is_on_gpu(value):
            arrays[spec.name] = on_gpu(value, f"input {spec.name!r}")
        else:
            array = value if isinstance(value, np.ndarray) else _to_numpy(value, spec.name)
            arrays[spec.name] = np.ascontiguousarray(array)
        _check_array(arrays[spec.name], spec, sizes)
    return arrays


def _is_on_gpu(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) == _CUDA_DEVICE
    return hasattr(value, "__cuda_array_interface__")


def check_outputs(
    specs: tuple[TensorSpec, ...],
    outputs: Mapping[str, Any],
    rows: int,
    on_gpu: OnGpu | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Arrays:
    """Return the output arrays in the model's order, after checking that results can be written to them directly.

    Args:
        on_gpu: gives a backend's own array for one on a GPU; None refuses it.
        sizes: as `open_sizes` returns them; a size that is not in it is not compared.
    """
    arrays: Arrays = {}
    for spec in specs:
        array = outputs.get(spec.name)
        if array is None:
            raise UsageError(f"outputs lacks {spec.name!r}", f"arrays for {', '.join(s.name for s in specs)}")
        wanted = (rows, *(_resolved(size, sizes or {}) for size in spec.shape[1:]))
        text = f"a writable, contiguous {spec.dtype} ({', '.join(map(str, wanted))})"
        if on_gpu is not None and _is_on_gpu(array):
            array = on_gpu(array, f"output array {spec.name!r}")
            usable = array.writable
        elif isinstance(array, np.ndarray):
            usable = array.flags.c_contiguous and array.flags.writeable
        else:
            raise UsageError(f"output array {spec.name!r} is a {type(array).__name__}", f"a numpy array: {text}")
        fits = len(array.shape) == len(wanted) and all(
            size == expected or not isinstance(expected, int)
            for size, expected in zip(array.shape, wanted, strict=True)
        )
        if array.dtype != np.dtype(spec.dtype) or not fits or not usable:
            state = "" if usable else ", and read-only or not contiguous"
            raise UsageError(f"output array {spec.name!r} is {array.dtype} {array.shape}{state}", text)
        arrays[spec.name] = array
    return arrays


def open_sizes(specs: tuple[TensorSpec, ...], arrays: Arrays) -> dict[str, int]:
    """Return {symbol: size} of the axes that the inputs leave open, but for the rows: 40 pixels of `8*height` are 5."""
    sizes = {}
    for spec in specs:
        for size, expected in zip(arrays[spec.name].shape[1:], spec.shape[1:], strict=True):
            if not isinstance(expected, int):
                factor, _, symbol = expected.rpartition("*")
                sizes[symbol] = size // int(factor or 1)
    return sizes


def _resolved(size: int | str, sizes: Mapping[str, int]) -> int | str:
    """Return what an output's axis must have for these inputs, or its name where they do not tell."""
    if isinstance(size, int):
        return size
    factor, _, symbol = size.rpartition("*")
    return sizes[symbol] * int(factor or 1) if symbol in sizes else size


def _to_numpy(value: Any, name: str) -> np.ndarray:
    if not hasattr(value, "__dlpack__"):
        raise UsageError(f"input {name!r} is a {type(value).__name__}", "a numpy array or a DLPack tensor on the CPU")
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"input {name!r} cannot be read on the CPU ({error})", fix="give a numpy array") from error


def _check_array(array: np.ndarray, spec: TensorSpec, sizes: dict[str, int]) -> None:
    """Raise UsageError unless dtype and shape fit; equal symbolic axes of all inputs must agree (in `sizes`)."""

    def refused(wanted: str = "", fix: str = "") -> UsageError:
        shape = ", ".join(map(str, spec.shape))
        wanted = wanted or f"{spec.dtype} {spec.layout} ({shape})"
        return UsageError(f"input {spec.name!r} is {array.dtype} {array.shape}", wanted, fix)

    if array.dtype != np.dtype(spec.dtype):
        raise refused(fix=f"convert it: x.astype('{spec.dtype}')")
    if array.ndim != len(spec.shape):
        one_missing = array.ndim == len(spec.shape) - 1
        raise refused(fix="add the batch axis: x[None]" if one_missing else "")
    for axis, (size, expected) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(expected, int):
            # A fixed batch is no limit: the session splits and pads.
            if axis and size != expected:
                raise refused()
            continue
        factor, _, _ = expected.rpartition("*")
        if size < 1 or (factor and size % int(factor)):
            raise refused(fix=f"axis {axis} must be a multiple of {factor or 1}, at least {factor or 1}")
        if sizes.setdefault(expected, size) != size:
            raise refused(f"{sizes[expected]} on axis {axis}, as another input has")
    if array.shape[0] < 1:
        raise refused("at least one row")


def rows_of(arrays: Arrays, start: int, stop: int) -> Arrays:
    """Return rows start..stop of every array, without a copy."""
    return {name: array[start:stop] for name, array in arrays.items()}


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Return the array with zeros below its rows, `rows` in all."""
    padded = np.zeros((rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
