"""The Session protocol, the same tests for every backend."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_asmlp

import mlpdeploy
from mlpdeploy.env import installed_version
from mlpdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import TensorSpec, read_manifest
from mlpdeploy.runtime.backends import BACKENDS, GPU_BACKENDS
from mlpdeploy.runtime.feeds import check_feeds
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import ASYNC_RUNS, Session, stream_runs

CPU_BACKENDS = [name for name in BACKENDS if name not in GPU_BACKENDS]

TOLERANCE = 1e-5


@pytest.fixture(params=CPU_BACKENDS)
def session(request: pytest.FixtureRequest, exported_for_all: Path) -> Iterator[Session]:
    if installed_version(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    with load(exported_for_all, request.param, "cpu", max_batch=4) as opened:
        yield opened


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of feature maps with open sizes; do not change it."""
    path = tmp_path_factory.mktemp("maps") / "out"
    export_model(tiny_asmlp(features=True), path, image_size="dynamic", target=("cpu", "openvino"), verify=False)
    return path


def wait_until(condition: Callable[[], Any]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 3, 32, 32)).astype(np.float32)


def reference(array: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return tiny_asmlp().double()(torch.from_numpy(array).double()).numpy()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 11])
def test_any_batch_equals_the_reference(session: Session, rows: int) -> None:
    logits = session.run({"input": images(rows)})["logits"]
    assert (logits.shape, logits.dtype) == ((rows, 7), np.float32)
    np.testing.assert_allclose(logits, reference(images(rows)), atol=TOLERANCE)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_streams_give_the_bits_of_one_image_alone(exported: Path, threads: int) -> None:
    """Row i of any batch, on any number of threads, is computed like row i alone."""
    with load(exported, threads=1) as one:
        alone = np.concatenate([one.run({"input": images(13)[row : row + 1]})["logits"] for row in range(13)])
    with load(exported, threads=threads) as session:
        for rows in (1, 2, 3, 5, 6, 8, 10, 13):
            into = np.empty((rows, 7), np.float32)
            np.testing.assert_array_equal(session.run({"input": images(13)[:rows]})["logits"], alone[:rows])
            session.run({"input": images(13)[:rows]}, {"logits": into})
            np.testing.assert_array_equal(into, alone[:rows])


@pytest.mark.parametrize("threads", [2, 3, 4, 16])
@pytest.mark.parametrize("share", [1, 2, 3, 5, 8])
def test_streams_have_equal_shares_and_end_together(threads: int, share: int) -> None:
    runs = stream_runs(threads * share, threads)
    assert runs[0][0] == 0 and runs[-1][1] == threads * share
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(runs))
    work = [0] * threads
    sizes = [stop - start for start, stop in runs]
    for size in sizes:  # each run goes to whoever is free first
        work[work.index(min(work))] += size
    assert work == [share] * threads
    assert max(sizes) == min(2, share) and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_results_go_to_given_arrays(session: Session, rows: int) -> None:
    into = np.full((rows, 7), np.nan, np.float32)
    result = session.run({"input": images(rows)}, {"logits": into})
    assert result["logits"] is into
    np.testing.assert_allclose(into, reference(images(rows)), atol=TOLERANCE)


@pytest.mark.parametrize("share", [False, True])
def test_threads_stop_looking_for_work_where_the_processors_are_shared(exported: Path, share: bool) -> None:
    with load(exported, "onnxruntime", "cpu", share_processors=share) as session:
        options = session._session.get_session_options()  # type: ignore[attr-defined]
        entry = "session.force_spinning_stop"
        assert (share and options.get_session_config_entry(entry)) == ("1" if share else False)


@pytest.mark.parametrize("how", ["replaced", "removed", "written"])
def test_a_session_keeps_the_model_that_it_has_read(exported: Path, tmp_path: Path, how: str) -> None:
    """Its streams are loaded when the first batch comes, which may be after a redeployment."""
    place = tmp_path / "model"
    shutil.copytree(exported, place)
    with load(exported, "onnxruntime", threads=2) as other:
        feeds = other.random_feeds(5)
        wanted = other.run(feeds)["logits"]
    with load(place, "onnxruntime", threads=2) as session:
        first = session.run({"input": feeds["input"][:1]})["logits"]
        if how == "replaced":
            export_model(tiny_asmlp(embed_dim=24), place, force=True, verify=False)
        elif how == "removed":
            shutil.rmtree(place)
        else:
            time.sleep(0.01)
            (place / session.file).write_bytes(b"")
        with pytest.warns(UserWarning, match="model was replaced since it was loaded"):
            assert np.array_equal(session.run(feeds)["logits"], wanted)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is said once
            assert np.array_equal(session.run(feeds)["logits"], wanted)
        assert np.array_equal(first, wanted[:1])


