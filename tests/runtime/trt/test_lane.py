"""A lane's memory, streams and contexts: made once, kept for later shapes, given back when something fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.machine import PROVIDERS, Machine
from tiny_engine import close

from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.runtime.cuda.interface import CudaError
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.tensorrt_api import EngineError
from mlpdeploy.runtime.trt import lane


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


def test_no_memory_left(machine: Machine, own: Path, images: Any) -> None:
    with load(own, backend="tensorrt") as session:
        for left in (1000, 8000, 4096 + 8 * 3 * 32 * 32 * 4 + 100):  # for a lane, its input, its output
            machine.device.total_bytes = left
            with pytest.raises(CudaError, match=r"cuMemAlloc failed: out_of_memory \(2\)"):
                session.run({"input": images[:8]})
        machine.device.total_bytes = 1 << 30
        session.run({"input": images[:8]})
    assert machine.nothing_is_left()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_shape_makes_room_for_another(own: Path, images: Any, wanted: Any, monkeypatch: Any, provider: str) -> None:
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


def test_a_profile_that_is_refused(machine: Machine, own: Path, images: Any, monkeypatch: Any) -> None:
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


def test_the_engine_fails_to_run(machine: Machine, own: Path, images: Any, monkeypatch: Any) -> None:
    with load(own, backend="tensorrt") as session:
        session.run({"input": images[:1]})
        monkeypatch.setattr(machine.module._inner["IExecutionContext"], "execute_async_v3", lambda self, handle: False)
        with pytest.raises(EngineError, match="could not run the engine"):
            session.run({"input": images[:40]})
        monkeypatch.undo()
        assert len(session.run({"input": images[:40]})["logits"]) == 40


def test_a_failure_in_the_middle_of_a_batch(machine: Machine, own: Path, images: Any, monkeypatch: Any) -> None:
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
