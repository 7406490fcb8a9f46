"""Models on Ray Serve: the answers are right, whoever gives them, also while replicas are killed and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from running import binary_request, running
from served import DIE, HANG, RAISE, answers, bad_row, rows, workers, write_model

from mlpdeploy import load
from mlpdeploy.cli import main
from mlpdeploy.distributed import cluster, replica
from mlpdeploy.distributed.cluster import default_threads
from mlpdeploy.distributed.replica import error_in, error_of, told
from mlpdeploy.distributed.serving import RayModel, RayModels, RayServeOptions, _replica_options, _resources
from mlpdeploy.errors import ArtifactError, InternalError, UsageError
from mlpdeploy.manifest import read_manifest
from mlpdeploy.serving import repository
from mlpdeploy.serving.failures import DeadlineError, QueueFullError, UnavailableError
from mlpdeploy.serving.options import ServeOptions
from mlpdeploy.serving.protocol.messages import SERVICE, message_classes
from mlpdeploy.serving.repository import ModelRepository

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # pydantic's, about Ray Serve's own code

# Without Ray.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "rya"], "did you mean ray"),
        (["--replicas", "2"], "--replicas without --engine ray"),
        (["--ray-address", "auto", "--max-replicas", "2"], "--max-replicas and --ray-address without --engine ray"),
        (["--engine", "ray", "--instances", "2"], "--instances with --engine ray; wanted --replicas"),
        (["--engine", "ray", "--replicas", "2", "--max-replicas", "3"], "a number, or its limits"),
        (["--engine", "ray", "--min-replicas", "2"], "only one of"),
        (["--engine", "ray", "--min-replicas", "3", "--max-replicas", "2"], "3 to 2 replicas"),
        (["--engine", "ray", "--replicas", "0"], "0 to 0 replicas"),
        (["--engine", "ray", "--gpus-per-replica", "1"], "add --device cuda"),
        (["--engine", "ray", "--device", "cuda", "--gpus-per-replica", "0"], "gpus is 0"),
        (["--engine", "ray", "--ray-address", "ray://head:10001"], "host:port or auto"),
    ],
)
def test_options_that_make_no_sense_end_at_once(exported: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["serve", str(exported), *arguments])
    assert (result.exit_code, words in result.output, "Traceback" in result.output) == (2, True, False), result.output


@pytest.mark.parametrize(
    ("options", "threads", "resources"),
    [
        ({}, default_threads(), {"num_cpus": default_threads()}),
        ({"threads": 2}, 2, {"num_cpus": 2}),
        ({"device": "cuda"}, None, {"num_cpus": 1, "num_gpus": 0.5}),
        ({"backend": "tensorrt"}, None, {"num_cpus": 1, "num_gpus": 0.5}),
        ({"backend": "onnxruntime-tensorrt", "device": "cuda"}, None, {"num_cpus": 1, "num_gpus": 0.5}),
        ({"device": "cuda", "threads": 3}, 3, {"num_cpus": 3, "num_gpus": 0.5}),
    ],
)
def test_replicas_on_a_gpu_get_no_number_of_threads(
    options: dict[str, Any], threads: int | None, resources: dict[str, float]
) -> None:
    """`load` refuses one for TensorRT."""
    told = _replica_options(ServeOptions(**options))
    assert told.workers_for(None) == (1, threads)
    assert _resources(told, RayServeOptions(gpus=0.5)) == resources


def test_serving_here_needs_no_ray() -> None:
    code = (
        "import sys, mlpdeploy.commands.serve, mlpdeploy.serving.server; print({'ray', 'fastapi'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "error", [UsageError("got", "wanted", "fix"), QueueFullError("full"), ArtifactError("bad"), InternalError("ours")]
)
def test_errors_come_back_as_they_were(error: Any) -> None:
    back = error_of(told(error))
    assert (type(back), str(back)) == (type(error), str(error))
    assert error_in("no error of ours") is error_in("mlpdeploy-error:[") is None


def test_a_replica_is_unwell_only_when_no_worker_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    one: Any = object.__new__(replica.Replica)
    one._model, one._ready_at = SimpleNamespace(ready=True, name="small"), 0.0
    asyncio.run(one.check_health())
    one._model.ready = False
    asyncio.run(one.check_health())  # the model starts another one by itself
    monkeypatch.setattr(replica, "UNWELL_SECONDS", -1.0)
    with pytest.raises(RuntimeError, match="no warm worker"):
        asyncio.run(one.check_health())


# On a local Ray cluster, with the small model of tests/served.py in each replica.

# Between two requests of a client: without it the clients take the processor that a replica needs to start.
PAUSE_SECONDS = 0.05


@pytest.fixture(scope="module")
def spread() -> Iterator[Callable[..., RayModels]]:
    """Return RayModels of options, on one cluster for the whole module."""
    pytest.importorskip("fastapi", reason="ray[serve] is not installed")
    os.environ["RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
    # The suite's processes are pinned to a processor each, and two replicas want two.
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(cluster, "cpu_count", lambda: 2)
        connected = stack.enter_context(RayModels(RayServeOptions()))

        def models(least: int = 1, most: int | None = None, **options: Any) -> RayModels:
            made = RayModels(RayServeOptions(None, least, most or least, **options), workers())
            made._ray = connected._ray
            return made

        yield models


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 240))


async def started(models: RayModels, folder: Path, **options: Any) -> RayModel:
    return await models(
        "small", "1", folder, read_manifest(folder), ServeOptions(threads=1, timeout_ms=60_000, **options)
    )


def replicas(model: Any) -> list[int]:
    """Return the processes of a model's replicas."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_text().startswith(f"ray::ServeReplica:{model.application}:"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


