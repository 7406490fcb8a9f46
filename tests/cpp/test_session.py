"""The C++ session against Python's on the same backend: the same bits, and the same refusals."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from native import NativeError, NativeSession, edit, library
from tiny import tiny_asmlp

from mlpdeploy.errors import MlpDeployError, UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import file_entry
from mlpdeploy.ops.axial_shift import ShiftSpec
from mlpdeploy.runtime.loading import load

BATCHES = (1, 2, 3, 8, 33)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["asmlp", "vip", "cyclemlp", "fixed"])
def test_the_bits_are_those_of_python(build: Path, artifacts: dict[str, Path], name: str, threads: int) -> None:
    native = NativeSession(build, artifacts[name], threads=threads, max_batch=8)
    with load(artifacts[name], threads=threads, max_batch=8) as session:
        for batch in BATCHES:
            feeds = session.random_feeds(batch, seed=batch)
            wanted, got = session.run(feeds), native.run_like(feeds, session.outputs)
            for output, array in wanted.items():
                assert array.tobytes() == got[output].tobytes(), (batch, output)
    native.close()


def test_feature_maps_of_open_size(build: Path, artifacts: dict[str, Path]) -> None:
    native = NativeSession(build, artifacts["features"], threads=2, max_batch=4)
    with load(artifacts["features"], threads=2, max_batch=4) as session:
        for height_width in ((32, 32), (64, 40)):
            feeds = session.random_feeds(5, height_width=height_width)
            wanted = session.run(feeds)
            got = native.run(feeds, {name: np.empty_like(array) for name, array in wanted.items()})
            assert all(wanted[name].tobytes() == got[name].tobytes() for name in wanted)
    native.close()


def test_a_session_keeps_the_model_that_it_has_read(build: Path, artifacts: dict[str, Path], tmp_path: Path) -> None:
    """Its streams are loaded when the first batch comes, which may be after a redeployment."""
    place = tmp_path / "model"
    shutil.copytree(artifacts["asmlp"], place)
    native = NativeSession(build, place, threads=2)
    with load(artifacts["asmlp"], threads=2) as session:
        feeds = session.random_feeds(5)
        wanted = session.run(feeds)["logits"]
        native.run_like({"input": feeds["input"][:1]}, session.outputs)
        export_model(tiny_asmlp(embed_dim=24), place, force=True, verify=False)
        for _ in range(2):
            assert np.array_equal(native.run_like(feeds, session.outputs)["logits"], wanted)
    native.close()


def test_onnxruntime_reports_nothing_to_anybody(build: Path, artifacts: dict[str, Path], tmp_path: Path) -> None:
    command = [str(build / "mlpdeploy-infer"), "bench", str(artifacts["asmlp"]), "--seconds", "0.1"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": ""}
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_row_is_the_same_alone_and_in_company(build: Path, artifacts: dict[str, Path]) -> None:
    native = NativeSession(build, artifacts["fixed"])
    with load(artifacts["fixed"]) as session:
        feeds = session.random_feeds(7)
        together = native.run_like(feeds, session.outputs)["logits"]
        for row in range(7):
            alone = native.run_like({"input": feeds["input"][row : row + 1]}, session.outputs)["logits"]
            assert alone.tobytes() == together[row : row + 1].tobytes()
    native.close()


def test_many_threads_share_one_session(build: Path, artifacts: dict[str, Path]) -> None:
    native = NativeSession(build, artifacts["asmlp"], threads=2)
    with load(artifacts["asmlp"], threads=2) as session:
        feeds = [session.random_feeds(1 + seed % 5, seed) for seed in range(40)]
        wanted = [session.run(feed)["logits"].tobytes() for feed in feeds]
        with ThreadPoolExecutor(8) as pool:
            got = pool.map(lambda feed: native.run_like(feed, session.outputs)["logits"].tobytes(), feeds)
            assert list(got) == wanted
    native.close()


def test_a_program_whose_numbers_have_a_comma(build: Path, artifacts: dict[str, Path], tmp_path: Path) -> None:
    name = "de_DE.UTF-8"
    localedef = shutil.which("localedef")
    command = [localedef or "", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / name)]
    if localedef is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no locale can be made here")
    script = (
        "import locale, sys, pathlib; locale.setlocale(locale.LC_ALL, sys.argv[1]); sys.path.append(sys.argv[2])\n"
        "import native; native.NativeSession(*map(pathlib.Path, sys.argv[3:])).close()\n"
        "sys.exit(locale.localeconv()['decimal_point'] != ',')"
    )
    words = [sys.executable, "-c", script, name, str(Path(__file__).parent), str(build), str(artifacts["asmlp"])]
    done = subprocess.run(words, env={**os.environ, "LOCPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shape", [(1, 21, 9, 8), (1, 21, 8, 4), (2, 21, 8, 8), (1, 21, 8), (1, 20, 8, 8)])
def test_outputs_of_open_size_are_those_of_the_inputs(
    build: Path, artifacts: dict[str, Path], shape: tuple[int, ...]
) -> None:
    feeds = {"input": np.zeros((1, 3, 32, 32), np.float32)}
    outputs = {"stage0": np.empty(shape, np.float32), "stage1": np.empty((1, 42, 4, 4), np.float32)}
    with load(artifacts["features"], threads=1) as session, pytest.raises(UsageError) as python:
        session.run(feeds, outputs=outputs)
    native = NativeSession(build, artifacts["features"], threads=1)
    with pytest.raises(NativeError) as error:
        native.run(feeds, outputs)
    native.close()
    assert str(error.value) == str(python.value)
    assert "wanted a writable, contiguous float32 (1, 21, 8, 8)" in str(error.value)


def test_the_library_prints_nothing(build: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_asmlp(features=True, shift=ShiftSpec(padding="reflect"))
    export_model(model, tmp_path / "reflect", image_size="dynamic", verify=False)
    native = NativeSession(build, tmp_path / "reflect", threads=1)
    capfd.readouterr()
    outputs = {"stage0": np.empty((1, 21, 2, 2), np.float32), "stage1": np.empty((1, 42, 1, 1), np.float32)}
    with pytest.raises(NativeError, match="cannot compute this batch"):  # maps that cannot be reflected so far
        native.run({"input": np.zeros((1, 3, 8, 8), np.float32)}, outputs)
    native.close()
    assert capfd.readouterr() == ("", "")


def test_a_session_that_is_null_has_a_reason(build: Path, artifacts: dict[str, Path]) -> None:
    lib = library(build)
    for call in (lib.mlpdeploy_input, lib.mlpdeploy_output):
        with pytest.raises(NativeError):
            NativeSession(build, artifacts["asmlp"], role="another")  # the last error is this one's
        assert call(None, ctypes.c_size_t(0), None) == 2
        assert lib.mlpdeploy_last_error() == b"session is NULL; wanted a pointer"


def refusals(build: Path, folder: Path, **options: object) -> tuple[MlpDeployError, NativeError]:
    """Return what Python and C++ say when they load the folder, which both must refuse."""
    with pytest.raises(MlpDeployError) as python:
        load(folder, **options)  # type: ignore[arg-type]
    with pytest.raises(NativeError) as native:
        NativeSession(build, folder, **options)  # type: ignore[arg-type]
    return python.value, native.value


def without_reason(text: str) -> str:
    """Drop what a JSON parser says in brackets: each has its own words."""
    return re.sub(r" \(.*\)", "", text)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no folder": lambda folder: shutil.rmtree(folder),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
    "truncated model": lambda folder: shorten(folder / "model.cpu.onnx"),
    "longer model": lambda folder: (folder / "model.cpu.onnx").open("ab").write(b"x"),
    "truncated weights": lambda folder: shorten(folder / "model.cpu.weights"),
    "changed weights": lambda folder: flip(folder / "model.cpu.weights"),
    "changed model": lambda folder: flip(folder / "model.cpu.onnx"),
    "missing model": lambda folder: (folder / "model.cpu.onnx").unlink(),
    "missing weights": lambda folder: (folder / "model.cpu.weights").unlink(),
    "edited manifest": lambda folder: edit(folder, seal=False, precision="fp16"),
    "other version": lambda folder: edit(folder, version=2),
    "no version": lambda folder: edit(folder, version=None),
    "foreign": lambda folder: (folder / "manifest.json").write_text('{"format": "another"}'),
    "a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "no precision": lambda folder: edit(folder, drop=["precision"]),
    "no opset, no precision": lambda folder: edit(folder, drop=["precision", "opset", "model"]),
    "no inputs": lambda folder: edit(folder, drop=["inputs"]),
    "empty inputs": lambda folder: edit(folder, inputs=[]),
    "no file in its precision": lambda folder: edit(folder, precision="int8", drop_file="model.cpu.onnx"),
    "unknown field": lambda folder: edit(folder, colour="red"),
    "no canonical model": lambda folder: edit(folder, files={}),
    "weights not listed": lambda folder: edit(folder, drop_file="model.cpu.weights"),
}


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_artifacts_are_refused_with_pythons_words(build: Path, artifact: Path, damage: str) -> None:
    DAMAGES[damage](artifact)
    python, native = refusals(build, artifact)
    assert (str(native), native.code) == (str(python), python.exit_code)


@pytest.mark.parametrize("size", [0, 1, 100, 2000])
def test_a_truncated_manifest(build: Path, artifact: Path, size: int) -> None:
    path = artifact / "manifest.json"
    path.write_bytes(path.read_bytes()[:size])
    python, native = refusals(build, artifact)
    assert without_reason(str(native)) == without_reason(str(python))


@pytest.mark.parametrize(
    "options", [{"threads": -1}, {"max_batch": -2}, {"role": "tensorrt"}, {"role": "canonica"}, {"role": "it's"}]
)
def test_impossible_options(build: Path, artifact: Path, options: dict[str, object]) -> None:
    python, native = refusals(build, artifact, **options)
    assert (str(native), native.code) == (str(python), 2)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu"])
def test_devices_that_are_not_here(build: Path, artifact: Path, device: str) -> None:
    if "CUDAExecutionProvider" in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip("this ONNX Runtime has a CUDA provider")
    python, native = refusals(build, artifact, device=device)
    # What to install differs.
    assert str(native).partition("; ")[0] == str(python).partition("; ")[0]
    assert native.code == python.exit_code == 2


def test_the_canonical_model_of_an_artifact_with_other_inputs(build: Path, artifact: Path) -> None:
    body = json.loads((artifact / "manifest.json").read_text())
    edit(artifact, inputs=[{**body["inputs"][0], "dtype": "float16"}])
    python, native = refusals(build, artifact, role="canonical")
    assert (str(native), native.code) == (str(python), 2)


def test_a_model_that_the_runtime_refuses(build: Path, artifact: Path) -> None:
    (artifact / "model.cpu.onnx").write_bytes(b"no protobuf, but of the right sum")
    body = json.loads((artifact / "manifest.json").read_text())
    entry = file_entry(artifact / "model.cpu.onnx", "cpu", "conv", "model.cpu.weights")
    edit(artifact, files={**body["files"], "model.cpu.onnx": entry.__dict__})
    python, native = refusals(build, artifact)
    assert str(native) == str(python)


def test_misfitting_tensors_are_refused(build: Path, artifacts: dict[str, Path]) -> None:
    native = NativeSession(build, artifacts["asmlp"])
    with load(artifacts["asmlp"]) as session:
        good, out = session.random_feeds(2), {"logits": np.empty((2, 7), np.float32)}
        wrong = [
            {},
            {"inputs": good["input"]},
            {"input": good["input"].astype(np.float64)},
            {"input": good["input"][0]},
            {"input": good["input"][:, :2].copy()},
            {"input": np.empty((0, 3, 32, 32), np.float32)},
        ]
        for feeds in wrong:
            with pytest.raises(MlpDeployError) as python:
                session.run(feeds)
            with pytest.raises(NativeError) as refused:
                native.run(feeds, out)
            # Python's fixes are Python: x[None], x.astype(...).
            assert str(refused.value).partition("; ")[0] == str(python.value).partition("; ")[0]
            assert refused.value.code == 2
        for outputs in ({}, {"logits": np.empty((3, 7), np.float32)}, {"logits": np.empty((2, 8), np.float32)}):
            with pytest.raises(MlpDeployError) as python:
                session.run(good, outputs)
            with pytest.raises(NativeError) as refused:
                native.run(good, outputs)
            assert str(refused.value) == str(python.value)
    native.close()
