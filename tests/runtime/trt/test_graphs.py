"""CUDA graphs: captured where that works, and a note that says why where it does not."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from fakes.fake_cuda import DeviceTensor
from fakes.machine import RTX, Machine
from tiny_engine import close, options_for

from mlpdeploy.runtime.loading import load


def test_tensorrt_rtx_that_cannot_be_captured(
    machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any, monkeypatch: Any
) -> None:
    machine.use(RTX)
    directory = machine.built(exported, tmp_path / "a", options_for(RTX))
    monkeypatch.setattr(machine.module._inner["IExecutionContext"], "is_stream_capturable", lambda self, stream: False)
    with load(directory, backend="tensorrt") as session:
        for _ in range(3):
            assert close(session.run({"input": images[:8]})["logits"], wanted[:8])
        (note,) = session.graphs().values()  # type: ignore[attr-defined]
        assert note == f"no CUDA graph: TensorRT-RTX {RTX} says that this engine cannot be captured"
    assert "begin_capture" not in machine.device.log


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
