"""The whole path on a simulated GPU: build, load, run; every result is compared with ONNX Runtime's, row by row."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.fake_cuda import DeviceTensor, DlpackTensor, FakeError
from fakes.fake_quick_plugin import fake_ptx
from fakes.machine import L4, NEWEST, PROVIDERS, RTX, VERSIONS, Machine
from tiny import tiny_asmlp

from mlpdeploy.engines.build import build_artifact
from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.engines.sidecar import engines_of
from mlpdeploy.errors import ArtifactError, PluginError, UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import read_manifest
from mlpdeploy.plugins.find import (
    CACHE_VARIABLE,
    FORMAT_VERSION,
    LIBRARY_NAME,
    RECORD_NAME,
    BuildRecord,
    cache_directory,
)
from mlpdeploy.runtime.cuda.interface import CudaError
from mlpdeploy.runtime.gpu import Gpu
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.tensorrt_api import EngineError, load_tensorrt
from mlpdeploy.runtime.trt import lane
from mlpdeploy.runtime.trt.choice import Machine as Target
from mlpdeploy.runtime.trt.choice import differences_of
from mlpdeploy.verify.verify import verify_artifact

PROFILES = BuildOptions(batches=((1, 1, 1), (2, 4, 8)))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((40, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="session")
def wanted(exported: Path, images: np.ndarray) -> np.ndarray:
    """(40, 7) float32: what ONNX Runtime gives."""
    with load(exported, device="cpu") as session:
        return session.run({"input": images})["logits"]


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(found - wanted).max() < 1e-4)


@pytest.fixture(scope="session")
def built(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with an engine of the newest version with two profiles; do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        return Machine(patch).built(exported, tmp_path_factory.mktemp("built") / "tiny", PROFILES)


def options(version: str) -> BuildOptions:
    """Return what is built with a version: the same engine everywhere."""
    rtx = {"target": "tensorrt-rtx", "compute_capabilities": ("8.9",)} if version == RTX else {}
    return dataclasses.replace(PROFILES, **rtx)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("version", [*VERSIONS, RTX])
def test_every_version_and_provider(
    version: str, provider: str, exported: Path, tmp_path: Path, images: Any, wanted: Any, monkeypatch: Any
) -> None:
    machine = Machine(monkeypatch, provider)
    machine.use(version)
    directory = machine.built(exported, tmp_path / "a", options(version))
    with load(directory, backend="tensorrt") as session:
        assert (session.backend, session.device, session.max_batch) == ("tensorrt", "cuda:0", 8)
        assert session.file.endswith(".engine" if version == RTX else ".plan")
        assert session.file.startswith("engines/") and session.precision == "fp32"
        for rows in (1, 1, 9, 40, 40, 7, 7):
            assert close(session.run({"input": images[:rows]})["logits"], wanted[:rows]), rows
        session.warmup(1)
        for rows in (7, 8):
            session.warmup(rows)
        (note,) = set(session.graphs().values())  # type: ignore[attr-defined]
        assert note == "CUDA graph" if provider == "cuda-python" else note.startswith("pycuda has no CUDA graphs")
        assert ("launch" in machine.device.log) == (provider == "cuda-python")
    assert machine.nothing_is_left()


def test_tensorrt_rtx_on_the_gpu(machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any) -> None:
    """What differs there: engines for named GPUs, kernels that are compiled here, no plugins."""
    machine.use(RTX)
    directory = machine.built(exported, tmp_path / "a", options(RTX))
    x, y = DeviceTensor(machine.device, images[:8]), DeviceTensor(machine.device, np.zeros((8, 7), np.float32))
    with load(directory, backend="tensorrt") as session:
        session.run({"input": x}, {"logits": y})
        assert close(y.numpy(), wanted[:8])
        assert len(session.gpu_ms(8, 2)) == 2  # type: ignore[attr-defined]
        assert close(session.run_async({"input": images}).result()["logits"], wanted)
    assert verify_artifact(directory, backend="tensorrt").passed
    machine.use_gpu(Gpu("NVIDIA GeForce RTX 5090", "12.0", "580.65.06", "13.0"))
    with pytest.raises(EngineError, match=r"compute capability 8\.9, .* has 12\.0; run: .* --compute-capability 12\.0"):
        load(directory, backend="tensorrt")


def test_tensorrt_rtx_that_cannot_be_captured(
    machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any, monkeypatch: Any
) -> None:
    machine.use(RTX)
    directory = machine.built(exported, tmp_path / "a", options(RTX))
    monkeypatch.setattr(machine.module._inner["IExecutionContext"], "is_stream_capturable", lambda self, stream: False)
    with load(directory, backend="tensorrt") as session:
        for _ in range(3):
            assert close(session.run({"input": images[:8]})["logits"], wanted[:8])
        (note,) = session.graphs().values()  # type: ignore[attr-defined]
        assert note == f"no CUDA graph: TensorRT-RTX {RTX} says that this engine cannot be captured"
    assert "begin_capture" not in machine.device.log


def test_the_same_rows_whatever_their_neighbours(machine: Machine, built: Path, images: Any) -> None:
    """Bit for bit: the simulated engine computes row by row, so only rows that were mixed up could differ."""
    with load(built, backend="tensorrt") as session:
        alone = np.concatenate([session.run({"input": images[i : i + 1]})["logits"] for i in range(40)])
        assert len({row.tobytes() for row in alone}) == 40
        for rows in (2, 9, 23, 40):
            assert np.array_equal(session.run({"input": images[:rows]})["logits"], alone[:rows])
        into = np.full((23, 7), np.nan, np.float32)
        assert session.run({"input": images[:23]}, {"logits": into})["logits"] is into
        assert np.array_equal(into, alone[:23])


def test_padding_never_shows(machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any) -> None:
    directory = machine.built(exported, tmp_path / "a", BuildOptions(batches=((4, 4, 4),)))
    with load(directory, backend="tensorrt") as session:
        for rows in (4, 3, 1, 5, 6, 3):
            assert close(session.run({"input": images[:rows]})["logits"], wanted[:rows])


def test_rows_that_are_added_are_zero(
    machine: Machine, exported: Path, tmp_path: Path, images: Any, monkeypatch: Any
) -> None:
    """Not the rows of an earlier caller."""
    directory = machine.built(exported, tmp_path / "a", BuildOptions(batches=((4, 4, 4),)))
    seen: list[np.ndarray] = []
    kind = machine.module._inner["ICudaEngine"]
    run = kind._run
    monkeypatch.setattr(kind, "_run", lambda self, feeds: seen.append(feeds["input"]) or run(self, feeds))
    with load(directory, backend="tensorrt") as session:
        for feed in (images[:3], DeviceTensor(machine.device, images[:3])):
            session.run({"input": images[:4]})
            session.run({"input": feed})
    assert [bool(feed[3].any()) for feed in seen] == [True, False, True, False]


def test_a_fixed_batch(machine: Machine, tmp_path: Path, images: Any) -> None:
    export_model(tiny_asmlp(), tmp_path / "fixed", batch=4, verify=False)
    build_artifact(tmp_path / "fixed", BuildOptions())
    with load(tmp_path / "fixed", device="cpu") as session:
        wanted = session.run({"input": images[:10]})["logits"]
    with load(tmp_path / "fixed", backend="tensorrt") as session:
        assert session.max_batch == 4
        assert close(session.run({"input": images[:10]})["logits"], wanted)


def test_open_image_sizes(machine: Machine, tmp_path: Path) -> None:
    export_model(tiny_asmlp(features=True), tmp_path / "maps", image_size="dynamic", verify=False)
    build_artifact(tmp_path / "maps", BuildOptions(batches=((1, 2, 2),), image_sizes=((32, 32), (64, 64), (96, 96))))
    generator = np.random.default_rng(0)
    with load(tmp_path / "maps", backend="tensorrt") as session, load(tmp_path / "maps", device="cpu") as other:
        for height, width in ((32, 32), (64, 96), (96, 64)):
            feeds = {"input": generator.standard_normal((3, 3, height, width)).astype(np.float32)}
            for name, array in other.run(feeds).items():
                assert close(session.run(feeds)[name], array)
        with pytest.raises(UsageError, match=r"128x128; wanted 3x32x32 to 3x96x96"):
            session.run({"input": np.zeros((1, 3, 128, 128), np.float32)})


def test_nothing_is_allocated_after_the_warm_up(machine: Machine, built: Path, images: Any) -> None:
    with load(built, backend="tensorrt") as session:
        for rows in (1, 8):
            session.warmup(rows)
        before, streams = machine.device.allocations, len(machine.device.streams)
        del machine.device.log[:]
        for _ in range(3):
            session.run({"input": images[:1]})
            session.run({"input": images[:24]})
        assert machine.device.allocations == before and len(machine.device.streams) == streams == 3
        assert {"copy_in", "launch", "copy_out", "synchronize"} == set(machine.device.log)


def test_split_batches_overlap(machine: Machine, built: Path, images: Any) -> None:
    """The second chunk's copy is enqueued before anybody waits for the first chunk."""
    with load(built, backend="tensorrt") as session:
        session.warmup(8)
        del machine.device.log[:]
        session.run({"input": images[:16]})
        assert machine.device.log == ["copy_in", "launch", "copy_out"] * 2 + ["synchronize"] * 2


