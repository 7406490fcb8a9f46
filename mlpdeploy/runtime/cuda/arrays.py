"""Arrays on the GPU: other libraries' by `__dlpack__` or `__cuda_array_interface__`, and our own; nothing is copied."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from mlpdeploy.errors import UsageError
from mlpdeploy.runtime.cuda.interface import LEGACY_STREAM, Cuda, open_cuda

_NO_WAIT = -1  # asks a producer for its tensor without ordering any stream
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLDataTypeCode -> numpy's kind


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous array on the GPU.

    Attributes:
        pointer: its address.
        shape: sizes.
        dtype: numpy's.
        owner: keeps the memory.
        producer: by `__dlpack__`, the tensor that orders our stream after its own; else None.
        stream: the handle of the stream that writes it; None where nothing has to be waited for.
        writable: whether results may be written to it.
        gpu: the index of its GPU.
        order: a stream of `ordered`.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype
    owner: Any = None
    producer: Any = None
    stream: int | None = None
    writable: bool = True
    gpu: int = 0
    order: Any = None

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, not self.writable),
            "strides": None,
            "stream": None,  # a session's results are there when `run` returns
            "version": 3,
        }

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> DeviceArray:
        """Return rows start..stop, without a copy."""
        start, stop, _ = rows.indices(len(self))
        row_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        return replace(self, pointer=self.pointer + start * row_bytes, shape=(stop - start, *self.shape[1:]))

    def wait(self, cuda: Cuda, stream: Any) -> None:
        """Have a stream wait until the array is written."""
        if self.producer is not None:
            self.producer.__dlpack__(stream=cuda.handle(stream))
        elif self.stream is not None:
            cuda.wait_for_producer(stream, self.stream)

    def ordered(self) -> DeviceArray:
        """Return the array for another thread, which has other current streams: to be `release`d when it was used.

        A new stream waits here for what its producer has given this thread's streams; there, that stream is waited for.
        """
        if self.producer is None and self.stream is None:
            return self
        cuda = open_cuda(self.gpu)
        with cuda.current():
            stream = cuda.create_stream()
            try:
                self.wait(cuda, stream)
            except BaseException:
                cuda.destroy_stream(stream)
                raise
        return replace(self, producer=None, stream=cuda.handle(stream), order=stream)

    def release(self) -> None:
        """Destroy the stream of `ordered`, if there is one."""
        if self.order is not None:
            cuda = open_cuda(self.gpu)
            with cuda.current():
                cuda.destroy_stream(self.order)


def device_array(value: Any, what: str, cuda: Cuda) -> DeviceArray:
    """Return another library's array on the GPU as ours.

    DLPack is asked first: its producer orders our stream after its own. By `__cuda_array_interface__` a producer that
    does not tell its stream is taken to use CUDA's default stream, as PyTorch does.

    Args:
        what: it is, for the errors: "input 'input'".
        cuda: where the session runs; its context must be current.

    Raises:
        UsageError: it is on another GPU, of another context, or not contiguous.
    """
    if isinstance(value, DeviceArray):
        return value
    take = _from_dlpack if hasattr(value, "__dlpack_device__") else _from_interface
    array = take(value, what, cuda.index)
    if cuda.is_foreign(array.pointer):  # used, it fails the GPU later and elsewhere, and ends the context
        raise UsageError(
            f"{what} lies in another CUDA context than the GPU's primary one",
            f"memory of the primary context of GPU {cuda.index}, in which the session computes",
            "with PyCUDA: import pycuda.autoprimaryctx in place of pycuda.autoinit",
        )
    return array


def _from_interface(value: Any, what: str, index: int) -> DeviceArray:
    body = value.__cuda_array_interface__
    shape, dtype = tuple(body["shape"]), np.dtype(body["typestr"])
    strides = body.get("strides")
    _check_contiguous(shape, None if strides is None else tuple(s // dtype.itemsize for s in strides), what)
    told = body.get("stream", LEGACY_STREAM)
    pointer, read_only = body["data"]
    return DeviceArray(int(pointer or 0), shape, dtype, value, None, told, writable=not read_only, gpu=index)


class _DlTensor(ctypes.Structure):
    """DLTensor of dlpack.h, with which a DLManagedTensor begins."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


def _from_dlpack(value: Any, what: str, index: int) -> DeviceArray:
    try:
        capsule = value.__dlpack__(stream=_NO_WAIT)
    except (BufferError, RuntimeError, TypeError) as error:  # PyTorch: a tensor that requires a gradient
        raise UsageError(f"{what} cannot be taken from the GPU ({error})") from error
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = pointer_of(capsule, b"dltensor")
    assert address is not None  # ctypes raises what CPython raises
    tensor = _DlTensor.from_address(address)
    if tensor.device_id != index:
        raise UsageError(f"{what} is on GPU {tensor.device_id}", f"GPU {index}, on which the session runs")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    _check_contiguous(shape, strides, what)
    if tensor.code not in _KINDS or tensor.lanes != 1:
        raise UsageError(f"{what} has a type that numpy does not know (DLPack code {tensor.code})")
    dtype = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    # The capsule is never marked as used: it frees the tensor by itself when the last reference goes.
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, dtype, capsule, producer=value, gpu=index)


def _check_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, what: str) -> None:
    """Raise UsageError unless the strides, in elements, are those of a contiguous array; None always is."""
    if strides is None:
        return
    wanted = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != wanted:
            raise UsageError(f"{what} is not contiguous on the GPU", fix="make it contiguous: x.contiguous()")
        wanted *= size