async def until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.05)


@pytest.mark.slow
def test_answers_and_failures(spread: Callable[..., RayModels], tmp_path: Path) -> None:
    async def check() -> None:
        folder = write_model(tmp_path / "small", sleep_s=0.02)
        model = await started(spread(), folder, max_batch=4, queue_limit=12)
        assert model.ready
        x = rows(30)
        np.testing.assert_array_equal((await model.infer({"x": x}))["y"], answers(x)["y"])
        with pytest.raises(UsageError, match="float32"):
            await model.infer({"x": x.astype(np.float64)})
        with pytest.raises(InternalError, match="a bad row"):
            await model.infer({"x": bad_row(RAISE, 3)})
        with pytest.raises(UnavailableError, match="ended 2 times"):
            await model.infer({"x": bad_row(DIE)})
        with pytest.raises(DeadlineError):
            await model.infer({"x": x}, 0.0)
        begin = time.monotonic()
        with pytest.raises(DeadlineError):
            await model.infer({"x": bad_row(HANG)}, 0.5)
        assert time.monotonic() - begin < 5
        await model.infer({"x": x})  # the worker that hung was killed
        # Many at once are batched, and those that are too many are refused at once.
        found = await asyncio.gather(*(model.infer({"x": x[i : i + 1]}) for i in range(30)), return_exceptions=True)
        refused = [error for error in found if isinstance(error, QueueFullError)]
        assert 0 < len(refused) < 30
        for index, result in enumerate(found):
            if isinstance(result, dict):
                np.testing.assert_array_equal(result["y"], answers(x[index : index + 1])["y"])
            else:
                assert isinstance(result, QueueFullError)
        ((_, before),) = model._replicas.values()
        task = asyncio.ensure_future(model.infer({"x": x}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await model.infer({"x": x})
        ((_, after),) = model._replicas.values()
        assert after.failures["cancelled"] == before.failures["cancelled"] + 1  # the replica stopped too
        stats = model.stats
        assert stats.rows == 90 + 30 - len(refused) and stats.requests == 33 - len(refused)
        assert stats.failures["QueueFullError"] == len(refused) and stats.failures["cancelled"] == 1
        assert stats.batches[4] >= 14 and stats.restarts >= 2 and stats.compute_seconds > 0
        assert stats.rows_in_flight == stats.queued_rows == 0
        await model.close()
        with pytest.raises(UnavailableError, match="closed"):
            await model.infer({"x": x})

    run(check())


@pytest.mark.slow
def test_killed_replicas_lose_no_request(spread: Callable[..., RayModels], tmp_path: Path) -> None:
    """One of two is killed under load: its requests go to the other. Then both are: requests wait for the next."""

    async def check() -> None:
        model = await started(spread(2), write_model(tmp_path / "small", sleep_s=0.005))
        stop, right = asyncio.Event(), 0

        async def client(seed: int) -> None:
            nonlocal right
            while not stop.is_set():
                x = rows(3, seed)
                np.testing.assert_array_equal((await model.infer({"x": x}))["y"], answers(x)["y"])
                right, seed = right + 1, seed + 1
                await asyncio.sleep(PAUSE_SECONDS)

        clients = [asyncio.ensure_future(client(1000 * index)) for index in range(8)]
        first = replicas(model)
        assert len(first) == 2
        for victims in (first[:1], None):
            before = right
            await until(lambda before=before: right > before + 50)
            for pid in victims or replicas(model):
                os.kill(pid, signal.SIGKILL)
            await until(lambda: len(replicas(model)) == 2 and not set(replicas(model)) & set(first[:1]))
        before = right
        await until(lambda: right > before + 50)
        stop.set()
        await asyncio.gather(*clients)
        assert not model.stats.failures
        await model.close()
        assert not replicas(model)

    run(check())


@pytest.mark.slow
def test_new_versions(spread: Callable[..., RayModels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "LINGER_SECONDS", 0.2)

    async def check() -> None:
        folder, x = tmp_path / "model", rows(2)
        write_model(folder / "1", scale=1.0)
        async with ModelRepository([f"m={folder}"], ServeOptions(threads=1, timeout_ms=60_000), spread()) as served:
            old, stop, scales = served.get("m"), asyncio.Event(), set()

            async def client() -> None:
                while not stop.is_set():
                    scales.add(float((await served.get("m").infer({"x": x}))["y"][0, 0] / x[0, 0]))
                    await asyncio.sleep(PAUSE_SECONDS)

            clients = [asyncio.ensure_future(client()) for _ in range(4)]
            write_model(folder / "2", broken=True)
            (done,) = await served.reload()
            assert not done.changed and "is broken" in str(done.error) and served.get("m") is old
            write_model(folder / "3", scale=3.0)
            (done,) = await served.reload()
            assert (done.version, done.changed) == ("3", True)
            await until(lambda: 3.0 in {round(scale, 3) for scale in scales})
            stop.set()
            await asyncio.gather(*clients)
            assert {round(scale, 3) for scale in scales} == {1.0, 3.0}
            await until(lambda: not replicas(old))
            # More than the cluster has is refused by name, and what serves goes on.
            with pytest.raises(UsageError, match=r"replicas of small on \d+ CPU, of which .* free"):
                await started(spread(1000), folder / "1")
            assert (await served.get("m").infer({"x": x}))["y"].shape == (2, 3)

    run(check())


@pytest.mark.slow
def test_open_requests_make_replicas(spread: Callable[..., RayModels], tmp_path: Path) -> None:
    async def check() -> None:
        models = spread(1, 2, upscale_delay_s=0.5, downscale_delay_s=1.0)
        model = await started(models, write_model(tmp_path / "small", sleep_s=0.05), max_batch=2)
        assert len(replicas(model)) == 1
        stop = asyncio.Event()

        async def client() -> None:
            while not stop.is_set():
                await model.infer({"x": rows(1)})

        clients = [asyncio.ensure_future(client()) for _ in range(12)]
        await until(lambda: len(model.stats.batches) > 0 and len(model._replicas) == 2)
        stop.set()
        await asyncio.gather(*clients)
        assert reports()
        await model.close()
        assert not reports()

    run(check())


def reports() -> list[Any]:
    """Return the tasks in this process in which Ray's handles report open requests to its controller."""
    # `type`, because some objects warn where they are asked for their class.
    tasks = (task for task in gc.get_objects() if issubclass(type(task), asyncio.Task) and not task.done())
    return [task for task in tasks if task.get_coro().__qualname__ == "MetricsPusher.metrics_task"]


@pytest.mark.slow
def test_the_command(exported: Path, tmp_path: Path) -> None:
    """The same addresses as on one machine: REST, gRPC, pictures, keys; SIGTERM ends the cluster too."""
    pytest.importorskip("fastapi", reason="ray[serve] is not installed")
    x = np.random.default_rng(3).standard_normal((3, 3, 32, 32)).astype(np.float32)
    with load(exported, threads=1) as session:
        expected = session.run({"input": x})["logits"]
    keys = tmp_path / "keys"
    keys.write_text("0123456789\n")
    with running(tmp_path, f"tiny={exported}", "--engine", "ray", "--api-key-file", keys) as server:
        assert server.ask("GET", "/v2/health/ready")[0] == 200
        body, length = binary_request(x)
        sent = {"Inference_Header_Content_Length": length}
        assert server.ask("POST", "/v2/models/tiny/infer", body, **sent)[0] == 401
        status, _, answer = server.ask("POST", "/v2/models/tiny/infer", body, **sent, X_API_Key="0123456789")
        assert status == 200
        np.testing.assert_allclose(np.frombuffer(answer[-84:], "<f4").reshape(3, 7), expected, rtol=1e-4, atol=1e-5)
        messages = message_classes()
        request = messages["ModelInferRequest"](model_name="tiny", raw_input_contents=[x.tobytes()])
        request.inputs.add(name="input", datatype="FP32", shape=x.shape)
        with grpc.insecure_channel(server.grpc) as channel:
            ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            reply = ask(request.SerializeToString(), metadata=[("x-api-key", "0123456789")])
        got = np.frombuffer(messages["ModelInferResponse"].FromString(reply).raw_output_contents[0], "<f4")
        np.testing.assert_allclose(got.reshape(3, 7), expected, rtol=1e-4, atol=1e-5)
        metrics = server.ask("GET", "/metrics", X_API_Key="0123456789")[2].decode()
        assert 'mlpdeploy_model_rows_total{model="tiny",version="1"} 6.0' in metrics
    assert "Traceback" not in server.stderr.read_text()