def test_shapes_that_are_kept(
    machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "KEPT_SLOTS", 8)
    directory = machine.built(exported, tmp_path / "a", BuildOptions(batches=((1, 8, 32),)))
    with load(directory, backend="tensorrt") as session:
        for _ in range(2):
            for rows in range(1, 13):
                assert close(session.run({"input": images[:rows]})["logits"], wanted[:rows])
        kept = sum(1 for array in machine.device.pinned.values() if array.nbytes % (3 * 32 * 32 * 4) == 0)
        assert kept == 8
    assert machine.nothing_is_left()


def test_any_batch_has_its_context_after_one_round(
    machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server asks, whose batches have any number of rows: nothing is made or allocated for one any more."""
    directory = machine.built(exported, tmp_path / "a", BuildOptions(batches=((1, 8, 26),)))
    made: list[int] = []
    with load(directory, backend="tensorrt") as session:
        create = type(session._engine.api).create_context  # type: ignore[attr-defined]
        monkeypatch.setattr(
            type(session._engine.api),  # type: ignore[attr-defined]
            "create_context",
            lambda api, engine: made.append(1) or create(api, engine),
        )
        for _ in range(2):
            for rows in range(1, 27):
                assert close(session.run({"input": images[:rows]})["logits"], wanted[:rows])
        assert len(made) == 7 + 4 + 3 + 1  # 1 to 7; 8, 10, 12, 14; 16, 20, 24; the profile's last, 26
        before = machine.device.allocations
        for rows in range(1, 27):
            session.run({"input": images[:rows]})
        assert len(made) == 15 and machine.device.allocations == before


def test_the_callers_memory_on_the_gpu_is_used_for_any_batch(machine: Machine, exported: Path, tmp_path: Path) -> None:
    directory = machine.built(exported, tmp_path / "a", BuildOptions(batches=((1, 8, 32),)))
    with load(directory, backend="tensorrt") as session:
        images = np.random.default_rng(0).standard_normal((9, 3, 32, 32)).astype(np.float32)
        session.run({"input": DeviceTensor(machine.device, images)})
        assert "copy_within" not in machine.device.log
        assert "9x3x32x32 with input bound" in session.graphs()  # type: ignore[attr-defined]


def test_many_threads_one_session(machine: Machine, built: Path, images: Any, wanted: Any) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        try:
            for _ in range(6):
                start, rows = int(generator.integers(0, 20)), int(generator.integers(1, 20))
                found = session.run({"input": images[start : start + rows]})["logits"]
                assert close(found, wanted[start : start + rows])
        except BaseException as error:  # noqa: BLE001  # whatever it is, the test tells
            failures.append(error)

    with load(built, backend="tensorrt") as session:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(machine.device.streams) == 3  # two lanes, and the default stream
    assert machine.nothing_is_left()


def test_a_warm_up_gets_its_turn(machine: Machine, built: Path, images: Any) -> None:
    """Also where there is always a thread that holds a lane."""
    with load(built, backend="tensorrt") as session:
        pool = session._pool  # type: ignore[attr-defined]
        session.warmup(1)
        warmed, order = threading.Event(), list[str]()

        def warm() -> None:
            session.warmup(1)
            order.append("warm-up")
            warmed.set()

        def run() -> None:
            session.run({"input": images[:1]})
            order.append("run")

        with session._engine.cuda.current(), pool.lend(1):  # type: ignore[attr-defined]
            first = threading.Thread(target=warm)
            first.start()
            while not pool._changed._waiters:
                time.sleep(0.01)
            second = threading.Thread(target=run)  # a lane is free, but the warm-up waits for both
            second.start()
            second.join(0.2)
            assert order == []
        for thread in (first, second):
            thread.join(60)
        assert order == ["warm-up", "run"]


def test_run_async(machine: Machine, built: Path, images: Any, wanted: Any) -> None:
    with load(built, backend="tensorrt") as session:
        futures = [session.run_async({"input": images[i : i + 9]}) for i in range(0, 30, 3)]
        for start, future in zip(range(0, 30, 3), futures, strict=True):
            assert close(future.result(60)["logits"], wanted[start : start + 9])
        with pytest.raises(UsageError, match="missing"):
            session.run_async({}).result(60)
        waiting = [session.run_async({"input": images}) for _ in range(4)]
    assert all(close(future.result(0)["logits"], wanted) for future in waiting)  # close waited for them
    with pytest.raises(UsageError, match="closed"):
        session.run_async({"input": images[:1]})


def test_without_graphs_it_runs_and_says_so(
    machine: Machine, built: Path, images: Any, wanted: Any, capsys: Any
) -> None:
    machine.device.can_capture = False
    with load(built, backend="tensorrt") as session:
        for _ in range(4):
            assert close(session.run({"input": images[:8]})["logits"], wanted[:8])
        (note,) = set(session.graphs().values())  # type: ignore[attr-defined]
        assert note.startswith("no CUDA graph: CUDA's cuStreamEndCapture failed")
    said = capsys.readouterr().err
    assert said.count("8x3x32x32 (profile 1) runs with no CUDA graph") == 1


def test_a_capture_that_was_disturbed_is_tried_once_more(
    machine: Machine, built: Path, images: Any, wanted: Any, capsys: Any
) -> None:
    with load(built, backend="tensorrt") as session:
        for can_capture, note in ((True, "runs directly the first time"), (False, "runs directly: another thread")):
            machine.device.can_capture = can_capture
            assert close(session.run({"input": images[:8]})["logits"], wanted[:8])
            assert session.graphs()["8x3x32x32 (profile 1)"].startswith(note)  # type: ignore[attr-defined]
        machine.device.can_capture = True
        assert close(session.run({"input": images[:8]})["logits"], wanted[:8])
        assert set(session.graphs().values()) == {"CUDA graph"}  # type: ignore[attr-defined]
    assert "no CUDA graph" not in capsys.readouterr().err


@pytest.mark.parametrize("disturbing", ["another shape", "another session", "a ring", "a lane that closes"])
def test_nothing_is_made_or_freed_while_another_thread_captures(
    machine: Machine, built: Path, images: Any, monkeypatch: Any, disturbing: str
) -> None:
    session, other = (load(built, backend="tensorrt") for _ in range(2))
    other.run({"input": images[:1]})
    capturing, done = threading.Event(), threading.Event()
    end = machine.device.end_capture

    def slow_end(stream: Any) -> Any:
        capturing.set()
        done.wait(0.3)
        return end(stream)

    def disturb() -> None:
        assert capturing.wait(60)
        with session._engine.cuda.current():  # type: ignore[attr-defined]
            if disturbing == "another shape":
                session.run({"input": images[:4]})
            elif disturbing == "another session":
                other.run({"input": images[:4]})
            elif disturbing == "a ring":
                session.output_ring(1).close()  # type: ignore[attr-defined]
            else:
                other.close()
        done.set()

    monkeypatch.setattr(machine.device, "end_capture", slow_end)
    thread = threading.Thread(target=disturb)
    thread.start()
    for _ in range(2):
        session.run({"input": images[:8]})
    thread.join(60)
    assert session.graphs()["8x3x32x32 (profile 1)"] == "CUDA graph"  # type: ignore[attr-defined]
    session.close()
    other.close()
    assert machine.nothing_is_left()


def test_a_note_is_not_lost_to_that_of_bound_memory(machine: Machine, built: Path, images: Any) -> None:
    machine.device.can_capture = False
    with load(built, backend="tensorrt") as session:
        for _ in range(3):
            session.run({"input": images[:8]})
        session.run({"input": DeviceTensor(machine.device, images[:8])})
        notes = session.graphs()  # type: ignore[attr-defined]
        assert notes["8x3x32x32 (profile 1)"].startswith("no CUDA graph: ")
        assert notes["8x3x32x32 (profile 1) with input bound"] == "the caller's own device memory is bound"


class TestArraysOnTheGpu:
    """In and out without a copy where TensorRT can take the address."""

    @pytest.mark.parametrize("kind", ["interface", "dlpack"])
    def test_bound_as_they_are(self, machine: Machine, built: Path, images: Any, wanted: Any, kind: str) -> None:
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

    def test_split_padded_and_not_aligned(self, machine: Machine, built: Path, images: Any, wanted: Any) -> None:
        device = machine.device
        with load(built, backend="tensorrt") as session:
            for rows, offset in ((20, 0), (8, 4), (1, 128)):
                feed = DeviceTensor(device, images[:rows], offset=offset)
                target = DeviceTensor(device, np.zeros((rows, 7), np.float32), offset=offset)
                session.run({"input": feed}, {"logits": target})
                assert close(target.numpy(), wanted[:rows]), (rows, offset)

    def test_rows_are_added_on_the_gpu(
        self, machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any
    ) -> None:
        directory = machine.built(exported, tmp_path / "a", BuildOptions(batches=((4, 4, 4),)))
        with load(directory, backend="tensorrt") as session:
            for rows in (4, 3):
                feed = DeviceTensor(machine.device, images[:rows])
                target = DeviceTensor(machine.device, np.zeros((rows, 7), np.float32))
                session.run({"input": feed}, {"logits": target})
                assert close(target.numpy(), wanted[:rows])

    def test_an_output_ring(self, machine: Machine, built: Path, images: Any, wanted: Any) -> None:
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

    def test_another_stream_is_waited_for(self, machine: Machine, built: Path, images: Any, wanted: Any) -> None:
        other = machine.device.stack.append("primary") or machine.device.create_stream(1)
        machine.device.stack.pop()
        with load(built, backend="tensorrt") as session:
            feed = DeviceTensor(machine.device, images[:8], other.handle)
            assert close(session.run({"input": feed})["logits"], wanted[:8])

    @pytest.mark.parametrize("kind", ["interface", "dlpack"])
    def test_run_async_orders_them_in_the_callers_thread(
        self, machine: Machine, built: Path, images: Any, wanted: Any, kind: str
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

    def test_what_does_not_fit(self, machine: Machine, built: Path, images: Any) -> None:
        device = machine.device
        with load(built, backend="tensorrt") as session:
            with pytest.raises(UsageError, match=r"input 'input' is float16"):
                session.run({"input": DeviceTensor(device, images[:2].astype(np.float16))})
            with pytest.raises(UsageError, match=r"output array .logits."):
                session.run({"input": images[:2]}, {"logits": DeviceTensor(device, np.zeros((3, 7), np.float32))})

    @pytest.mark.parametrize("provider", PROVIDERS)
    def test_of_another_context(
        self, monkeypatch: pytest.MonkeyPatch, built: Path, images: Any, wanted: Any, provider: str
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

    def test_other_backends_refuse(self, machine: Machine, exported: Path, images: Any) -> None:
        with load(exported, device="cpu") as session:
            for value in (DeviceTensor(machine.device, images[:1]),):
                with pytest.raises(UsageError, match=r"^input 'input' is on a GPU.*backend='tensorrt'"):
                    session.run({"input": value})


def test_a_plugin_engine(machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any) -> None:
    machine.library = tmp_path / "libmlpdeploy_plugins.so"
    machine.library.write_bytes(b"a plugin library")
    directory = machine.built(exported, tmp_path / "a", BuildOptions(shift="plugin"))
    for _ in range(2):  # the library is loaded once
        with load(directory, backend="tensorrt") as session:
            assert close(session.run({"input": images[:9]})["logits"], wanted[:9])


def test_two_threads_that_load_one_plugin_library(machine: Machine, tmp_path: Path, monkeypatch: Any) -> None:
    """The second waits for the first: TensorRT would refuse it."""
    library, registry = tmp_path / "libmlpdeploy_plugins.so", machine.module.get_plugin_registry()
    loaded: list[str] = []
    monkeypatch.setattr(registry, "load_library", lambda path: time.sleep(0.1) or loaded.append(path) or object())
    api = load_tensorrt("tensorrt")
    threads = [threading.Thread(target=api.load_plugins, args=(library,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == [str(library)]


def test_an_engine_that_carries_the_plugin(
    machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("mlpdeploy.plugins.ptx.build_ptx", lambda: fake_ptx(tmp_path))
    options = dataclasses.replace(PROFILES, shift="plugin", plugin="embedded")
    directory = machine.built(exported, tmp_path / "a", options)
    assert machine.library is None  # there is none, at any time
    with load(directory, backend="tensorrt") as session:
        assert close(session.run({"input": images})["logits"], wanted)
        assert session.sidecar.fingerprint.embedded_sha256  # type: ignore[attr-defined]
    monkeypatch.setattr("mlpdeploy.plugins.ptx.build_ptx", lambda: pytest.fail("nothing is compiled to run it"))
    load(directory, backend="tensorrt").close()


def test_a_session_that_outlives_the_first_one(
    machine: Machine, exported: Path, tmp_path: Path, images: Any, monkeypatch: Any
) -> None:
    """TensorRT keeps the first session's logger: it must be there, and hand on what concerns the second."""
    directory = machine.built(exported, tmp_path / "a", PROFILES)
    first, second = (load(directory, backend="tensorrt") for _ in range(2))
    first.close()
    gc.collect()
    load(directory, backend="tensorrt").close()

    def fail(self: Any, handle: int) -> bool:
        logger = machine.module._first_logger()
        logger.log(machine.module.ILogger.Severity.ERROR, "an illegal memory access")
        return False

    monkeypatch.setattr(machine.module._inner["IExecutionContext"], "execute_async_v3", fail)
    with second, pytest.raises(EngineError, match="could not run the engine: an illegal memory access"):
        second.run({"input": images[:1]})


def test_the_time_of_the_gpu_alone(machine: Machine, built: Path) -> None:
    with load(built, backend="tensorrt") as session:
        assert len(session.gpu_ms(5, runs=4)) == 4  # type: ignore[attr-defined]
        with pytest.raises(UsageError, match="a batch of 9 in one run; wanted at most 8"):
            session.gpu_ms(9, runs=1)  # type: ignore[attr-defined]


class TestErrors:
    """Each is one sentence that says what came, what was wanted, and what to type."""

    @pytest.fixture
    def own(self, machine: Machine, exported: Path, tmp_path: Path) -> Path:
        return machine.built(exported, tmp_path / "own", PROFILES)

    def test_no_engine_yet(self, machine: Machine, exported: Path) -> None:
        with pytest.raises(EngineError, match=r"has no engine for tensorrt yet; run: mlpdeploy build .*tiny$"):
            load(exported, backend="tensorrt")

    def test_another_version(self, machine: Machine, own: Path) -> None:
        machine.use("10.16.1.11")
        with pytest.raises(
            EngineError, match=r"TensorRT 11\.4\.0\.106, here is 10\.16\.1\.11; run: mlpdeploy build"
        ) as e:
            load(own, backend="tensorrt")
        assert str(e.value).endswith("--profile 1:1:1 --profile 2:4:8")

    def test_another_gpu(self, machine: Machine, own: Path) -> None:
        machine.use_gpu(Gpu("NVIDIA H100 80GB HBM3", "9.0", "580.65.06", "13.0"))
        with pytest.raises(
            EngineError, match=r"it is for NVIDIA L4 \(8\.9\), here is NVIDIA H100 .*; run: mlpdeploy build"
        ):
            load(own, backend="tensorrt")

    def test_another_gpu_beside_the_first(self, machine: Machine, own: Path, exported: Path, monkeypatch: Any) -> None:
        """A build is for the first GPU that it sees."""
        machine.use_gpu(Gpu("NVIDIA H100 80GB HBM3", "9.0", "580.65.06", "13.0"))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for directory in (own, exported):
            with pytest.raises(EngineError, match="; run: CUDA_VISIBLE_DEVICES=1 mlpdeploy build "):
                load(directory, backend="tensorrt", device="cuda:1")
            with pytest.raises(EngineError, match="; run: mlpdeploy build "):
                load(directory, backend="tensorrt", device="cuda:0")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8932f937")
        with pytest.raises(EngineError, match="; run: CUDA_VISIBLE_DEVICES=GPU-8932f937 mlpdeploy build "):
            load(own, backend="tensorrt", device="cuda:1")

    def test_compatible_engines(self, machine: Machine, own: Path) -> None:
        from mlpdeploy.engines.tensorrt_builder import EngineFlags

        flags = EngineFlags(hardware_compatible=True, version_compatible=True)
        build_artifact(own, BuildOptions(batches=((1, 2, 4),), flags=flags))
        machine.use_gpu(Gpu("NVIDIA H100 80GB HBM3", "9.0", "580.65.06", "13.0"))
        with load(own, backend="tensorrt") as session:
            assert session.max_batch == 4
        machine.use_gpu(Gpu("NVIDIA T4", "7.5", "580.65.06", "13.0"))
        with pytest.raises(EngineError, match="Ampere and later, NVIDIA T4 is older"):
            load(own, backend="tensorrt")

    def test_another_model(self, machine: Machine, own: Path) -> None:
        manifest = read_manifest(own)
        entry = dataclasses.replace(manifest.files["model.onnx"], sha256="0" * 64)
        other = dataclasses.replace(manifest, files={**manifest.files, "model.onnx": entry})
        found = differences_of(engines_of(own)[0].fingerprint, other, Target("tensorrt", NEWEST, L4))
        assert found == ["it was built from another model than the artifact holds now"]

    def test_an_engine_without_weights(self, machine: Machine, exported: Path, tmp_path: Path) -> None:
        from mlpdeploy.engines.tensorrt_builder import EngineFlags

        own = machine.built(exported, tmp_path / "b", BuildOptions(flags=EngineFlags(strip=True)))
        with pytest.raises(EngineError, match=r"without weights \(--strip\)"):
            load(own, backend="tensorrt")

    def test_a_truncated_plan(self, machine: Machine, own: Path, flip_byte: Any) -> None:
        (plan,) = (own / "engines").glob("*.plan")
        data = plan.read_bytes()
        plan.write_bytes(data[:1000])
        with pytest.raises(
            ArtifactError, match=r"is cut off: it has 1000 bytes; wanted \d+; run: mlpdeploy build .*--force"
        ):
            load(own, backend="tensorrt")
        plan.write_bytes(data)
        flip_byte(plan)
        with pytest.raises(ArtifactError, match="was changed: its checksum differs"):
            load(own, backend="tensorrt")
        plan.unlink()
        with pytest.raises(ArtifactError, match="is missing"):
            load(own, backend="tensorrt")

    def test_tensorrt_returns_none(self, machine: Machine, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Any, plan: bytes) -> None:
            self._logger.log(machine.module.ILogger.Severity.ERROR, "magicTag failed")

        monkeypatch.setattr(machine.module.Runtime, "deserialize_cuda_engine", refuse)
        with pytest.raises(EngineError, match=r"cannot load .*\.plan: magicTag failed; run: mlpdeploy doctor"):
            load(own, backend="tensorrt")

    def test_tensorrt_without_a_working_cuda(
        self, machine: Machine, own: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: Any, logger: Any) -> None:
            logger.log(machine.module.ILogger.Severity.WARNING, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

        monkeypatch.setattr(machine.module.Runtime, "__init__", fail)
        with pytest.raises(EngineError, match="CUDA initialization failure with error: 35"):
            load(own, backend="tensorrt")

    def test_a_driver_that_is_too_old(self, machine: Machine, own: Path) -> None:
        machine.use_gpu(Gpu("NVIDIA L4", "8.9", "550.54", "12.4"))
        with pytest.raises(EngineError, match=r"550\.54 serves CUDA 12\.4, .* is for CUDA 13; update .*tensorrt-cu12"):
            load(own, backend="tensorrt")

    def test_the_plugin_library(
        self, machine: Machine, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
        library = tmp_path / "libmlpdeploy_plugins.so"
        library.write_bytes(b"a plugin library")
        machine.library = library
        own = machine.built(exported, tmp_path / "b", BuildOptions(shift="plugin"))
        machine.library = None
        with pytest.raises(
            PluginError, match=r"plan needs the plugin library: .*not built; run: mlpdeploy plugin build"
        ):
            load(own, backend="tensorrt")
        machine.library = library
        library.write_bytes(b"another plugin library")
        with pytest.raises(PluginError, match="with another plugin library than"):
            load(own, backend="tensorrt")
        earlier = cache_directory() / "earlier" / LIBRARY_NAME
        earlier.parent.mkdir(parents=True)
        earlier.write_bytes(b"a plugin library")
        digest = hashlib.sha256(b"a plugin library").hexdigest()
        record = BuildRecord(FORMAT_VERSION, "1", "0", digest, 16, "IPluginV3", "11.4", "13.0", "g++", (), (), 1.0)
        (earlier.parent / RECORD_NAME).write_text(record.to_json())
        load(own, backend="tensorrt").close()  # the cache still has the one that it was built with
        assert machine.module.get_plugin_registry()._loaded == [str(earlier)]
        earlier.write_bytes(b"a plugin librarz")
        with pytest.raises(PluginError, match="was changed or cut off"):
            load(own, backend="tensorrt")
        shutil.rmtree(earlier.parent)
        library.write_bytes(b"a plugin library")
        machine.use(NEWEST, plugins=False)
        with pytest.raises(EngineError, match=r"cannot load the plugin library .*\.so: .*(file too short|ELF header)"):
            load(own, backend="tensorrt")

    def test_an_engine_that_needs_no_library_runs_where_there_is_none(
        self, machine: Machine, exported: Path, tmp_path: Path
    ) -> None:
        machine.library = tmp_path / "libmlpdeploy_plugins.so"
        machine.library.write_bytes(b"a plugin library")
        own = machine.built(exported, tmp_path / "b", BuildOptions(shift="plugin", batches=((1, 8, 32),)))
        native = build_artifact(own, BuildOptions(shift="native", batches=((1, 1, 1),)))
        with load(own, backend="tensorrt") as session:
            assert session.max_batch == 32
        machine.library = None
        with load(own, backend="tensorrt") as session:
            assert session.file == f"engines/{native.sidecar.file}"

    def test_options_that_make_no_sense(self, machine: Machine, own: Path) -> None:
        for options, text in (
            ({"device": "cpu"}, "device cpu on the backend tensorrt; wanted cuda"),
            ({"device": "cuda:x"}, "cuda:1 for the second GPU"),
            ({"threads": 2}, "threads on the backend tensorrt"),
        ):
            with pytest.raises(UsageError, match=text):
                load(own, backend="tensorrt", **options)  # type: ignore[arg-type]
        assert len(engines_of(own)) == 1 and L4.name == engines_of(own)[0].fingerprint.gpu

    def test_max_batch_is_a_limit(self, machine: Machine, own: Path, images: Any, wanted: Any) -> None:
        for asked, used in ((64, 8), (3, 3)):
            with load(own, backend="tensorrt", max_batch=asked) as session:
                assert session.max_batch == used
                assert close(session.run({"input": images[:10]})["logits"], wanted[:10])

    def test_no_memory_left(self, machine: Machine, own: Path, images: Any) -> None:
        with load(own, backend="tensorrt") as session:
            for left in (1000, 8000, 4096 + 8 * 3 * 32 * 32 * 4 + 100):  # for a lane, its input, its output
                machine.device.total_bytes = left
                with pytest.raises(CudaError, match=r"cuMemAlloc failed: out_of_memory \(2\)"):
                    session.run({"input": images[:8]})
            machine.device.total_bytes = 1 << 30
            session.run({"input": images[:8]})
        assert machine.nothing_is_left()

    def test_memory_for_one_lane_only(self, machine: Machine, own: Path, images: Any, wanted: Any) -> None:
        """A second thread waits for the lane that is lent, and is told when the session is closed."""
        session: Any = load(own, backend="tensorrt")
        session.run({"input": images[:1]})
        machine.device.total_bytes = sum(array.nbytes for array in machine.device.memory.values())
        with session._engine.cuda.current(), session._pool.lend(1):
            found = session.run_async({"input": images[:1]})
            with pytest.raises(TimeoutError):
                found.result(0.2)
        assert close(found.result(60)["logits"], wanted[:1])
        with session._engine.cuda.current(), session._pool.lend(1):
            found = session.run_async({"input": images[:1]})
            with pytest.raises(TimeoutError):
                found.result(0.2)
            session._pool.close(wait=False)
            with pytest.raises(UsageError, match="this session is closed"):
                found.result(60)
        machine.device.total_bytes = 1 << 30
        session.close()
        assert machine.nothing_is_left()

    @pytest.mark.parametrize("provider", PROVIDERS)
    def test_a_shape_makes_room_for_another(
        self, own: Path, images: Any, wanted: Any, monkeypatch: Any, provider: str
    ) -> None:
        machine = Machine(monkeypatch, provider)
        with load(own, backend="tensorrt") as session:
            for rows in (8, 2, 4):
                session.run({"input": images[:rows]})
            machine.device.total_bytes = sum(array.nbytes for array in machine.device.memory.values())
            assert close(session.run({"input": images[:7]})["logits"], wanted[:7])
            (lane,) = session._pool._lanes  # type: ignore[attr-defined]
            assert [layout.shapes[0][1][0] for layout in lane._slots] == [2, 4, 7]
            machine.device.total_bytes = 1 << 30
            context, gone = machine.module._inner["ICudaEngine"], []
            create = context.create_execution_context
            monkeypatch.setattr(
                context, "create_execution_context", lambda *given: create(*given) if gone else gone.append(1)
            )
            assert close(session.run({"input": images[:5]})["logits"], wanted[:5])
            assert [layout.shapes[0][1][0] for layout in lane._slots] == [4, 7, 5]
        assert machine.nothing_is_left()

    def test_a_profile_that_is_refused(self, machine: Machine, own: Path, images: Any, monkeypatch: Any) -> None:
        def refuse(self: Any, index: int, handle: int) -> bool:
            logger = machine.module._first_logger()
            logger.log(machine.module.ILogger.Severity.ERROR, "profile index 1 is in use")
            raise RuntimeError("Error in set optimization profile async.")

        monkeypatch.setattr(machine.module._inner["IExecutionContext"], "set_optimization_profile_async", refuse)
        with (
            load(own, backend="tensorrt") as session,
            pytest.raises(EngineError, match="refused profile 1: profile index 1 is in use"),
        ):
            session.run({"input": images[:8]})
        assert machine.nothing_is_left()

    def test_the_engine_fails_to_run(self, machine: Machine, own: Path, images: Any, monkeypatch: Any) -> None:
        with load(own, backend="tensorrt") as session:
            session.run({"input": images[:1]})
            monkeypatch.setattr(
                machine.module._inner["IExecutionContext"], "execute_async_v3", lambda self, handle: False
            )
            with pytest.raises(EngineError, match="could not run the engine"):
                session.run({"input": images[:40]})
            monkeypatch.undo()
            assert len(session.run({"input": images[:40]})["logits"]) == 40

    def test_a_failure_in_the_middle_of_a_batch(
        self, machine: Machine, own: Path, images: Any, monkeypatch: Any
    ) -> None:
        """What is still under way must not be written to the caller's arrays afterwards."""
        context = machine.module._inner["IExecutionContext"]
        execute, calls = context.execute_async_v3, []
        monkeypatch.setattr(
            context,
            "execute_async_v3",
            lambda self, handle: len(calls) < 2 and (calls.append(1) or execute(self, handle)),
        )
        into = np.zeros((40, 7), np.float32)
        with load(own, backend="tensorrt") as session:
            with pytest.raises(EngineError, match="could not run the engine"):
                session.run({"input": images[:40]}, {"logits": into})
            monkeypatch.setattr(context, "execute_async_v3", execute)
            into[:] = 7
            assert len(session.run({"input": images[:40]})["logits"]) == 40
            assert (into == 7).all()

    def test_closed(self, machine: Machine, own: Path, images: Any) -> None:
        session = load(own, backend="tensorrt")
        session.run({"input": images[:1]})
        session.close()
        session.close()
        with pytest.raises(UsageError, match="closed"):
            session.run({"input": images[:1]})
        assert machine.nothing_is_left()


def test_a_session_that_nobody_closes(machine: Machine, built: Path, images: Any) -> None:
    session = load(built, backend="tensorrt")
    session.run({"input": images[:1]})
    del session
    assert machine.nothing_is_left()


def test_the_fake_refuses_what_would_crash(machine: Machine, built: Path) -> None:
    """Each rule of the stand-in, broken once."""
    session: Any = load(built, backend="tensorrt")
    api, engine = session._engine.api, session._engine.engine
    with session._engine.cuda.current():
        stream = session._engine.cuda.create_stream()
        handle, scratch = int(stream), session._engine.cuda.allocate(4096)
        context = api.create_context(engine)
        with pytest.raises(FakeError, match="a shape before the profile"):
            context.set_input_shape("input", (1, 3, 32, 32))
        assert context.set_optimization_profile_async(1, handle)
        assert not context.set_input_shape("input", (1, 3, 32, 32))  # below the profile
        with pytest.raises(FakeError, match="an address before the shapes"):
            context.set_tensor_address("input", scratch)
        assert context.set_input_shape("input", (2, 3, 32, 32))
        with pytest.raises(FakeError, match="no scratch memory"):
            context.execute_async_v3(handle)
        api.give_scratch(context, scratch, 4096)
        with pytest.raises(FakeError, match="has no address"):
            context.execute_async_v3(handle)
        with pytest.raises(FakeError, match="no multiple of 256"):
            context.set_tensor_address("input", scratch + 4)
        places = [session._engine.cuda.allocate(2 * 3 * 32 * 32 * 4), session._engine.cuda.allocate(2 * 7 * 4)]
        for name, place in zip(("input", "logits"), places, strict=True):
            assert context.set_tensor_address(name, place)
        session._engine.cuda.begin_capture(stream)
        with pytest.raises(FakeError, match="a capture before the shapes were run once"):
            context.execute_async_v3(handle)
        session._engine.cuda.end_capture(stream)
        assert context.execute_async_v3(handle)
        with context._alone(), pytest.raises(FakeError, match="two threads at once"):
            context.execute_async_v3(handle)
        del context
        with pytest.raises(FakeError, match="destroyed before its work had run"):
            session._engine.cuda.synchronize(stream)
