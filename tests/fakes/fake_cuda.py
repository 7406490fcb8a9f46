"""One simulated GPU, and under it the driver as `cuda-python` and as `pycuda` show it.

Streams are lazy: what is put into one runs when somebody waits for it, so memory that is freed or overwritten too
early, and an order that nobody asked for, change results or raise. A wrong call raises FakeError, which no code under
test catches. What CUDA itself would answer with an error is answered so.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

ALIGNMENT = 256
LEGACY = 1
CAPTURE_INVALIDATED = 901
INVALID_VALUE, OUT_OF_MEMORY = 1, 2
# Handles of the GPU's primary context and of one that a program made for itself, as pycuda.autoinit does.
CONTEXTS = {"primary": 0x7FFF00000010, "autoinit": 0x7FFF00000020}


class FakeError(BaseException):
    """The code under test used CUDA or TensorRT wrongly. A BaseException, so that nothing swallows it."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise FakeError(text)


class DriverError(Exception):
    """An error that the real driver would give."""

    def __init__(self, status: int) -> None:
        self.status = status


@dataclass
class Capture:
    thread: int
    operations: list[Callable[[], None]] = field(default_factory=list)
    broken: bool = False


@dataclass
class Stream:
    handle: int
    operations: list[Callable[[], None]] = field(default_factory=list)
    done: int = 0
    capture: Capture | None = None


@dataclass
class Event:
    stream: Stream | None = None
    position: int = 0