def test_a_session_finds_its_file_from_another_folder(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported.parent)
    with load(exported.name, "onnxruntime", threads=2) as session, warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.chdir(tmp_path)
        session.run(session.random_feeds(4))


def test_onnxruntime_reports_nothing_to_anybody(exported: Path, tmp_path: Path) -> None:
    code = "import mlpdeploy, sys; s = mlpdeploy.load(sys.argv[1], 'onnxruntime'); s.run(s.random_feeds(1))"
    environment = {
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MLPDEPLOY_CACHE": str(tmp_path / "c"),
    }
    subprocess.run([sys.executable, "-c", code, str(exported)], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []


def test_a_torch_tensor_goes_in_without_numpy(session: Session) -> None:
    array = images(2)
    np.testing.assert_array_equal(
        session.run({"input": torch.from_numpy(array)})["logits"], session.run({"input": array})["logits"]
    )


def test_strided_input(session: Session) -> None:
    nhwc = np.ascontiguousarray(images(2).transpose(0, 2, 3, 1))
    result = session.run({"input": nhwc.transpose(0, 3, 1, 2)})["logits"]
    np.testing.assert_allclose(result, reference(images(2)), atol=TOLERANCE)


def test_an_array_that_cannot_be_written_is_read_without_a_warning(session: Session) -> None:
    array = images(2)
    array.flags.writeable = False
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = session.run({"input": array})["logits"]
    finally:
        torch.set_warn_always(always)
    np.testing.assert_allclose(result, reference(images(2)), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({}, "input 'input' is missing"),
        ({"inputs": images(1)}, "unknown input 'inputs'; did you mean input"),
        ({"input": images(1).astype(np.float64)}, "convert it: x.astype"),
        ({"input": images(1)[0]}, "add the batch axis"),
        ({"input": images(1)[:, :, :31]}, "input 'input' is float32"),
        ({"input": images(1)[:0]}, "axis 0"),
        ({"input": [[1.0]]}, "is a list"),
        (images(1), "inputs are a ndarray; wanted a dict: {'input': array}"),
    ],
)
def test_wrong_inputs_say_what_came_and_what_was_wanted(session: Session, feeds: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        session.run(feeds)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 7), np.float64),
        np.zeros((3, 7), np.float32),
        np.zeros((7, 2), np.float32).T,
        torch.zeros(2, 7),
        [[0.0] * 7] * 2,
    ],
)
def test_wrong_output_arrays(session: Session, array: Any) -> None:
    with pytest.raises(UsageError, match="output array 'logits'"):
        session.run({"input": images(2)}, {"logits": array})


def test_an_output_array_of_the_right_shape_is_told_what_is_wrong(session: Session) -> None:
    with pytest.raises(UsageError, match=r"is float32 \(2, 7\), and read-only or not contiguous"):
        session.run({"input": images(2)}, {"logits": np.zeros((7, 2), np.float32).T})


def test_an_output_array_that_cannot_be_written_is_refused(session: Session) -> None:
    into = np.zeros((2, 7), np.float32)
    into.flags.writeable = False
    with pytest.raises(UsageError, match="wanted a writable, contiguous float32"):
        session.run({"input": images(2)}, {"logits": into})
    assert not into.any()


def test_inputs_with_different_numbers_of_rows_are_refused() -> None:
    specs = tuple(TensorSpec(name, ("batch", 2), "float32", "NC") for name in "ab")
    feeds = {name: np.zeros((rows, 2), np.float32) for name, rows in (("a", 3), ("b", 2))}
    with pytest.raises(UsageError, match=r"input 'b'.*wanted 3 on axis 0, as another input has"):
        check_feeds(specs, feeds)


def test_a_closed_session_refuses(exported_for_all: Path) -> None:
    for backend in filter(installed_version, CPU_BACKENDS):
        with load(exported_for_all, backend, "cpu") as opened:
            opened.warmup()
        opened.close()
        with pytest.raises(UsageError, match="closed"):
            opened.run({"input": images(1)})


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_open_sizes_of_output_arrays_are_compared(maps: Path, backend: str) -> None:
    """OpenVINO would fill an array of another size from its beginning."""
    if installed_version(backend) is None:
        pytest.skip(f"{backend} is not installed")
    with load(maps, backend, "cpu") as session:
        wanted = session.run({"input": images(2)})
        for shape in ((2, 21, 8, 9), (2, 21, 16, 4), (2, 21, 16, 16), (2, 21, 1, 1)):
            outputs = {"stage0": np.zeros(shape, np.float32), "stage1": np.zeros((2, 42, 4, 4), np.float32)}
            with pytest.raises(UsageError, match=r"wanted a writable, contiguous float32 \(2, 21, 8, 8\)"):
                session.run({"input": images(2)}, outputs)
        outputs = {name: np.zeros_like(array) for name, array in wanted.items()}
        session.run({"input": images(2)}, outputs)
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, wanted[name])


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


