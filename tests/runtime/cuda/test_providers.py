"""Both providers do the same on the same simulated GPU; every name that they use is in the real packages."""

from __future__ import annotations

import ast
import ctypes
import inspect
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fakes.fake_cuda import (
    LEGACY,
    Device,
    DeviceTensor,
    DlpackTensor,
    DriverError,
    FakeError,
    make_cuda_python,
    make_pointer_get_attribute,
    make_pycuda,
)

from mlpdeploy.errors import MissingDependencyError, UsageError
from mlpdeploy.runtime.cuda import cuda_python, interface, pycuda
from mlpdeploy.runtime.cuda.arrays import DeviceArray, device_array
from mlpdeploy.runtime.cuda.interface import Cuda, CudaError

CONTEXT_IS_DESTROYED = 709
MAKERS = {"cuda-python": (cuda_python, make_cuda_python), "pycuda": (pycuda, make_pycuda)}


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture(params=MAKERS)
def cuda(request: pytest.FixtureRequest, device: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    module, make = MAKERS[request.param]
    monkeypatch.setattr(module, "require", lambda name: make(device))
    monkeypatch.setattr(pycuda, "_pointer_get_attribute", lambda: make_pointer_get_attribute(device))
    provider: Cuda = module.Provider(0)
    with provider.current():
        yield provider
    assert device.stack == []


def test_there_and_back(cuda: Cuda, device: Device) -> None:
    stream = cuda.create_stream()
    host, back = cuda.allocate_pinned(64), cuda.allocate_pinned(64)
    first, second = cuda.allocate(64), cuda.allocate(64)
    assert first % 256 == 0 and second % 256 == 0 and host.dtype == np.uint8 and host.shape == (64,)
    host[:] = np.arange(64)
    cuda.copy_in(first, host, stream)
    cuda.copy_within(second, first, 64, stream)
    cuda.clear(second, 4, stream)
    cuda.copy_out(back, second, stream)
    cuda.synchronize(stream)
    assert back.tolist() == [0, 0, 0, 0, *range(4, 64)]
    for pointer in (first, second):
        cuda.free(pointer)
    for array in (host, back):
        cuda.free_pinned(array)
    cuda.destroy_stream(stream)
    assert not device.memory and not device.pinned and list(device.streams) == [LEGACY]


def test_the_time_between_two_events(cuda: Cuda) -> None:
    stream, pointer = cuda.create_stream(), cuda.allocate(8)
    first, second = cuda.create_event(), cuda.create_event()
    cuda.record(first, stream)
    cuda.clear(pointer, 8, stream)
    cuda.record(second, stream)
    cuda.synchronize(stream)
    assert cuda.elapsed_ms(first, second) == 1.0
    for event in (first, second):
        cuda.destroy_event(event)
    cuda.destroy_stream(stream)


def test_waiting_for_what_another_library_writes(cuda: Cuda, device: Device) -> None:
    stream, host = cuda.create_stream(), cuda.allocate_pinned(4)
    other = device.create_stream(1)
    for producer in (LEGACY, other.handle):
        tensor = DeviceTensor(device, np.arange(4, dtype=np.uint8), producer)
        cuda.wait_for_producer(stream, producer)
        cuda.copy_out(host, tensor.pointer, stream)
        cuda.synchronize(stream)
        assert host.tolist() == [0, 1, 2, 3]
    cuda.destroy_stream(stream)


def test_no_memory_is_an_error_of_ours(cuda: Cuda) -> None:
    with pytest.raises(CudaError, match="CUDA"):
        cuda.allocate(1 << 40)


def test_another_thread_pushes_for_itself(cuda: Cuda) -> None:
    failures: list[BaseException] = []

    def work(current: bool) -> None:
        try:
            if current:
                with cuda.current():
                    cuda.free(cuda.allocate(8))
            else:
                cuda.allocate(8)
        except FakeError as error:
            failures.append(error)

    for current in (True, False):
        thread = threading.Thread(target=work, args=(current,))
        thread.start()
        thread.join()
    assert [str(failure) for failure in failures] == ["allocate without a current context"]


def test_graphs(cuda: Cuda, device: Device) -> None:
    stream = cuda.create_stream()
    if not cuda.has_graphs:
        for call in (cuda.begin_capture, cuda.end_capture, cuda.destroy_graph):
            with pytest.raises(CudaError, match="has no CUDA graphs"):
                call(stream)
        with pytest.raises(CudaError, match="has no CUDA graphs"):
            cuda.launch(None, stream)
        cuda.destroy_stream(stream)
        return
    pointer, host = cuda.allocate(4), cuda.allocate_pinned(4)
    host[:] = 7
    cuda.begin_capture(stream)
    cuda.copy_in(pointer, host, stream)
    graph = cuda.end_capture(stream)
    host[:] = 9
    for _ in range(2):
        cuda.launch(graph, stream)
    cuda.synchronize(stream)
    assert device.bytes_at(pointer, 4).tolist() == [9, 9, 9, 9]
    cuda.destroy_graph(graph)
    device.can_capture = False
    cuda.begin_capture(stream)
    with pytest.raises(CudaError, match=r"cuStreamEndCapture.*\(901\)"):
        cuda.end_capture(stream)
    cuda.clear(pointer, 4, stream)  # the stream is as before
    cuda.synchronize(stream)
    assert not device.bytes_at(pointer, 4).any() and not device.graphs
    cuda.destroy_stream(stream)


def test_the_simulated_gpu_refuses_what_is_wrong(cuda: Cuda) -> None:
    stream, pointer = cuda.create_stream(), cuda.allocate(8)
    with pytest.raises(FakeError, match="not pinned"):
        cuda.copy_in(pointer, np.zeros(8, np.uint8), stream)
    with pytest.raises(FakeError, match=r"not .* allocated"):
        cuda.copy_in(pointer + 4, cuda.allocate_pinned(8), stream)
    if cuda.has_graphs:
        cuda.begin_capture(stream)
        with pytest.raises(FakeError, match="allocate while this thread captures"):
            cuda.allocate(8)
        with pytest.raises(CudaError):
            cuda.end_capture(stream)
    cuda.destroy_stream(stream)


def test_arrays_of_other_libraries(device: Device, cuda: Cuda) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    tensor = DeviceTensor(device, values)
    stream, host = cuda.create_stream(), cuda.allocate_pinned(24)
    for value in (tensor, DlpackTensor(tensor, device)):
        array = device_array(value, "input 'x'", cuda)
        assert (array.shape, array.dtype, array.pointer) == ((4, 3), np.float32, tensor.pointer)
        part = array[1:3]
        part.wait(cuda, stream)
        cuda.copy_out(host, part.pointer, stream)
        cuda.synchronize(stream)
        assert np.array_equal(host.view(np.float32).reshape(2, 3), values[1:3]) and part.nbytes == 24
    own = DeviceArray(tensor.pointer, (4, 3), np.dtype("float32"))
    assert device_array(own, "input 'x'", cuda) is own
    assert own.__cuda_array_interface__["data"] == (tensor.pointer, False)
    cuda.destroy_stream(stream)


def test_arrays_that_cannot_be_taken(device: Device, cuda: Cuda) -> None:
    tensor = DeviceTensor(device, np.zeros((4, 3), np.float32))
    cuda.index = 1
    with pytest.raises(UsageError, match="input 'x' is on GPU 0; wanted GPU 1"):
        device_array(DlpackTensor(tensor, device), "input 'x'", cuda)

    class Strided:
        __cuda_array_interface__ = {**tensor.__cuda_array_interface__, "strides": (4, 16)}  # noqa: RUF012

    with pytest.raises(UsageError, match="input 'x' is not contiguous"):
        device_array(Strided(), "input 'x'", cuda)


def test_whose_memory_it_is(device: Device, cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = {"primary": False, "autoinit": True, "pool": False, "mapped": False}
    for context, expected in foreign.items():
        tensor = DeviceTensor(device, np.zeros(8, np.float32), context=context)
        device.log.clear()
        assert cuda.is_foreign(tensor.pointer + 4) is expected, context
        assert device.log == ["context_of"]
    assert not cuda.is_foreign(0)

    def fail(pointer: int) -> int:
        raise DriverError(CONTEXT_IS_DESTROYED)

    monkeypatch.setattr(device, "context_of", fail)
    with pytest.raises(CudaError, match=f"cuPointerGetAttribute failed.*{CONTEXT_IS_DESTROYED}"):
        cuda.is_foreign(tensor.pointer)


@pytest.mark.parametrize("kind", [lambda tensor, device: tensor, DlpackTensor])
def test_arrays_of_another_context(device: Device, cuda: Cuda, kind: Callable[..., Any]) -> None:
    for context in ("primary", "pool", "mapped"):
        tensor = DeviceTensor(device, np.zeros((4, 3), np.float32), context=context)
        device.log.clear()
        assert device_array(kind(tensor, device), "input 'x'", cuda).pointer == tensor.pointer
        assert device.log == ["context_of"]
    own = kind(DeviceTensor(device, np.zeros((4, 3), np.float32), context="autoinit"), device)
    with pytest.raises(UsageError) as raised:
        device_array(own, "input 'x'", cuda)
    assert str(raised.value) == (
        "input 'x' lies in another CUDA context than the GPU's primary one; "
        "wanted memory of the primary context of GPU 0, in which the session computes; "
        "with PyCUDA: import pycuda.autoprimaryctx in place of pycuda.autoinit"
    )


def test_the_driver_is_asked_about_the_whole_pointer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ctypes, for pycuda: which would pass a plain number as a C int."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the driver that stands in")
    (tmp_path / "driver.c").write_text(
        "int cuPointerGetAttribute(void* data, int attribute, unsigned long long pointer) {\n"
        "  *(unsigned long long*)data = pointer + attribute; return 7; }\n"
    )
    library = tmp_path / "libcuda.so"
    subprocess.run([compiler, "-shared", "-fPIC", str(tmp_path / "driver.c"), "-o", str(library)], check=True)
    monkeypatch.setattr(pycuda, "_LIBRARY", str(library))
    found = ctypes.c_void_p()
    assert pycuda._pointer_get_attribute()(ctypes.byref(found), 1, 0x7F12_3456_789A) == 7
    assert found.value == 0x7F12_3456_789B


def names_used(module: ModuleType) -> set[str]:
    """Return what a provider's source looks up in its driver."""
    tree = ast.parse(inspect.getsource(module))
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).startswith("self._driver")
    }
    return names | {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        if ast.unparse(node.func) == "self._call" and isinstance(node.args[0], ast.Constant)
    }


