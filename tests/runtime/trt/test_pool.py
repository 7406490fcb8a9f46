"""Many threads and one session: who gets a lane, and who waits for one."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.machine import Machine
from tiny_engine import close

from mlpdeploy.errors import UsageError
from mlpdeploy.runtime.loading import load


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


def test_memory_for_one_lane_only(machine: Machine, own: Path, images: Any, wanted: Any) -> None:
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
