"""Requests through real worker processes: every answer is that of its own rows, and every request ends."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import signal
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import DIE, FIXED, HANG, RAISE, answers, bad_row, rows, workers, write_model

from mlpdeploy import load
from mlpdeploy.errors import ArtifactError, InternalError, MlpDeployError, UsageError
from mlpdeploy.manifest import read_manifest
from mlpdeploy.serving.failures import DeadlineError, QueueFullError, UnavailableError
from mlpdeploy.serving.model import ServedModel
from mlpdeploy.serving.options import ServeOptions
from mlpdeploy.serving.slots import Slot

Use = Callable[[ServedModel], Awaitable[None]]


def serve(directory: Path, use: Use, hang_seconds: float = 0.3, **options: Any) -> None:
    """Serve the small model while `use` runs; check that no callback failed, and that the end leaves nothing open."""
    failures: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
        manifest = read_manifest(directory)
        chosen = ServeOptions(**{"max_batch": 8, **options})
        model = await ServedModel.start("small", "1", directory, manifest, chosen, workers(hang_seconds))
        pids = model.pids
        try:
            await asyncio.wait_for(use(model), 30)
            assert (model.stats.queued_rows, model._batcher.open) == (0, {})
        finally:
            pids += model.pids
            await model.close()
        assert not any(running(pid) for pid in pids)

    asyncio.run(run())
    assert not failures


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not become true"
        await asyncio.sleep(0.005)


def check(x: np.ndarray, got: dict[str, np.ndarray]) -> None:
    wanted = answers(x)
    assert set(got) == set(wanted)
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_model(tmp_path / "small")


@pytest.mark.parametrize("instances", [1, 2])
def test_answers_are_read_before_their_slot_is_filled_again(small: Path, instances: int) -> None:
    async def use(model: ServedModel) -> None:
        for seed in range(10):  # one row is computed, eight wait ahead, and eight more come when the one is done
            asked = [rows(1, seed), rows(2, seed + 1), rows(48, seed + 2)]
            for x, got in zip(asked, await asyncio.gather(*(model.infer({"x": x}) for x in asked)), strict=True):
                check(x, got)

    serve(small, use, instances=instances)


@pytest.mark.parametrize("instances", [1, 2])
def test_any_number_of_rows_by_many_clients(small: Path, instances: int) -> None:
    async def use(model: ServedModel) -> None:
        async def ask(seed: int) -> None:
            x = rows(1 + seed % 21, seed)
            check(x, await model.infer({"x": x}))

        await asyncio.gather(*map(ask, range(200)))
        asked = sum(1 + seed % 21 for seed in range(200))
        assert (model.stats.requests, model.stats.rows) == (200, asked)
        assert sum(size * count for size, count in model.stats.batches.items()) == asked
        assert max(model.stats.batches) == 8 and not model.stats.failures
        assert model.stats.rows_in_flight == 0

    serve(small, use, instances=instances, queue_limit=10_000)


def test_a_fixed_batch_is_padded_and_the_padding_never_shows(tmp_path: Path) -> None:
    async def use(model: ServedModel) -> None:
        assert model.max_batch == 4
        for count in (1, 3, 4, 11):
            check(rows(count, count), await model.infer({"x": rows(count, count)}))
        assert model.stats.batches == {1: 1, 3: 2, 4: 3}

    serve(write_model(tmp_path / "fixed", batch=4), use)


def test_open_sizes_share_batches_by_shape_and_outputs_grow(tmp_path: Path) -> None:
    async def use(model: ServedModel) -> None:
        async def ask(seed: int) -> None:
            choice = random.Random(seed)
            shape = (choice.randint(1, 12), 2, 2 * choice.choice([1, 8, 40]), 2 * choice.choice([3, 60]))
            x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
            check(x, await model.infer({"x": x}))

        await asyncio.gather(*map(ask, range(60)))
        huge = np.ones((3, 2, 600, 700), np.float32)  # a row of it is larger than a batch of common photographs
        before = model.stats.batches[1]
        check(huge, await model.infer({"x": huge}))
        assert model.stats.batches[1] == before + 3
        assert max(model.stats.batches) == 8

    serve(write_model(tmp_path / "open", open_sizes=True), use, queue_limit=10_000)


def test_slots_grow_to_one_batch_or_one_row_and_no_further(tmp_path: Path) -> None:
    """They are kept, so what they may grow to is what hostile requests can make a worker hold for good."""

    def square(count: int, side: int) -> np.ndarray:
        return np.full((count, 2, side, side), 0.5, np.float32)

    async def use(model: ServedModel) -> None:
        largest_row, native_batch = square(1, 1024).nbytes, square(8, 224).nbytes
        for count, side in ((40, 224), (100, 2), (12, 512), (1, 1024), (3, 768), (7, 224)):
            await model.infer({"x": square(count, side)})
            await asyncio.gather(*(model.infer({"x": square(1, side)}) for _ in range(4)))
        (instance,) = model._pool._instances
        assert instance.process is not None
        sizes = [os.fstat(slot.descriptor).st_size for slot in instance.process.slots]
        # The outputs of this model have a quarter of the inputs' values; headers and alignment are the rest.
        assert largest_row < max(sizes) < 1.25 * max(largest_row, native_batch) + 4096

    serve(write_model(tmp_path / "small", open_sizes=True), use, queue_limit=200)


def test_arrays_of_a_slot_begin_where_a_processors_line_does() -> None:
    slot = Slot()
    first, end = slot.arrays([("float32", (3, 5)), ("float64", (1,)), ("uint8", (65,))])
    (last,), _ = slot.arrays([("float64", (2,))], end)
    assert [array.ctypes.data % 64 for array in (*first, last)] == [0] * 4
    for index, array in enumerate((*first, last)):
        array[...] = index
    assert [array.flat[-1] for array in (*first, last)] == [0, 1, 2, 3]
    slot.close()


def test_rows_of_the_real_model_equal_the_session(exported: Path) -> None:
    images = np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32)

    async def run() -> list[np.ndarray]:
        model = await ServedModel.start("tiny", "1", exported, read_manifest(exported), ServeOptions())
        starts = [0, 1, 3, 6, 20, 21, 40]
        parts = [images[start:stop] for start, stop in itertools.pairwise(starts)]
        answered = await asyncio.gather(*(model.infer({"input": part}) for part in parts))
        await model.close()
        return [answer["logits"] for answer in answered]

    with load(exported) as session:
        wanted = session.run({"input": images})["logits"]
    np.testing.assert_array_equal(np.concatenate(asyncio.run(run())), wanted)


def test_a_wrong_request_is_refused_before_it_waits(small: Path) -> None:
    async def use(model: ServedModel) -> None:
        for feeds in ({}, {"x": rows(1)[0]}, {"x": rows(1).astype(np.float64)}, {"x": rows(0)}, {"w": rows(1)}):
            with pytest.raises(UsageError):
                await model.infer(feeds)
        with pytest.raises(DeadlineError):
            await model.infer({"x": rows(1)}, timeout=0.0)

    serve(small, use)


def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    async def use(model: ServedModel) -> None:
        waiting = [asyncio.ensure_future(model.infer({"x": rows(1, seed)})) for seed in range(40)]
        await asyncio.sleep(0)
        start = time.monotonic()
        with pytest.raises(QueueFullError):
            await model.infer({"x": rows(3)})
        assert time.monotonic() - start < 0.1
        results = await asyncio.gather(*waiting, return_exceptions=True)
        refused = sum(isinstance(result, QueueFullError) for result in results)
        assert 0 < refused < 40 and model.stats.failures["QueueFullError"] == refused + 1
        for seed, result in enumerate(results):
            if not isinstance(result, QueueFullError):
                check(rows(1, seed), result)

    serve(write_model(tmp_path / "slow", sleep_s=0.1), use, queue_limit=8)


def test_a_deadline_is_kept_while_the_worker_is_busy_and_its_rows_never_reach_it(tmp_path: Path) -> None:
    async def use(model: ServedModel) -> None:
        first = asyncio.ensure_future(model.infer({"x": rows(1)}))
        await asyncio.sleep(0)
        start = time.monotonic()
        with pytest.raises(DeadlineError, match=r"no answer within 0\.1 s"):
            await model.infer({"x": rows(3)}, timeout=0.1)
        assert 0.09 < time.monotonic() - start < 0.35
        check(rows(1), await first)
        assert model.stats.batches == {1: 1}

    serve(write_model(tmp_path / "slow", sleep_s=0.4), use)


def test_what_is_cancelled_leaves_the_queue_and_a_batch_nobody_wants_is_skipped(tmp_path: Path) -> None:
    async def use(model: ServedModel) -> None:
        tasks = [asyncio.ensure_future(model.infer({"x": rows(8, seed)})) for seed in range(4)]
        await asyncio.sleep(0)  # one is computed, one is handed over ahead, two wait
        assert model.stats.queued_rows == 16
        for task in tasks[1:3]:
            task.cancel()
        await asyncio.wait(tasks[1:3])
        assert model.stats.queued_rows == 8
        check(rows(8, 0), await tasks[0])
        check(rows(8, 3), await tasks[3])
        assert model.stats.failures == {"cancelled": 2}
        assert model.stats.compute_seconds < 0.75  # two runs, not three

    serve(write_model(tmp_path / "slow", sleep_s=0.3), use)


def test_nothing_of_an_answered_request_stays_until_its_deadline(small: Path) -> None:
    """Its rows may have many megabytes, and the deadline is half a minute away."""

    async def use(model: ServedModel) -> None:
        x = rows(3)
        kept = weakref.ref(x)
        await model.infer({"x": x})
        del x
        gc.collect()
        assert kept() is None

    serve(small, use)


def test_workers_are_told_what_the_server_was(small: Path) -> None:
    asked = {"backend": "openvino", "device": "cpu", "precision": "bf16", "max_batch": 5, "threads": 3}

    async def run() -> None:
        options = ServeOptions(**asked)  # type: ignore[arg-type]
        model = ServedModel("small", "1", small, read_manifest(small), options, workers())
        order = model._pool._order
        await model.close()
        assert {name: order[name] for name in asked} == asked
        assert order["share_processors"] is True  # the server and other workers compute too

    asyncio.run(run())


def test_what_a_batch_costs_beside_its_rows_is_measured(tmp_path: Path) -> None:
    """In this model that is all of it, and it is warmed up with half as many runs as are timed."""

    async def use(model: ServedModel) -> None:
        assert 0.09 < model._batcher.fixed_seconds < 2.0
        model._pool.longest = 0.0
        await model.infer({"x": rows(1)})
        assert model._pool.longest >= 0.2

    serve(write_model(tmp_path / "slow", sleep_s=0.2), use)


def test_an_idle_worker_is_given_a_batch_before_a_busy_one(tmp_path: Path) -> None:
    async def use(model: ServedModel) -> None:
        tasks = [asyncio.ensure_future(model.infer({"x": rows(1, seed)})) for seed in range(2)]
        await asyncio.sleep(0)
        assert [len(one.batches) for one in model._pool._instances] == [1, 1]
        await asyncio.gather(*tasks)

    serve(write_model(tmp_path / "slow", sleep_s=0.1), use, instances=2)


def test_a_bad_row_fails_alone(small: Path) -> None:
    async def use(model: ServedModel) -> None:
        asked = [rows(2, 0), bad_row(RAISE), rows(1, 2), bad_row(RAISE, 3), rows(2, 4), rows(30, 5)]
        results = await asyncio.gather(*(model.infer({"x": x}) for x in asked), return_exceptions=True)
        for index, (x, result) in enumerate(zip(asked, results, strict=True)):
            if index in (1, 3):
                assert isinstance(result, InternalError) and "a bad row" in str(result)
            else:
                assert isinstance(result, dict)
                check(x, result)
        assert model.stats.restarts == 0 and model.stats.failures == {"InternalError": 2}

    serve(small, use)


def test_rows_that_kill_the_worker_take_no_others_with_them(small: Path) -> None:
    async def use(model: ServedModel) -> None:
        await model.infer({"x": rows(1)})
        asked = [rows(2, 0), bad_row(DIE), rows(1, 2), rows(4, 4)]
        results = await asyncio.gather(*(model.infer({"x": x}) for x in asked), return_exceptions=True)
        assert isinstance(results[1], UnavailableError) and "ended 2 times" in str(results[1])
        for index in (0, 2, 3):
            assert isinstance(results[index], dict)
            check(asked[index], results[index])
        assert model.stats.restarts == 2

    serve(small, use)


def test_a_worker_that_hangs_is_killed_after_the_deadline_and_the_next_one_answers(small: Path) -> None:
    async def use(model: ServedModel) -> None:
        start = time.monotonic()
        with pytest.raises(DeadlineError):
            await model.infer({"x": bad_row(HANG)}, timeout=0.2)
        assert time.monotonic() - start < 1.0
        check(rows(1), await model.infer({"x": rows(1)}, timeout=10.0))
        assert model.stats.restarts == 1

    serve(small, use)


def test_a_worker_is_not_killed_while_somebody_waits_for_what_it_computes(small: Path) -> None:
    async def use(model: ServedModel) -> None:
        waiting = asyncio.ensure_future(model.infer({"x": bad_row(HANG)}, timeout=1.6))
        await asyncio.sleep(1.3)  # several times as long as a batch that nobody wants
        assert model.stats.restarts == 0
        with pytest.raises(DeadlineError):
            await waiting
        await until(lambda: model.stats.restarts)

    serve(small, use)


def test_a_worker_that_may_hang_gets_nothing_more_while_another_one_computes(small: Path) -> None:
    async def use(model: ServedModel) -> None:
        hanging = asyncio.ensure_future(model.infer({"x": bad_row(HANG)}, timeout=3.0))
        await asyncio.sleep(0.5)
        for seed in range(20):  # the batches of those who wait are full: they would be handed over ahead
            x = [rows(8, seed * 10 + number) for number in range(5)]
            for one, got in zip(x, await asyncio.gather(*(model.infer({"x": y}, 2.0) for y in x)), strict=True):
                check(one, got)
        hanging.cancel()
        await asyncio.wait([hanging])
        await until(lambda: model.stats.restarts)

    serve(small, use, instances=2)


def test_a_slow_worker_is_not_taken_for_a_hanging_one(tmp_path: Path) -> None:
    async def use(model: ServedModel) -> None:
        with pytest.raises(DeadlineError):
            await model.infer({"x": rows(1)}, timeout=0.01)
        check(rows(1), await model.infer({"x": rows(1)}))
        assert model.stats.restarts == 0

    serve(write_model(tmp_path / "slow", sleep_s=0.3), use, hang_seconds=0.1)


def test_an_artifact_that_was_replaced_meanwhile_is_not_loaded_by_a_new_worker(small: Path) -> None:
    async def use(model: ServedModel) -> None:
        write_model(small, scale=2.0)
        os.kill(model.pids[0], signal.SIGKILL)
        with pytest.raises(UnavailableError, match="was replaced since it is served"):
            await model.infer({"x": rows(1)})
        assert not model.ready
        with pytest.raises(UnavailableError):
            await model.infer({"x": rows(1)})
        write_model(small)
        await until(lambda: model.ready)
        check(rows(1), await model.infer({"x": rows(1)}))

    serve(small, use)


def test_requests_wait_for_a_worker_that_dies_while_it_loads_but_not_for_ever(small: Path) -> None:
    async def use(model: ServedModel) -> None:
        for _ in range(3):
            os.kill(model.pids[0], signal.SIGKILL)
            await until(lambda: not model.ready and model.pids)
        check(rows(1), await model.infer({"x": rows(1)}))
        before = model.stats.restarts
        with pytest.raises(UnavailableError, match=r"was ended by SIGKILL while .* was loaded"):
            asking = asyncio.ensure_future(model.infer({"x": rows(1)}))
            while not asking.done():
                for pid in model.pids:
                    os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.01)
            await asking
        assert model.stats.restarts >= before + 3
        await until(lambda: model.ready)

    serve(small, use)


def test_an_artifact_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "broken", broken=True)
    with pytest.raises(ArtifactError, match="is broken; mend it"):
        serve(directory, lambda model: asyncio.sleep(0), instances=2)


def test_a_start_that_is_disturbed_says_so_and_leaves_nothing(small: Path) -> None:
    async def run() -> None:
        options = ServeOptions(instances=2)
        model = ServedModel("small", "1", small, read_manifest(small), options, workers())
        starting = asyncio.ensure_future(model._pool.start())
        await until(lambda: len(model.pids) == 2)
        pids = model.pids
        os.kill(pids[1], signal.SIGSTOP)  # it still loads when the other is warm, however fast it is
        await until(lambda: model.ready)
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(UnavailableError, match="was ended by SIGKILL"):
            await starting
        await model.close()
        assert not any(map(running, pids))

    asyncio.run(run())


def test_closing_answers_what_was_accepted_and_refuses_the_rest(tmp_path: Path) -> None:
    async def use(model: ServedModel) -> None:
        tasks = [asyncio.ensure_future(model.infer({"x": rows(1, seed)})) for seed in range(20)]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(model.close(10.0))
        await asyncio.sleep(0)
        assert not model.ready
        with pytest.raises(UnavailableError):
            await model.infer({"x": rows(1)})
        for seed, result in enumerate(await asyncio.gather(*tasks)):
            check(rows(1, seed), result)
        await closing

    serve(write_model(tmp_path / "slow", sleep_s=0.1), use)


def test_closing_does_not_wait_for_a_worker_that_hangs(small: Path) -> None:
    async def use(model: ServedModel) -> None:
        task = asyncio.ensure_future(model.infer({"x": bad_row(HANG)}))
        await asyncio.sleep(0.05)
        start = time.monotonic()
        await model.close(0.2)
        assert time.monotonic() - start < 3.0
        with pytest.raises(UnavailableError):
            await task

    serve(small, use)


def test_kills_at_any_moment_lose_no_request_and_mix_up_no_answer(tmp_path: Path) -> None:
    """Random sizes, cancellations and deadlines, while one of two workers is killed again and again."""
    directory = write_model(tmp_path / "small", sleep_s=0.002)
    choice = random.Random(0)
    ended: dict[str, int] = {}

    async def use(model: ServedModel) -> None:
        def enough() -> bool:
            return ended.get("answered", 0) >= 200 and model.stats.restarts >= 8

        async def client(number: int) -> None:
            seed = number
            while not enough():
                seed += 1000
                x = rows(choice.randint(1, 20), seed)
                task = asyncio.ensure_future(model.infer({"x": x}, timeout=choice.choice([0.004, 5.0, 5.0])))
                if choice.random() < 0.1:
                    asyncio.get_running_loop().call_later(choice.random() * 0.02, task.cancel)
                try:
                    check(x, await task)
                    kind = "answered"
                except (MlpDeployError, asyncio.CancelledError) as error:
                    kind = type(error).__name__
                ended[kind] = ended.get(kind, 0) + 1

        async def killer() -> None:
            while not enough():
                await asyncio.sleep(choice.uniform(0.05, 0.4))
                await until(lambda: model.ready)  # however slow the machine is, some answers come between the kills
                os.kill(choice.choice(model.pids), signal.SIGKILL)

        await asyncio.gather(killer(), *map(client, range(24)))

    serve(directory, use, instances=2, queue_limit=200)
    assert set(ended) <= {"answered", "DeadlineError", "CancelledError", "QueueFullError", "UnavailableError"}


def test_the_inputs_of_the_small_model_are_what_the_tests_think() -> None:
    assert FIXED[0][0].shape == ("batch", rows(1).shape[1])
