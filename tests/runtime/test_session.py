"""The Session protocol, the same tests for every backend."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_asmlp

import mlpdeploy
from mlpdeploy.env import installed_version
from mlpdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import read_manifest
from mlpdeploy.runtime.session import BACKENDS, GPU_BACKENDS, Session, load

CPU_BACKENDS = [name for name in BACKENDS if name not in GPU_BACKENDS]

TOLERANCE = 1e-5


@pytest.fixture(params=CPU_BACKENDS)
def session(request: pytest.FixtureRequest, exported_for_all: Path) -> Iterator[Session]:
    if installed_version(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    with load(exported_for_all, request.param, "cpu", max_batch=4) as opened:
        yield opened


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
        for rows in (1, 2, 3, 5, 8, 13):
            into = np.empty((rows, 7), np.float32)
            np.testing.assert_array_equal(session.run({"input": images(13)[:rows]})["logits"], alone[:rows])
            session.run({"input": images(13)[:rows]}, {"logits": into})
            np.testing.assert_array_equal(into, alone[:rows])


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


def test_a_torch_tensor_goes_in_without_numpy(session: Session) -> None:
    array = images(2)
    np.testing.assert_array_equal(
        session.run({"input": torch.from_numpy(array)})["logits"], session.run({"input": array})["logits"]
    )


def test_strided_input(session: Session) -> None:
    nhwc = np.ascontiguousarray(images(2).transpose(0, 2, 3, 1))
    result = session.run({"input": nhwc.transpose(0, 3, 1, 2)})["logits"]
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
    ],
)
def test_wrong_inputs_say_what_came_and_what_was_wanted(session: Session, feeds: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        session.run(feeds)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 7), np.float64), np.zeros((3, 7), np.float32), np.zeros((7, 2), np.float32).T]
)
def test_wrong_output_arrays(session: Session, array: np.ndarray) -> None:
    with pytest.raises(UsageError, match="output array 'logits'"):
        session.run({"input": images(2)}, {"logits": array})


def test_a_closed_session_refuses(exported_for_all: Path) -> None:
    for backend in filter(installed_version, CPU_BACKENDS):
        with load(exported_for_all, backend, "cpu") as opened:
            opened.warmup()
        opened.close()
        with pytest.raises(UsageError, match="closed"):
            opened.run({"input": images(1)})


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
            os._exit(0 if "after the fork" in str(error) else 1)
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
