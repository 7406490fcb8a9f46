"""Tensors as the protocol writes them: datatypes, arrays from bytes or from lists, and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlpdeploy.errors import UsageError
from mlpdeploy.serving.protocol.limits import MAX_BODY_BYTES, MAX_DIMENSIONS

# Datatype of the protocol -> numpy's name. Tensors on the wire are little-endian and row-major.
DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
BYTES = "BYTES"  # strings; only classification answers have them
_NAMES = {name: datatype for datatype, name in DATATYPES.items()}


def datatype_of(dtype: str) -> str:
    """Return the protocol's name of a numpy dtype's name."""
    return _NAMES[dtype]


def whole_number(name: str, value: Any, low: int = 0) -> int:
    """Return a parameter that has to be a whole number of at least `low`, or raise UsageError."""
    if type(value) is not int or value < low or value >= 1 << 63:
        raise UsageError(f"{name} is {str(value)[:40]}", f"a whole number of at least {low}")
    return value


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Return a tensor's shape; UsageError unless it is a short list of whole numbers that a body can hold."""
    sizes = list(shape) if isinstance(shape, Sequence) and not isinstance(shape, str | bytes) else None
    if sizes is None or len(sizes) > MAX_DIMENSIONS or any(type(size) is not int or size < 0 for size in sizes):
        raise UsageError(f"the shape of input {name!r} is {_short(shape)}", "whole numbers, none negative")
    if math.prod(size or 1 for size in sizes) > MAX_BODY_BYTES:  # numpy refuses large sizes beside a 0 too
        raise UsageError(f"the shape of input {name!r} is {_short(shape)}", f"at most {MAX_BODY_BYTES} bytes")
    return tuple(sizes)


def dtype_of(name: str, datatype: Any) -> np.dtype[Any]:
    """Return the little-endian dtype of an input's datatype, or raise UsageError."""
    numpy_name = DATATYPES.get(datatype) if isinstance(datatype, str) else None
    if numpy_name is None:
        raise UsageError(f"the datatype of input {name!r} is {_short(datatype)}", f"one of {', '.join(DATATYPES)}")
    return np.dtype(numpy_name).newbyteorder("<")


def array_from_bytes(name: str, datatype: Any, shape: Any, data: bytes | memoryview) -> np.ndarray:
    """Return a read-only view of a tensor's bytes as an array; nothing is copied.

    Raises:
        UsageError: unknown datatype, impossible shape, or not as many bytes as they need.
    """
    dtype, sizes = dtype_of(name, datatype), checked_shape(name, shape)
    needed = math.prod(sizes) * dtype.itemsize
    if needed != len(data):
        raise UsageError(f"input {name!r} has {len(data)} bytes", f"{needed} for {datatype} {list(sizes)}")
    return np.frombuffer(data, dtype).reshape(sizes)


def array_from_values(name: str, datatype: Any, shape: Any, values: Any) -> np.ndarray:
    """Return an array of numbers that came as a list, flat or nested.

    Raises:
        UsageError: unknown datatype, impossible shape, not numbers, out of range, or not as many as the shape needs.
    """
    dtype, sizes = dtype_of(name, datatype), checked_shape(name, shape)
    wanted = f"{math.prod(sizes)} numbers for {datatype} {list(sizes)}"
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise UsageError(f"the data of input {name!r} are no list", wanted)
    if not _only_numbers(values):
        raise UsageError(f"the data of input {name!r} are not all numbers", wanted)
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise UsageError(f"the data of input {name!r} cannot be read ({error})", wanted) from error
    if not array.size and not math.prod(sizes):
        return np.zeros(sizes, dtype)
    kinds = {"b": "b", "f": "fiu"}.get(dtype.kind, "iu")
    if array.dtype.kind not in kinds or array.size != math.prod(sizes):
        raise UsageError(f"the data of input {name!r} are {array.size} of {_kind(array)}", wanted)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise UsageError(f"input {name!r} has numbers outside of {datatype}", f"{limits.min} to {limits.max}")
    with np.errstate(over="ignore"):
        return array.astype(dtype).reshape(sizes)


def bytes_of(array: np.ndarray) -> memoryview:
    """Return an array's bytes as the wire has them, without a copy where it lies that way already."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def strings_bytes(strings: Sequence[str]) -> bytes:
    """Return a tensor of strings: each with its length before it, 4 bytes, little-endian."""
    encoded = [string.encode() for string in strings]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def _only_numbers(values: Sequence[Any]) -> bool:
    """Return whether a list holds numbers and booleans alone, or lists of them; numpy makes room for strings first."""
    for _ in range(MAX_DIMENSIONS):
        kinds = set(map(type, values))
        if kinds <= {bool, int, float}:
            return True
        if kinds != {list}:
            return False
        values = list(itertools.chain.from_iterable(values))
    return False


def _kind(array: np.ndarray) -> str:
    return {"b": "booleans", "i": "integers", "u": "integers", "f": "numbers"}.get(array.dtype.kind, "something else")


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, list | tuple | dict) or len(value) < 20 else f"{len(value)} values"
    return text if len(text) < 100 else text[:97] + "..."