def test_every_name_is_in_the_real_cuda_python() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    names = names_used(cuda_python)
    assert {"cuMemAlloc", "cuGraphInstantiate", "CU_STREAM_NON_BLOCKING"} <= names
    inside = {"CU_STREAM_NON_BLOCKING": "CUstream_flags", "CU_EVENT_DEFAULT": "CUevent_flags"}
    inside["CU_POINTER_ATTRIBUTE_CONTEXT"] = "CUpointer_attribute"
    inside["CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"] = "CUstreamCaptureMode"
    for name in names:
        assert hasattr(getattr(driver, inside[name]) if name in inside else driver, name), name


def test_every_name_is_in_the_real_pycuda(with_pycuda: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    names = names_used(pycuda)
    assert {"mem_alloc", "pagelocked_empty", "memset_d8_async"} <= names
    inside = {"pop": "Context", "synchronize": "Context", "retain_primary_context": "Device"}
    paths = [f"{inside[name]}.{name}" if name in inside else name for name in sorted(names)]
    done = with_pycuda("-c", f"import pycuda.driver as driver\n{''.join(f'driver.{path}{chr(10)}' for path in paths)}")
    assert done.returncode == 0, done.stderr


def test_the_fakes_have_no_other_names(device: Device) -> None:
    for maker, module in ((make_cuda_python, cuda_python), (make_pycuda, pycuda)):
        fake: Any = maker(device)
        names = names_used(module)
        public = {name for name in vars(fake) if not name.startswith("_")}
        assert public - {"CUresult"} <= names | {"Error"}, public - names


def test_which_provider(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    monkeypatch.setattr(interface, "_opened", {})
    monkeypatch.delenv("MLPDEPLOY_CUDA", raising=False)
    for module, make in MAKERS.values():
        monkeypatch.setattr(module, "require", lambda name, make=make: make(device))
    monkeypatch.setattr(pycuda, "_pointer_get_attribute", lambda: make_pointer_get_attribute(device))
    monkeypatch.setattr(interface, "installed_version", lambda package: "1.0")
    assert interface.open_cuda().provider == "cuda-python"
    monkeypatch.setattr(interface, "installed_version", lambda package: "1.0" if package == "pycuda" else None)
    assert interface.open_cuda().provider == "pycuda" and interface.open_cuda() is interface.open_cuda()
    monkeypatch.setenv("MLPDEPLOY_CUDA", "cuda-python")
    assert interface.open_cuda().provider == "cuda-python"
    monkeypatch.setenv("MLPDEPLOY_CUDA", "pycudo")
    with pytest.raises(UsageError, match="did you mean pycuda"):
        interface.open_cuda()
    monkeypatch.delenv("MLPDEPLOY_CUDA")
    monkeypatch.setattr(interface, "installed_version", lambda package: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mlpdeploy\[cuda\]'"):
        interface.open_cuda()


def test_a_package_for_a_later_cuda_than_the_drivers(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    monkeypatch.setattr(cuda_python, "require", lambda name: make_cuda_python(device))
    device.driver_version = 13010
    cuda_python.Provider(0)
    device.driver_version = 12040
    with pytest.raises(MissingDependencyError, match=r"for CUDA 13, the driver serves 12\.4; run: .*cuda-bindings<13"):
        cuda_python.Provider(0)


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    for module, _ in MAKERS.values():
        monkeypatch.setattr(module, "require", fail)
        with pytest.raises(MissingDependencyError, match=r"libcuda\.so\.1"):
            module.Provider(0)
