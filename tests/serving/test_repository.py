"""Names and versions, reloading under load, and what is left when the server itself is killed."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from served import answers, rows, workers, write_model

from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.serving import repository
from mlpdeploy.serving.failures import UnknownModelError
from mlpdeploy.serving.model import ServedModel
from mlpdeploy.serving.options import ServeOptions
from mlpdeploy.serving.repository import ModelRepository


def models(*folders: object, **options: object) -> ModelRepository:
    start = functools.partial(ServedModel.start, workers=workers())
    return ModelRepository(list(map(str, folders)), ServeOptions(**options), start)  # type: ignore[arg-type]


def test_names_come_from_the_manifest_or_the_command_line(tmp_path: Path) -> None:
    one, two = write_model(tmp_path / "one"), write_model(tmp_path / "two", scale=2.0)

    async def run() -> None:
        async with models(one, f"other={two}") as served:
            assert [(model.name, model.version) for model in served.models()] == [("small", "1"), ("other", "1")]
            assert served.ready
            x = rows(3)
            for name, scale in (("small", 1.0), ("other", 2.0)):
                got = await served.get(name, "1").infer({"x": x})
                np.testing.assert_array_equal(got["y"], answers(x, scale)["y"])
            for name, version in (("smal", ""), ("small", "2"), ("../one", ""), ("x" * 9999, "")):
                with pytest.raises(UnknownModelError) as caught:
                    served.get(name, version)
                assert len(str(caught.value)) < 300
        assert not served.ready

    asyncio.run(run())


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    one = write_model(tmp_path / "one")
    for folders, text in (
        ([one, one], "two models named small"),
        ([], "no artifact folder"),
        ([write_model(tmp_path / "odd", name="a/b")], "named 'a/b'"),
    ):
        with pytest.raises(UsageError, match=text):
            models(*folders)
    with pytest.raises(ArtifactError, match="does not exist"):
        models(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        models(tmp_path)

    async def run() -> None:
        broken = write_model(tmp_path / "broken", name="broken", broken=True)
        with pytest.raises(ArtifactError, match="is broken; mend it"):
            async with models(one, broken):
                pass

    asyncio.run(run())


def test_a_folder_whose_name_has_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "run=1")
    write_model(tmp_path / "1", name="other")

    async def run() -> None:
        async with models("run=1", "mine=1") as served:
            assert [model.name for model in served.models()] == ["small", "mine"]

    asyncio.run(run())


def test_a_start_that_fails_ends_the_models_that_had_started(tmp_path: Path) -> None:
    folders = [write_model(tmp_path / "one"), write_model(tmp_path / "broken", name="broken", broken=True)]
    started: list[ServedModel] = []

    async def start(name: str, *rest: object) -> ServedModel:
        while name == "broken" and not started:
            await asyncio.sleep(0.01)
        started.append(await ServedModel.start(name, *rest, workers=workers()))  # type: ignore[arg-type]
        return started[-1]

    async def run() -> None:
        with pytest.raises(ArtifactError, match="is broken"):
            async with ModelRepository(list(map(str, folders)), ServeOptions(), start):  # type: ignore[arg-type]
                pass
        assert [model.pids for model in started] == [[]]

    asyncio.run(run())


def test_a_model_that_was_replaced_just_before_the_end_is_ended_too(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_model(folder / "1")

    async def run() -> None:
        async with models(folder) as served:
            old = served.get("small")
            write_model(folder / "2")
            assert [done.changed for done in await served.reload()] == [True]
            assert old.pids
        assert not old.pids

    asyncio.run(run())


def test_a_model_that_is_being_loaded_at_the_end_is_ended_too(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_model(folder / "1")
    started: list[ServedModel] = []

    async def start(*arguments: object) -> ServedModel:
        started.append(await ServedModel.start(*arguments, workers=workers()))  # type: ignore[arg-type]
        return started[-1]

    async def run() -> None:
        async with ModelRepository([str(folder)], ServeOptions(), start) as served:
            write_model(folder / "2")
            reloading = asyncio.ensure_future(served.reload())
            await asyncio.sleep(0.05)
        assert not reloading.done()
        assert [done.changed for done in await reloading] == [False]
        assert [model.pids for model in started] == [[], []] and not served.ready

    asyncio.run(run())


@pytest.mark.parametrize("instances", [1, 2])
def test_a_new_version_is_swapped_in_under_load_without_losing_a_request(tmp_path: Path, instances: int) -> None:
    folder = tmp_path / "models"
    write_model(folder / "1", scale=1.0, sleep_s=0.005)
    repository_versions = 4

    async def run() -> None:
        async with models(folder, instances=instances, max_batch=4) as served:
            seen: dict[str, int] = {}
            stop = False

            async def client(seed: int) -> None:
                while not stop:
                    seed += 100
                    model = served.get("small")
                    await asyncio.sleep(0.01 * (seed % 3))  # slower than the swap: a body that is still read
                    x = rows(1 + seed % 6, seed)
                    got = await model.infer({"x": x})
                    np.testing.assert_array_equal(got["y"], answers(x, float(model.version))["y"])
                    seen[model.version] = seen.get(model.version, 0) + 1

            clients = [asyncio.ensure_future(client(number)) for number in range(12)]
            for version in range(2, repository_versions + 1):
                await asyncio.sleep(0.2)
                write_model(folder / str(version), scale=float(version), sleep_s=0.005)
                (done,) = await served.reload()
                assert (done.version, done.changed, done.error) == (str(version), True, None)
            old = served.get("small", "3")  # replaced, but still there
            assert old.ready
            stop = True
            await asyncio.gather(*clients)
            assert min(seen[str(version)] for version in range(1, repository_versions)) > 10
            end = time.monotonic() + 10
            with pytest.raises(UnknownModelError):
                while time.monotonic() < end:
                    served.get("small", "3")
                    await asyncio.sleep(0.02)
            assert not old.pids

    before, repository.LINGER_SECONDS = repository.LINGER_SECONDS, 0.3
    try:
        asyncio.run(run())
    finally:
        repository.LINGER_SECONDS = before


def test_a_broken_version_is_refused_and_the_old_one_serves_on(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_model(folder / "9")
    other = write_model(tmp_path / "other", name="other")

    async def run() -> None:
        async with models(folder, other) as served:
            assert not any(done.changed for done in await served.reload())
            old = served.get("small")
            write_model(folder / "10", broken=True)
            (done,) = await served.reload("small")
            assert (done.version, done.changed) == ("9", False) and "is broken" in str(done.error)
            assert [done.error for done in await served.reload(again=False)] == [None, None]  # tried, told, unchanged
            assert (await served.reload("small"))[0].error is not None
            (folder / "10" / "manifest.json").write_text("{}")
            (done,) = await served.reload("small", again=False)
            assert not done.changed and "is no mlpdeploy manifest" in str(done.error)
            assert served.get("small") is old and old.ready
            x = rows(2)
            np.testing.assert_array_equal((await old.infer({"x": x}))["y"], answers(x)["y"])
            write_model(other, name="other", scale=5.0)  # replaced in place, as an export with --force does
            (done,) = await served.reload("other")
            assert (done.version, done.changed, done.error) == ("1", True, None)
            np.testing.assert_array_equal((await served.get("other").infer({"x": x}))["y"], answers(x, 5.0)["y"])
            with pytest.raises(UnknownModelError):
                await served.reload("nothing")

    asyncio.run(run())


_SERVER = """
import asyncio, functools, sys
sys.path.insert(0, sys.argv[1])
from served import HANG, bad_row, workers
from mlpdeploy.serving.model import ServedModel
from mlpdeploy.serving.options import ServeOptions
from mlpdeploy.serving.repository import ModelRepository