class Device:
    """Memory, streams, events and graphs of one GPU; `log` has the name of every call."""

    def __init__(self, total_bytes: int = 1 << 30, can_capture: bool = True) -> None:
        self.lock = threading.RLock()
        self.total_bytes, self.can_capture, self.driver_version = total_bytes, can_capture, 13000
        self.memory: dict[int, np.ndarray] = {}
        self.contexts: dict[int, str] = {}  # of memory: a key of CONTEXTS, or "pool", or "mapped" by hand
        self.pinned: dict[int, np.ndarray] = {}
        self.streams: dict[int, Stream] = {LEGACY: Stream(LEGACY)}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.log: list[str] = []
        self.allocations = 0
        self.scratch_users: dict[int, int] = {}
        self._handles = itertools.count(0x1000)
        self._next = 0x7F0000000000
        self._stacks = threading.local()
        self.current_stream = threading.local()  # of the other library: `handle`, where it is not the default stream

    # Contexts: a stack per thread.
    @property
    def stack(self) -> list[str]:
        if not hasattr(self._stacks, "value"):
            self._stacks.value = []
        return self._stacks.value

    def check(self, name: str) -> None:
        require(self.stack, f"{name} without a current context")
        self.log.append(name)

    def not_in_capture(self, name: str) -> None:
        """What waits or allocates breaks a capture of the same thread (thread-local mode)."""
        mine = [s.capture for s in self.streams.values() if s.capture and s.capture.thread == threading.get_ident()]
        for capture in mine:
            capture.broken = True
        require(not mine, f"{name} while this thread captures a stream")

    def breaks_captures(self, name: str) -> None:
        """What makes or frees something breaks every capture."""
        self.not_in_capture(name)
        for stream in self.streams.values():
            if stream.capture:
                stream.capture.broken = True

    # Memory.
    def allocate(self, size: int) -> int:
        with self.lock:
            self.check("allocate")
            self.breaks_captures("allocate")
            if size + sum(array.nbytes for array in self.memory.values()) > self.total_bytes:
                raise DriverError(OUT_OF_MEMORY)
            pointer = self._next
            self._next += -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT  # a gap, so that overruns are seen
            self.memory[pointer] = np.full(size, 0xA5, np.uint8)
            self.contexts[pointer] = self.stack[-1]
            self.allocations += 1
            return pointer

    def free(self, pointer: int) -> None:
        with self.lock:
            self.check("free")
            self.breaks_captures("free")
            require(pointer in self.memory, f"free of {pointer:#x}, which is not allocated")
            for stream in list(self.streams.values()):  # cuMemFree waits for everything
                self.run(stream)
            del self.memory[pointer]

    def bytes_at(self, pointer: int, size: int) -> np.ndarray:
        """Return a view of device memory; every byte must be allocated, in one piece."""
        for base, array in self.memory.items():
            if base <= pointer and pointer + size <= base + array.nbytes:
                return array[pointer - base : pointer - base + size]
        raise FakeError(f"{size} bytes at {pointer:#x} are not (or no more) allocated on the device")

    def context_of(self, pointer: int) -> int:
        """Return what the driver says: 0 for memory of a pool, an error for memory that is mapped by hand, or none."""
        self.check("context_of")
        for base, array in self.memory.items():
            if base <= pointer < base + array.nbytes and self.contexts[base] != "mapped":
                return CONTEXTS.get(self.contexts[base], 0)
        raise DriverError(INVALID_VALUE)

    def allocate_pinned(self, size: int) -> np.ndarray:
        with self.lock:
            self.check("allocate_pinned")
            self.breaks_captures("allocate_pinned")
            array = np.full(size, 0x5A, np.uint8)
            self.pinned[array.ctypes.data] = array
            self.allocations += 1
            return array

    def free_pinned(self, address: int) -> None:
        with self.lock:
            self.check("free_pinned")
            self.breaks_captures("free_pinned")
            require(address in self.pinned, "free of pinned memory that is none")
            for stream in list(self.streams.values()):
                self.run(stream)
            del self.pinned[address]

    def host_at(self, address: int, size: int) -> np.ndarray:
        for base, array in self.pinned.items():
            if base <= address and address + size <= base + array.nbytes:
                return array[address - base : address - base + size]
        raise FakeError("an asynchronous copy of memory that is not pinned (or no more): it would not be asynchronous")

    # Streams.
    def create_stream(self, flags: int) -> Stream:
        with self.lock:
            self.check("create_stream")
            require(flags == 1, "a stream that waits for the default stream cannot be captured beside it")
            stream = Stream(next(self._handles))
            self.streams[stream.handle] = stream
            return stream

    def destroy_stream(self, stream: Stream) -> None:
        with self.lock:
            self.check("destroy_stream")
            require(self.streams.pop(stream.handle, None), "destroying a stream twice")
            self.run(stream)

    def stream_of(self, handle: int) -> Stream:
        require(handle in self.streams, f"no stream has the handle {handle}")
        return self.streams[handle]

    def enqueue(self, name: str, stream: Stream, operation: Callable[[], None]) -> None:
        with self.lock:
            self.check(name)
            require(stream.handle in self.streams, f"{name} in a stream that was destroyed")
            if stream.capture is not None:
                require(stream.capture.thread == threading.get_ident(), "a captured stream used by another thread")
                stream.capture.operations.append(operation)
            else:
                stream.operations.append(operation)

    def run(self, stream: Stream, until: int | None = None) -> None:
        stop = len(stream.operations) if until is None else until
        while stream.done < stop:
            stream.done += 1
            stream.operations[stream.done - 1]()

    def synchronize(self, stream: Stream) -> None:
        with self.lock:
            self.check("synchronize")
            self.not_in_capture("synchronize")
            require(stream.handle in self.streams, "waiting for a stream that was destroyed")
            self.run(stream)

    # Events.
    def record(self, event: Event, stream: Stream) -> None:
        with self.lock:
            self.check("record")
            event.stream, event.position = stream, len(stream.operations)

    def wait_event(self, stream: Stream, event: Event) -> None:
        other, position = event.stream, event.position
        require(other is not None, "waiting for an event that was never recorded")
        self.enqueue("wait_event", stream, lambda: self.run(other, position))

    # Copies.
    def copy_in(self, pointer: int, address: int, size: int, stream: Stream) -> None:
        source = self.host_at(address, size)
        self.bytes_at(pointer, size)

        def copy() -> None:
            self.host_at(address, size)
            self.bytes_at(pointer, size)[...] = source

        self.enqueue("copy_in", stream, copy)

    def copy_out(self, address: int, pointer: int, size: int, stream: Stream) -> None:
        self.host_at(address, size)
        self.bytes_at(pointer, size)

        def copy() -> None:
            self.host_at(address, size)[...] = self.bytes_at(pointer, size)

        self.enqueue("copy_out", stream, copy)

    def copy_within(self, pointer: int, source: int, size: int, stream: Stream) -> None:
        def copy() -> None:
            self.bytes_at(pointer, size)[...] = self.bytes_at(source, size)

        self.enqueue("copy_within", stream, copy)

    def clear(self, pointer: int, value: int, size: int, stream: Stream) -> None:
        def fill() -> None:
            self.bytes_at(pointer, size)[...] = value

        self.enqueue("clear", stream, fill)

    # Graphs.
    def begin_capture(self, stream: Stream) -> None:
        with self.lock:
            self.check("begin_capture")
            require(stream.capture is None, "a stream that is captured already")
            stream.capture = Capture(threading.get_ident())

    def end_capture(self, stream: Stream) -> list[Callable[[], None]]:
        with self.lock:
            self.check("end_capture")
            capture, stream.capture = stream.capture, None
            require(capture, "the end of a capture that never began")
            if capture.broken or not self.can_capture:
                raise DriverError(CAPTURE_INVALIDATED)
            return capture.operations

    def instantiate(self, operations: list[Callable[[], None]]) -> int:
        with self.lock:
            self.check("instantiate")
            handle = next(self._handles)
            self.graphs[handle] = list(operations)
            return handle

    def launch(self, graph: int, stream: Stream) -> None:
        require(graph in self.graphs, "a graph that was destroyed")
        for operation in self.graphs[graph]:
            self.enqueue("launch", stream, operation)

    def destroy_graph(self, graph: int) -> None:
        with self.lock:
            self.check("destroy_graph")
            require(self.graphs.pop(graph, None) is not None, "destroying a graph twice")