def test_closing_frees_the_backends_memory_once(session: Session, freed: list[str]) -> None:
    session.run({"input": images(1)})
    assert not freed
    session.close()
    session.close()
    assert len(freed) == 1


def test_a_run_that_is_refused_does_not_keep_the_memory(session: Session, freed: list[str]) -> None:
    with pytest.raises(UsageError, match="is missing"):
        session.run_async({}).result(60)
    session.close()
    assert len(freed) == 1


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


def test_only_so_many_asynchronous_runs_compute_at_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = hold_runs(session, monkeypatch)
    futures = [session.run_async({"input": images(1)}) for _ in range(ASYNC_RUNS + 3)]
    wait_until(lambda: len(begun) >= ASYNC_RUNS)
    time.sleep(0.1)
    assert len(begun) == ASYNC_RUNS
    go.set()
    assert [future.result(60)["logits"].shape for future in futures] == [(1, 7)] * len(futures)


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


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_a_fixed_batch_takes_any_number_of_rows(tmp_path: Path, rows: int) -> None:
    export_model(tiny_asmlp(), tmp_path / "out", batch=3, verify=False)
    with load(tmp_path / "out") as session:
        assert session.max_batch == 3
        into = np.empty((rows, 7), np.float32)
        for result in (session.run({"input": images(rows)}), session.run({"input": images(rows)}, {"logits": into})):
            np.testing.assert_allclose(result["logits"], reference(images(rows)), atol=TOLERANCE)


@pytest.mark.parametrize("max_batch", [2, 8])
def test_a_fixed_batch_stays_whatever_max_batch_is(tmp_path: Path, max_batch: int) -> None:
    export_model(tiny_asmlp(), tmp_path / "out", batch=3, verify=False)
    with load(tmp_path / "out", max_batch=max_batch) as session:
        assert session.max_batch == 3
        np.testing.assert_allclose(session.run({"input": images(7)})["logits"], reference(images(7)), atol=TOLERANCE)


@pytest.mark.parametrize("threads", [1, 3])
def test_onnxruntime_computes_with_as_many_threads_as_it_is_told(exported: Path, threads: int) -> None:
    with load(exported, "onnxruntime", "cpu", threads=threads) as session:
        session.run({"input": images(4)})
        assert session._session.get_session_options().intra_op_num_threads == threads  # type: ignore[attr-defined]
        if threads > 1:
            streams = session._streams.session  # type: ignore[attr-defined]
            assert streams.get_session_options().intra_op_num_threads == 1


def test_dynamic_sizes_take_multiples_only(tmp_path: Path) -> None:
    export_model(tiny_asmlp(features=True), tmp_path / "out", image_size="dynamic", verify=False)
    with load(tmp_path / "out", max_batch=2) as session:
        maps = session.run({"input": np.zeros((3, 3, 16, 40), np.float32)})
        assert [m.shape for m in maps.values()] == [(3, 21, 4, 10), (3, 42, 2, 5)]
        with pytest.raises(UsageError, match="axis 3 must be a multiple of 8"):
            session.run({"input": np.zeros((1, 3, 16, 41), np.float32)})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"backend": "onnxruntme"}, "did you mean onnxruntime"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"threads": 0}, "threads is 0"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"role": "tensorrt"}, "no model for 'tensorrt'"),
    ],
)
def test_impossible_options(exported: Path, options: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        load(exported, **options)


def test_cuda_without_a_gpu_says_what_to_type(exported: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for backend in CPU_BACKENDS:
        with pytest.raises(UsageError, match=r"(?i)cuda"):
            load(exported, backend, "cuda")


def test_a_missing_package_names_the_extra(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(MissingDependencyError, match=r"pip install 'mlpdeploy\[cpu\]'"):
        load(exported)


def test_a_foreign_onnx_file_under_the_right_checksum(artifact: Path) -> None:
    """Somebody replaced the model and wrote a matching manifest: the loader still says so in one sentence."""
    import dataclasses

    from mlpdeploy.artifact import write_manifest
    from mlpdeploy.manifest import file_entry

    manifest = read_manifest(artifact)
    (artifact / "model.cpu.onnx").write_bytes(b"not a model at all")
    entry = file_entry(artifact / "model.cpu.onnx", "cpu", "conv")
    write_manifest(artifact, dataclasses.replace(manifest, files={**manifest.files, "model.cpu.onnx": entry}))
    with pytest.raises(ArtifactError, match="cannot load"):
        mlpdeploy.load(artifact)


def test_the_public_api() -> None:
    for name in mlpdeploy.__all__:
        assert getattr(mlpdeploy, name) is not None
    with pytest.raises(AttributeError):
        _ = mlpdeploy.nothing