async def run():
    start = functools.partial(ServedModel.start, workers=workers())
    async with ModelRepository([sys.argv[2]], ServeOptions(instances=2), start) as models:
        model = models.models()[0]
        asyncio.ensure_future(model.infer({"x": bad_row(HANG)}))
        await asyncio.sleep(0.1)
        print(*model.pids, flush=True)
        await asyncio.sleep(60)

asyncio.run(run())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_workers_end_when_the_server_is_killed_and_leave_no_memory_behind(tmp_path: Path) -> None:
    shared = set(os.listdir("/dev/shm"))
    tests = Path(__file__).parent.parent
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(tests), str(write_model(tmp_path / "small"))],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    pids = list(map(int, server.stdout.readline().split()))
    assert len(pids) == 2
    server.send_signal(signal.SIGKILL)
    server.wait()
    server.stdout.close()
    end = time.monotonic() + 5
    while any(map(alive, pids)):
        assert time.monotonic() < end, "a worker outlived the server"
        time.sleep(0.02)
    assert set(os.listdir("/dev/shm")) <= shared


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody waits for is dead too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_leave_the_terminals_signals_to_the_server(tmp_path: Path) -> None:
    async def run() -> None:
        async with models(write_model(tmp_path / "small")) as served:
            model = served.get("small")
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(model.pids[0], number)
            x = rows(2)
            np.testing.assert_array_equal((await model.infer({"x": x}))["y"], answers(x)["y"])
            assert model.stats.restarts == 0

    asyncio.run(run())


def test_nothing_stays_open(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "small")

    async def run() -> None:
        async with models(folder, instances=2) as served:
            model = served.get("small")
            for _ in range(3):
                os.kill(model.pids[0], signal.SIGKILL)
                await model.infer({"x": rows(30)})

    asyncio.run(run())
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(run())
    assert len(os.listdir("/proc/self/fd")) == before