class Handle(int):
    """As cuda-python's handles: a number of its own type."""


def make_cuda_python(device: Device) -> ModuleType:
    """Return a stand-in for `cuda.bindings.driver`: functions that return (status, values...)."""
    module = ModuleType("cuda.bindings.driver")
    module.CUDA_VERSION = 13000  # type: ignore[attr-defined]
    events: dict[int, Event] = {}
    graphs: dict[int, list[Any]] = {}
    numbers = itertools.count(1)
    result = enum.IntEnum(
        "CUresult",
        {
            "CUDA_SUCCESS": 0,
            "CUDA_ERROR_INVALID_VALUE": INVALID_VALUE,
            "CUDA_ERROR_OUT_OF_MEMORY": OUT_OF_MEMORY,
            "CUDA_ERROR_CONTEXT_IS_DESTROYED": 709,
            "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": CAPTURE_INVALIDATED,
        },
    )

    def answer(action: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            try:
                value = action(*arguments)
            except DriverError as error:
                return (result(error.status), None)
            return (result(0),) if value is None else (result(0), value)

        return call

    def add_event(flags: int) -> Handle:
        handle = Handle(next(numbers))
        events[handle] = Event()
        return handle

    def add_graph(stream: Any) -> Handle:
        handle = Handle(next(numbers))
        graphs[handle] = device.end_capture(device.stream_of(int(stream)))
        return handle

    def begin(stream: Any, mode: Any) -> None:
        require(mode is module.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, "a capture of all threads")  # type: ignore[attr-defined]
        device.begin_capture(device.stream_of(int(stream)))

    def pinned(size: int, flags: int) -> int:
        return int(device.allocate_pinned(size).ctypes.data)

    def at(stream: Any) -> Stream:
        return device.stream_of(int(stream))

    def push(context: Any) -> None:
        require(context == CONTEXTS["primary"], "a context that is not the primary one")
        device.stack.append("primary")

    def attribute(which: Any, pointer: Any) -> Handle:
        require(which is module.CUpointer_attribute.CU_POINTER_ATTRIBUTE_CONTEXT, "another attribute")  # type: ignore[attr-defined]
        return Handle(device.context_of(int(pointer)))

    functions: dict[str, Callable[..., Any]] = {
        "cuInit": lambda flags: None,
        "cuDriverGetVersion": lambda: device.driver_version,
        "cuDeviceGet": lambda index: Handle(index),
        "cuDevicePrimaryCtxRetain": lambda number: Handle(CONTEXTS["primary"]),
        "cuCtxPushCurrent": push,
        "cuCtxPopCurrent": lambda: device.stack.pop(),
        "cuMemAlloc": lambda size: Handle(device.allocate(size)),
        "cuPointerGetAttribute": attribute,
        "cuMemFree": lambda pointer: device.free(int(pointer)),
        "cuMemHostAlloc": pinned,
        "cuMemFreeHost": device.free_pinned,
        "cuStreamCreate": lambda flags: Handle(device.create_stream(flags).handle),
        "cuStreamDestroy": lambda stream: device.destroy_stream(at(stream)),
        "cuStreamSynchronize": lambda stream: device.synchronize(at(stream)),
        "cuStreamWaitEvent": lambda stream, event, flags: device.wait_event(at(stream), events[event]),
        "cuEventCreate": add_event,
        "cuEventDestroy": lambda event: events.pop(event) and None,
        "cuEventRecord": lambda event, stream: device.record(events[event], at(stream)),
        "cuEventElapsedTime": lambda first, second: elapsed(events[first], events[second]),
        "cuMemcpyHtoDAsync": lambda to, source, size, stream: device.copy_in(to, source, size, at(stream)),
        "cuMemcpyDtoHAsync": lambda to, source, size, stream: device.copy_out(to, source, size, at(stream)),
        "cuMemcpyDtoDAsync": lambda to, source, size, stream: device.copy_within(to, source, size, at(stream)),
        "cuMemsetD8Async": lambda to, value, size, stream: device.clear(to, value, size, at(stream)),
        "cuStreamBeginCapture": begin,
        "cuStreamEndCapture": add_graph,
        "cuGraphInstantiate": lambda graph, flags: Handle(device.instantiate(graphs[graph])),
        "cuGraphDestroy": lambda graph: graphs.pop(graph) and None,
        "cuGraphLaunch": lambda graph, stream: device.launch(int(graph), at(stream)),
        "cuGraphExecDestroy": lambda graph: device.destroy_graph(int(graph)),
    }
    for name, action in functions.items():
        setattr(module, name, answer(action))
    module.CUresult = result  # type: ignore[attr-defined]
    module.CUstream = Handle  # type: ignore[attr-defined]
    module.CUstream_flags = enum.IntEnum("CUstream_flags", {"CU_STREAM_NON_BLOCKING": 1})  # type: ignore[attr-defined]
    module.CUpointer_attribute = enum.IntEnum("CUpointer_attribute", {"CU_POINTER_ATTRIBUTE_CONTEXT": 1})  # type: ignore[attr-defined]
    module.CUevent_flags = enum.IntEnum("CUevent_flags", {"CU_EVENT_DEFAULT": 0})  # type: ignore[attr-defined]
    module.CUstreamCaptureMode = enum.IntEnum(  # type: ignore[attr-defined]
        "CUstreamCaptureMode", {"CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1}
    )
    return module


def elapsed(first: Event, second: Event) -> float:
    """Return operations between two events as milliseconds; both must have happened."""
    for event in (first, second):
        require(event.stream and event.stream.done >= event.position, "the time of an event that has not happened")
    return float(second.position - first.position)


def make_pycuda(device: Device) -> ModuleType:
    """Return a stand-in for `pycuda.driver`: objects that belong to the context that is current when they are made."""
    module = ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    class OutOfMemoryError(Error):
        pass

    def guarded(action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except DriverError as error:
            kind = OutOfMemoryError if error.status == OUT_OF_MEMORY else Error
            raise kind(f"cu failed: status {error.status}") from error

    class Context:
        handle = CONTEXTS["primary"]

        def push(self) -> None:
            device.stack.append("primary")

        @staticmethod
        def pop() -> None:
            require(device.stack, "pop of an empty stack")
            device.stack.pop()

        def detach(self) -> None:
            pass

        @staticmethod
        def synchronize() -> None:
            device.not_in_capture("synchronize")
            for stream in list(device.streams.values()):
                device.synchronize(stream)

    class PinnedBytes(np.ndarray):
        pass

    class DeviceAllocation:
        def __init__(self, size: int) -> None:
            self._pointer = guarded(device.allocate, size)

        def __int__(self) -> int:
            return int(self._pointer)

        def free(self) -> None:
            device.free(self._pointer)

    class PyStream:
        def __init__(self, flags: int = 0) -> None:
            self._stream = device.create_stream(flags)

        handle = property(lambda self: self._stream.handle)

        def synchronize(self) -> None:
            guarded(device.synchronize, self._stream)

        def wait_for_event(self, event: Any) -> None:
            device.wait_event(self._stream, event._event)

        def __del__(self) -> None:
            device.destroy_stream(self._stream)  # raises in a thread without the context: pycuda warns and leaks

    class PyEvent:
        def __init__(self) -> None:
            device.check("create_event")
            self._event = Event()

        def record(self, stream: Any = None) -> Any:
            device.record(self._event, stream._stream if stream else device.stream_of(LEGACY))
            return self

        def time_till(self, other: Any) -> float:
            return elapsed(self._event, other._event)

    def pagelocked_empty(shape: int, dtype: Any) -> np.ndarray:
        memory = guarded(device.allocate_pinned, shape)
        address = memory.ctypes.data

        class Owner:
            __array_interface__ = memory.__array_interface__

            def free(self) -> None:
                device.free_pinned(address)

        owner = Owner()
        array = np.asarray(owner)
        require(array.base is owner, "the array's base is its allocation")
        return array

    def host(array: np.ndarray) -> tuple[int, int]:
        require(array.flags.c_contiguous, "a contiguous array")
        return array.ctypes.data, array.nbytes

    module.Error, module.MemoryError = Error, OutOfMemoryError  # type: ignore[attr-defined]
    module.Context, module.Stream, module.Event = Context, PyStream, PyEvent  # type: ignore[attr-defined]
    module.Device = lambda index: SimpleNamespace(retain_primary_context=Context)  # type: ignore[attr-defined]
    module.init = lambda flags=0: None  # type: ignore[attr-defined]
    module.mem_alloc = DeviceAllocation  # type: ignore[attr-defined]
    module.pagelocked_empty = pagelocked_empty  # type: ignore[attr-defined]
    module.memcpy_htod_async = lambda to, array, stream: device.copy_in(to, *host(array), stream._stream)  # type: ignore[attr-defined]
    module.memcpy_dtoh_async = lambda array, source, stream: device.copy_out(  # type: ignore[attr-defined]
        host(array)[0], source, host(array)[1], stream._stream
    )
    module.memcpy_dtod_async = lambda to, source, size, stream: device.copy_within(to, source, size, stream._stream)  # type: ignore[attr-defined]
    module.memset_d8_async = lambda to, value, size, stream: device.clear(to, value, size, stream._stream)  # type: ignore[attr-defined]
    return module


def make_pointer_get_attribute(device: Device) -> Any:
    """Return the driver's cuPointerGetAttribute(data, attribute, pointer) -> status as ctypes shows it."""

    def attribute(data: Any, which: int, pointer: int) -> int:
        require(which == 1, "another attribute than CU_POINTER_ATTRIBUTE_CONTEXT")
        try:
            found = device.context_of(pointer)
        except DriverError as error:
            return error.status
        data._obj.value = found  # of byref
        return 0

    return attribute


class DeviceTensor:
    """A tensor of another library on the simulated GPU, as `__cuda_array_interface__` shows it.

    Its contents arrive on its stream, late: who reads it without waiting for that stream reads other bytes.
    """

    def __init__(
        self,
        device: Device,
        array: np.ndarray,
        stream: int | None = LEGACY,
        offset: int = 0,
        context: str = "primary",
    ) -> None:
        self._device, self.shape, self.dtype = device, array.shape, array.dtype
        self._own = device.stack.append(context) or device.allocate(array.nbytes + offset)
        device.stack.pop()
        self.pointer = self._own + offset
        data = np.ascontiguousarray(array).view(np.uint8).reshape(-1).copy()
        device.streams[stream or LEGACY].operations.append(lambda: np.copyto(self._bytes(), data))
        self._stream = stream

    def _bytes(self) -> np.ndarray:
        return self._device.bytes_at(self.pointer, int(np.prod(self.shape)) * self.dtype.itemsize)

    def numpy(self) -> np.ndarray:
        for stream in self._device.streams.values():
            self._device.run(stream)
        return self._bytes().view(self.dtype).reshape(self.shape).copy()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False), "version": 3,
            "strides": None, "stream": self._stream,
        }  # fmt: skip


class DlpackTensor:
    """The same by DLPack only; asking for it with a stream orders that stream after the asking thread's current one.

    As PyTorch's, it is refused where its GPU is not the current one.
    """

    def __init__(self, inner: DeviceTensor, device: Device) -> None:
        self._inner, self._device, self.asked = inner, device, []  # type: ignore[var-annotated]

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.asked.append(stream)
        require(self._device.stack, "a tensor that is asked for while another GPU is the current one")
        if stream not in (None, -1):
            current = self._device.streams[getattr(self._device.current_stream, "handle", LEGACY)]
            event = Event(current, len(current.operations))
            self._device.wait_event(self._device.stream_of(stream), event)  # type: ignore[arg-type]
        return capsule_of(self._inner)


def capsule_of(tensor: DeviceTensor) -> Any:
    """Return a DLPack capsule, laid out by hand as dlpack.h has it."""
    code = {"f": 2, "i": 0, "u": 1}[tensor.dtype.kind]
    dims = (ctypes.c_int64 * len(tensor.shape))(*tensor.shape)
    raw = np.zeros(64, np.uint8)
    raw[0:8] = np.frombuffer(np.uint64(tensor.pointer).tobytes(), np.uint8)
    raw[8:16] = np.frombuffer(np.array([2, 0], np.int32).tobytes(), np.uint8)
    raw[16:20] = np.frombuffer(np.int32(len(tensor.shape)).tobytes(), np.uint8)
    raw[20], raw[21], raw[22] = code, tensor.dtype.itemsize * 8, 1
    raw[24:32] = np.frombuffer(np.uint64(ctypes.addressof(dims)).tobytes(), np.uint8)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    KEPT.append((raw, dims))
    return new(raw.ctypes.data, b"dltensor", None)


KEPT: list[Any] = []
