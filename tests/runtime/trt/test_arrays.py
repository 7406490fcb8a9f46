"""Arrays on the GPU: in and out without a copy where TensorRT can take the address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.fake_cuda import DeviceTensor, DlpackTensor
from fakes.machine import PROVIDERS, Machine
from tiny_engine import close

from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.errors import UsageError
from mlpdeploy.runtime.loading import load


@pytest.mark.parametrize("kind", ["interface", "dlpack"])
def test_bound_as_they_are(machine: Machine, built: Path, images: Any, wanted: Any, kind: str) -> None:
    device = machine.device
    with load(built, backend="tensorrt") as session:
        for _ in range(3):
            feed = DeviceTensor(device, images[:8])
            target = DeviceTensor(device, np.zeros((8, 7), np.float32))
            del device.log[:]
            into = target if kind == "interface" else DlpackTensor(target, device)
            asked = feed if kind == "interface" else DlpackTensor(feed, device)
            assert session.run({"input": asked}, {"logits": into})["logits"] is into
            assert close(target.numpy(), wanted[:8])
            assert not {"copy_in", "copy_out", "copy_within"} & set(device.log)
        assert close(session.run({"input": feed})["logits"], wanted[:8])  # from the GPU to numpy
        target = DeviceTensor(device, np.zeros((8, 7), np.float32))  # whose zeros are still on their way
        session.run({"input": images[:8]}, {"logits": target})
        assert close(target.numpy(), wanted[:8])


def test_the_callers_memory_on_the_gpu_is_used_for_any_batch(machine: Machine, exported: Path, tmp_path: Path) -> None:
    directory = machine.built(exported, tmp_path / "a", BuildOptions(batches=((1, 8, 32),)))
    with load(directory, backend="tensorrt") as session:
        images = np.random.default_rng(0).standard_normal((9, 3, 32, 32)).astype(np.float32)
        session.run({"input": DeviceTensor(machine.device, images)})
        assert "copy_within" not in machine.device.log
        assert "9x3x32x32 with input bound" in session.graphs()  # type: ignore[attr-defined]


def test_split_padded_and_not_aligned(machine: Machine, built: Path, images: Any, wanted: Any) -> None:
    device = machine.device
    with load(built, backend="tensorrt") as session:
        for rows, offset in ((20, 0), (8, 4), (1, 128)):
            feed = DeviceTensor(device, images[:rows], offset=offset)
            target = DeviceTensor(device, np.zeros((rows, 7), np.float32), offset=offset)
            session.run({"input": feed}, {"logits": target})
            assert close(target.numpy(), wanted[:rows]), (rows, offset)


def test_rows_are_added_on_the_gpu(machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any) -> None:
    directory = machine.built(exported, tmp_path / "a", BuildOptions(batches=((4, 4, 4),)))
    with load(directory, backend="tensorrt") as session:
        for rows in (4, 3):
            feed = DeviceTensor(machine.device, images[:rows])
            target = DeviceTensor(machine.device, np.zeros((rows, 7), np.float32))
            session.run({"input": feed}, {"logits": target})
            assert close(target.numpy(), wanted[:rows])


def test_an_output_ring(machine: Machine, built: Path, images: Any, wanted: Any) -> None:
    with load(built, backend="tensorrt") as session, session.output_ring(8, sets=2) as ring:  # type: ignore[attr-defined]
        held = []
        for start in (0, 8, 16):
            target = ring.next()
            assert session.run({"input": images[start : start + 8]}, target)["logits"] is target["logits"]
            held.append(target["logits"])
        assert held[0] is held[2] and held[0].pointer != held[1].pointer
        for start, array in ((8, held[1]), (16, held[2])):
            values = machine.device.bytes_at(array.pointer, array.nbytes).view(np.float32).reshape(8, 7)
            assert close(values, wanted[start : start + 8])
    with pytest.raises(UsageError, match="this ring is closed"):
        ring.next()
    assert machine.nothing_is_left()


def test_another_stream_is_waited_for(machine: Machine, built: Path, images: Any, wanted: Any) -> None:
    other = machine.device.stack.append("primary") or machine.device.create_stream(1)
    machine.device.stack.pop()
    with load(built, backend="tensorrt") as session:
        feed = DeviceTensor(machine.device, images[:8], other.handle)
        assert close(session.run({"input": feed})["logits"], wanted[:8])


@pytest.mark.parametrize("kind", ["interface", "dlpack"])
def test_run_async_orders_them_in_the_callers_thread(
    machine: Machine, built: Path, images: Any, wanted: Any, kind: str
) -> None:
    """PyTorch's current stream is a thread's own."""
    device = machine.device
    other = device.stack.append("primary") or device.create_stream(1)
    device.stack.pop()
    with load(built, backend="tensorrt") as session:
        device.current_stream.handle = other.handle
        feed: Any = DeviceTensor(device, images[:8], other.handle)
        target: Any = DeviceTensor(device, np.zeros((8, 7), np.float32), other.handle)
        if kind == "dlpack":
            feed, into = DlpackTensor(feed, device), DlpackTensor(target, device)
        else:
            into = target
        assert session.run_async({"input": feed}, {"logits": into}).result(60)["logits"] is into
        assert close(target.numpy(), wanted[:8])
    device.stack.append("primary")
    device.destroy_stream(other)
    del device.memory[feed._inner._own if kind == "dlpack" else feed._own], device.memory[target._own]
    assert machine.nothing_is_left()


def test_what_does_not_fit(machine: Machine, built: Path, images: Any) -> None:
    device = machine.device
    with load(built, backend="tensorrt") as session:
        with pytest.raises(UsageError, match=r"input 'input' is float16"):
            session.run({"input": DeviceTensor(device, images[:2].astype(np.float16))})
        with pytest.raises(UsageError, match=r"output array .logits."):
            session.run({"input": images[:2]}, {"logits": DeviceTensor(device, np.zeros((3, 7), np.float32))})


@pytest.mark.parametrize("provider", PROVIDERS)
def test_of_another_context(
    monkeypatch: pytest.MonkeyPatch, built: Path, images: Any, wanted: Any, provider: str
) -> None:
    """As those of a program that imports pycuda.autoinit; memory of a pool is of none."""
    device = Machine(monkeypatch, provider).device
    place = np.zeros((8, 7), np.float32)
    with load(built, backend="tensorrt") as session:
        own = DeviceTensor(device, images[:8], context="autoinit")
        into = DeviceTensor(device, place, context="autoinit")
        with pytest.raises(UsageError, match=r"^input 'input' lies in another CUDA context .*autoprimaryctx"):
            session.run({"input": own})
        with pytest.raises(UsageError, match=r"^output array 'logits' lies in another CUDA context "):
            session.run({"input": images[:8]}, {"logits": into})
        with pytest.raises(UsageError, match=r"^input 'input' lies in another CUDA context "):
            session.run_async({"input": own}).result(60)
        feed = DeviceTensor(device, images[:8], context="pool")
        target = DeviceTensor(device, place, context="mapped")
        device.log.clear()
        session.run({"input": feed}, {"logits": target})
        assert close(target.numpy(), wanted[:8])
        assert device.log.count("context_of") == 2  # once for each array


def test_other_backends_refuse(machine: Machine, exported: Path, images: Any) -> None:
    with load(exported, device="cpu") as session:
        for value in (DeviceTensor(machine.device, images[:1]),):
            with pytest.raises(UsageError, match=r"^input 'input' is on a GPU.*backend='tensorrt'"):
                session.run({"input": value})
