"""One session in many threads and processes, for every backend: shared, closed meanwhile, forked."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_runs import CPU_BACKENDS, TOLERANCE, images, reference

from mlpdeploy.env import installed_version
from mlpdeploy.errors import UsageError
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import ASYNC_RUNS, Session


def wait_until(condition: Callable[[], Any]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


@pytest.fixture
def freed(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for each time that the backend's memory is freed."""
    calls: list[str] = []
    release = session._release

    def counted() -> None:
        calls.append(threading.current_thread().name)
        release()

    monkeypatch.setattr(session, "_release", counted)
    return calls


def hold_runs(session: Session, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], threading.Event]:
    """Return (an entry for each run that has begun, what all of them wait for)."""
    begun: list[str] = []
    go, taken = threading.Event(), session._run_taken

    def slow(*arguments: Any) -> Any:
        begun.append(threading.current_thread().name)
        assert go.wait(60)
        return taken(*arguments)

    monkeypatch.setattr(session, "_run_taken", slow)
    return begun, go


def test_threads_share_a_session(session: Session) -> None:
    wanted = [reference(images(rows)) for rows in range(1, 7)]
    wrong = []

    def work(rows: int) -> None:
        for _ in range(10):
            result = session.run({"input": images(rows)})["logits"]
            if not np.allclose(result, wanted[rows - 1], atol=TOLERANCE):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_only_so_many_asynchronous_runs_compute_at_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = hold_runs(session, monkeypatch)
    futures = [session.run_async({"input": images(1)}) for _ in range(ASYNC_RUNS + 3)]
    wait_until(lambda: len(begun) >= ASYNC_RUNS)
    time.sleep(0.1)
    assert len(begun) == ASYNC_RUNS
    go.set()
    assert [future.result(60)["logits"].shape for future in futures] == [(1, 7)] * len(futures)


def test_a_closed_session_refuses(exported_for_all: Path) -> None:
    for backend in filter(installed_version, CPU_BACKENDS):
        with load(exported_for_all, backend, "cpu") as opened:
            opened.warmup()
        opened.close()
        with pytest.raises(UsageError, match="closed"):
            opened.run({"input": images(1)})


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_closing_while_threads_run(exported_for_all: Path, backend: str) -> None:
    """Every run ends with its result or is refused, whenever the session is closed."""
    if installed_version(backend) is None:
        pytest.skip(f"{backend} is not installed")
    wrong: list[BaseException] = []

    def work(session: Session, rows: int) -> None:
        try:
            while True:
                session.run({"input": images(rows)})
        except UsageError:
            pass
        except BaseException as error:  # noqa: BLE001 - none is allowed
            wrong.append(error)

    for attempt in range(20):
        session = load(exported_for_all, backend, "cpu", threads=2)
        threads = [threading.Thread(target=work, args=(session, rows)) for rows in (1, 6, 6)]
        for thread in threads:
            thread.start()
        time.sleep(0.004 * (attempt % 5))
        session.close()
        for thread in threads:
            thread.join()
    assert not wrong


def test_closing_waits_for_asynchronous_runs(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = hold_runs(session, monkeypatch)
    futures = [session.run_async({"input": images(1)}) for _ in range(ASYNC_RUNS + 1)]
    wait_until(lambda: begun)
    closing = threading.Thread(target=session.close)
    closing.start()
    time.sleep(0.1)
    assert closing.is_alive()
    go.set()
    closing.join(60)
    assert all(future.done() for future in futures)


def test_a_callback_may_close_its_session(session: Session) -> None:
    errors: list[Exception] = []

    def close(_: object) -> None:
        try:
            session.close()
        except Exception as error:  # noqa: BLE001 - none is allowed
            errors.append(error)

    futures = [session.run_async({"input": images(2)}) for _ in range(4)]
    futures[0].add_done_callback(close)
    for future in futures:
        np.testing.assert_allclose(future.result(60)["logits"], reference(images(2)), atol=TOLERANCE)
    wait_until(lambda: session._closed)
    assert not errors
    with pytest.raises(UsageError, match="closed"):
        session.run_async({"input": images(1)})


def test_closing_frees_the_backends_memory_once(session: Session, freed: list[str]) -> None:
    session.run({"input": images(1)})
    assert not freed
    session.close()
    session.close()
    assert len(freed) == 1


def test_the_last_run_frees_what_a_closed_session_holds(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go = threading.Event(), threading.Event()
    taken = session._run_taken

    def slow(*arguments: Any) -> Any:
        started.set()
        assert go.wait(60)
        return taken(*arguments)

    monkeypatch.setattr(session, "_run_taken", slow)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(session.run({"input": images(1)})))
    thread.start()
    assert started.wait(60)
    session.close()
    go.set()
    thread.join()
    np.testing.assert_allclose(results[0]["logits"], reference(images(1)), atol=TOLERANCE)


def test_the_memory_is_freed_behind_the_last_run(
    session: Session, freed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = hold_runs(session, monkeypatch)
    threads = [threading.Thread(target=session.run, args=({"input": images(rows)},)) for rows in (1, 2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(begun) == 2)
    session.close()
    assert not freed
    go.set()
    for thread in threads:
        thread.join()
    assert len(freed) == 1


def test_a_run_that_is_refused_does_not_keep_the_memory(session: Session, freed: list[str]) -> None:
    with pytest.raises(UsageError, match="is missing"):
        session.run_async({}).result(60)
    session.close()
    assert len(freed) == 1


def test_a_run_that_gets_no_thread_is_not_waited_for(
    session: Session, freed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="can't start new thread"):
        patch.setattr(threading.Thread, "start", refuse)
        session.run_async({"input": images(1)})
    session.close()
    assert len(freed) == 1


@pytest.mark.parametrize("how", ["close", "free"])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_forked_process_lets_go_of_a_session(exported_for_all: Path, backend: str, how: str) -> None:
    """Freed there, a backend would wait for its threads, as after `session = load(...)` in the child."""
    if installed_version(backend) is None:
        pytest.skip(f"{backend} is not installed")
    session = load(exported_for_all, backend, "cpu", threads=2)
    session.run({"input": images(4)})
    time.sleep(0.5)  # by then its threads sleep
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        if how == "close":
            session.close()
        del session
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    session.run({"input": images(4)})
    session.close()


@pytest.mark.parametrize("call", ["run", "run_async"])
def test_a_forked_process_is_refused(session: Session, call: str) -> None:
    """It has none of the backend's threads, and would wait for them for ever."""
    session.run({"input": images(4)})
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            getattr(session, call)({"input": images(4)})
        except UsageError as error:
            os._exit(0 if "before the fork" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
