"""The OpenVINO backend: equal to PyTorch, float32 unless asked otherwise, clear about what it cannot do."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_asmlp, tiny_vip

from mlpdeploy.artifact import write_manifest
from mlpdeploy.env import cpu_count, installed_version
from mlpdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import file_entry, read_manifest
from mlpdeploy.ops.axial_shift import ShiftSpec
from mlpdeploy.runtime import openvino as backend
from mlpdeploy.runtime.loading import load

# Not `importorskip`: importing openvino as it is starts its telemetry.
if installed_version("openvino") is None:
    pytest.skip("openvino is not installed: pip install 'mlpdeploy[openvino]'", allow_module_level=True)
TOLERANCE = 1e-5
MODELS = {"asmlp": tiny_asmlp, "vip": tiny_vip}
needs_bf16 = pytest.mark.skipif("bf16" not in backend.native_precisions(), reason="no bfloat16 in this processor")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small artifacts with a file for OpenVINO, by name; do not change them."""
    folder = tmp_path_factory.mktemp("openvino")
    for name, model in MODELS.items():
        export_model(model(), folder / name, target=("cpu", "openvino"), verify=False)
    export_model(tiny_asmlp(features=True), folder / "maps", image_size="dynamic", target="openvino", verify=False)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("shift", ["conv", "slice"])
@pytest.mark.parametrize("image_size", [None, "dynamic"])
def test_circular_padding(tmp_path: Path, shift: Any, image_size: Any) -> None:
    """OpenVINO knows no Pad that wraps."""
    for spec in (ShiftSpec(5, 1, "circular"), ShiftSpec(3, 2, "circular"), ShiftSpec(1, 1, "circular")):
        manifest = export_model(
            tiny_asmlp(shift=spec, depths=(1,)),
            tmp_path / f"{spec.shift_size}",
            target="openvino",
            shift=shift,
            image_size=image_size,
        )
        assert manifest.verification["files"]["model.openvino.onnx"]["checks"]


def images(rows: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 3, height, width)).astype(np.float32)


def reference(name: str, array: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return MODELS[name]().double()(torch.from_numpy(array).double()).numpy()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_any_batch_equals_pytorch_and_its_rows_alone(artifacts: dict[str, Path], name: str, threads: int) -> None:
    with load(artifacts[name], "openvino", threads=threads) as session:
        wanted = reference(name, images(33))
        alone = np.concatenate([session.run({"input": images(33)[row : row + 1]})["logits"] for row in range(33)])
        for rows in (1, 2, 3, 8, 33):
            into = np.full((rows, 7), np.nan, np.float32)
            logits = session.run({"input": images(33)[:rows]})["logits"]
            assert session.run({"input": images(33)[:rows]}, {"logits": into})["logits"] is into
            np.testing.assert_array_equal(logits, into)
            np.testing.assert_allclose(logits, wanted[:rows], atol=TOLERANCE)
            # Exactly the row alone where a row has one thread either way.
            np.testing.assert_allclose(logits, alone[:rows], rtol=0, atol=0 if threads == 1 else TOLERANCE)


@pytest.mark.parametrize("size", [(16, 40), (32, 32)])
@pytest.mark.parametrize("rows", [1, 5])
def test_feature_maps_of_any_size(artifacts: dict[str, Path], size: tuple[int, int], rows: int) -> None:
    array = images(rows, *size)
    with torch.inference_mode():
        wanted = tiny_asmlp(features=True).double()(torch.from_numpy(array).double())
    with load(artifacts["maps"], "openvino", threads=2) as session:
        maps = session.run({"input": array})
        into = {name: np.full(value.shape, np.nan, np.float32) for name, value in maps.items()}
        session.run({"input": array}, into)
    for name, exact in zip(maps, wanted, strict=True):
        np.testing.assert_allclose(maps[name], exact.numpy(), atol=5 * TOLERANCE)
        np.testing.assert_array_equal(into[name], maps[name])


class Watched:
    """An infer request that writes down when it starts, on what shape, and when it is waited for."""

    def __init__(self, request: Any, events: list[tuple[str, Watched, tuple[int, ...]]]) -> None:
        self.request, self.events, self.shape = request, events, ()

    def set_tensor(self, name: str, tensor: Any) -> None:
        if name == "input":
            self.shape = tuple(tensor.shape)
        self.request.set_tensor(name, tensor)

    def start_async(self) -> None:
        self.events.append(("start", self, self.shape))
        self.request.start_async()

    def wait(self) -> None:
        self.request.wait()
        self.events.append(("wait", self, self.shape))


def test_the_first_rows_of_a_shape_run_alone(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two streams meet a shape at once, OpenVINO's kernels for it may be wrong for good."""
    events: list[tuple[str, Watched, tuple[int, ...]]] = []
    take = backend._Requests._one

    def watched(requests: Any) -> Watched:
        request = take(requests)
        return request if isinstance(request, Watched) else Watched(request, events)

    monkeypatch.setattr(backend._Requests, "_one", watched)
    with load(artifacts["vip"], "openvino", threads=2) as session:
        for rows in (8, 3, 8):
            session.run({"input": images(rows)})
    starts = [shape for what, _, shape in events if what == "start"]
    assert starts.count((2, 3, 32, 32)) == 4 + 4  # nothing is computed twice
    for shape in set(starts):
        first = events.index(next(event for event in events if event[0] == "start" and event[2] == shape))
        assert events[first + 1] == ("wait", *events[first][1:])


@pytest.mark.parametrize("wrong", [1, 3])
def test_streams_that_compute_something_else_are_not_used(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    compiled: list[Any] = []
    compile_model, run = backend.BackendSession._compile, backend.BackendSession._run

    def recorded(session: Any, streams: int) -> Any:
        model = compile_model(session, streams)
        if streams == 2:
            compiled.append(model)
        return model

    def spoilt(session: Any, requests: Any, parts: Any, into: Any) -> Any:
        results = run(session, requests, parts, into)
        if any(requests.compiled is model for model in compiled[:wrong]):
            results["logits"][-1] *= 300
        return results

    monkeypatch.setattr(backend.BackendSession, "_compile", recorded)
    monkeypatch.setattr(backend.BackendSession, "_run", spoilt)
    with warnings.catch_warnings(record=True) as caught, load(artifacts["vip"], "openvino", threads=2) as session:
        warnings.simplefilter("always")
        logits = session.run({"input": images(6)})["logits"]
        used, together = session._streams, session._together  # type: ignore[attr-defined]
    np.testing.assert_allclose(logits, reference("vip", images(6)), atol=TOLERANCE)
    told = [str(warning.message) for warning in caught if "in several streams" in str(warning.message)]
    assert (len(compiled), len(told)) == ((2, 0) if wrong == 1 else (3, 1))
    assert used.compiled is compiled[-1] if wrong == 1 else used is together


def test_streams_are_compared_where_values_are_not_numbers_too(artifacts: dict[str, Path]) -> None:
    array = images(4)
    array[1] = np.nan
    with warnings.catch_warnings(), load(artifacts["vip"], "openvino", threads=2) as session:
        warnings.simplefilter("error")
        logits = session.run({"input": array})["logits"]
    assert np.isnan(logits[1]).all() and np.isfinite(np.delete(logits, 1, 0)).all()


def test_sessions_do_not_meet_their_first_shapes_at_once(artifacts: dict[str, Path]) -> None:
    with load(artifacts["vip"], "openvino", threads=1) as session:
        with backend._MEETING:
            waiting = session.run_async({"input": images(1)})
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
        assert waiting.result(timeout=60)["logits"].shape == (1, 7)
        with backend._MEETING:
            session.run_async({"input": images(1)}).result(timeout=60)


def test_results_are_not_overwritten_by_later_runs(artifacts: dict[str, Path]) -> None:
    with load(artifacts["asmlp"], "openvino", threads=1) as session:
        into = np.empty((2, 7), np.float32)
        session.run({"input": images(2)}, {"logits": into})
        first = session.run({"input": images(3)})["logits"]
        kept, bound = first.copy(), into.copy()
        session.run({"input": images(3) + 1})
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(into, bound)


def test_read_only_images(artifacts: dict[str, Path]) -> None:
    array = images(4)
    with load(artifacts["asmlp"], "openvino", threads=2) as session:
        wanted = session.run({"input": array})["logits"]
        array.flags.writeable = False
        np.testing.assert_array_equal(session.run({"input": array})["logits"], wanted)


def test_infer_requests_are_used_again(artifacts: dict[str, Path]) -> None:
    with load(artifacts["asmlp"], "openvino", threads=2) as session:
        for _ in range(3):  # four rows in streams, and one more
            session.run({"input": images(5)})
            together, streams = session._together, session._streams  # type: ignore[attr-defined]
            assert [len(requests._free) for requests in (together, streams)] == [1, streams.streams]


def test_a_fixed_batch_takes_any_number_of_rows(tmp_path: Path) -> None:
    export_model(tiny_asmlp(), tmp_path / "out", batch=3, target="openvino", verify=False)
    with load(tmp_path / "out", "openvino", threads=2) as session:
        assert session.max_batch == 3
        for rows in (1, 3, 4):
            logits = session.run({"input": images(rows)})["logits"]
            np.testing.assert_allclose(logits, reference("asmlp", images(rows)), atol=TOLERANCE)


def test_threads_share_a_session(artifacts: dict[str, Path]) -> None:
    wanted = {rows: reference("asmlp", images(rows)) for rows in range(1, 7)}
    wrong = []
    with load(artifacts["asmlp"], "openvino", threads=2) as session:

        def work(rows: int) -> None:
            for _ in range(10):
                if not np.allclose(session.run({"input": images(rows)})["logits"], wanted[rows], atol=TOLERANCE):
                    wrong.append(rows)

        workers = [threading.Thread(target=work, args=(rows,)) for rows in wanted]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not wrong


def test_the_interface_is_the_files_own(artifacts: dict[str, Path]) -> None:
    with load(artifacts["maps"], "openvino") as session:
        inputs, outputs = session.native_interface()
    assert [(spec.name, spec.shape, spec.dtype) for spec in inputs] == [("input", ("?", 3, "?", "?"), "float32")]
    assert [(spec.name, spec.shape[1]) for spec in outputs] == [("stage0", 21), ("stage1", 42)]


def compiled_of(session: object) -> list[object]:
    return [session._together.compiled, session._streams.compiled]


def test_float32_stays_float32(artifacts: dict[str, Path]) -> None:
    """OpenVINO's own default is bfloat16 where the processor has it."""
    with load(artifacts["asmlp"], "openvino", threads=2) as session:
        session.run({"input": images(4)})
        assert session.precision == "fp32"
        for compiled in compiled_of(session):
            assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
            assert "ACCURACY" in str(compiled.get_property("EXECUTION_MODE_HINT"))
            assert compiled.get_property("INFERENCE_NUM_THREADS") == min(2, cpu_count())


@needs_bf16
def test_bfloat16_where_it_is_asked_for(artifacts: dict[str, Path], artifact_in_bf16: Path) -> None:
    exact = reference("asmlp", images(4))
    for directory, precision in ((artifacts["asmlp"], "bf16"), (artifact_in_bf16, None)):
        with load(directory, "openvino", threads=2, precision=precision) as session:
            error = np.abs(session.run({"input": images(4)})["logits"] - exact).max() / exact.std()
            assert session.precision == "bf16"
            for compiled in compiled_of(session):
                assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "bf16"
        assert 1e-4 < error < 0.1  # rounded, and still the model
    with load(artifact_in_bf16, "openvino", precision="fp32") as session:
        assert session.precision == "fp32"


@pytest.fixture
def artifact_in_bf16(artifacts: dict[str, Path], tmp_path: Path) -> Path:
    """A float32 file whose manifest asks for bfloat16."""
    import shutil

    directory = Path(shutil.copytree(artifacts["asmlp"], tmp_path / "bf16"))
    write_manifest(directory, dataclasses.replace(read_manifest(directory), precision="bf16"))
    return directory


def test_a_processor_without_bfloat16_refuses(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "native_precisions", lambda: ["fp32", "int8"])
    with pytest.raises(UsageError, match="no bfloat16 arithmetic; wanted one of: fp32, int8; use --precision fp32"):
        load(artifacts["asmlp"], "openvino", precision="bf16")
    with pytest.warns(UserWarning, match="no float16 arithmetic: OpenVINO computes in float32"):
        assert backend.resolve_precision("fp16", None) == "fp32"
    assert backend.resolve_precision("int8", None) == "fp32"


@pytest.mark.parametrize("refused", [{}, {"the recipe keeps it": ["head/Gemm"]}])
def test_what_fp16_keeps_in_float32_stays_there(
    artifact_in_bf16: Path, monkeypatch: pytest.MonkeyPatch, refused: dict
) -> None:
    """The hint fp16 is for every node, whatever its type in the file."""
    wanted = "fp32" if refused else "fp16"
    done = {"targets": {"openvino": {"refused": refused}}}
    manifest = dataclasses.replace(read_manifest(artifact_in_bf16), precision="fp16", quantization=done)
    write_manifest(artifact_in_bf16, manifest)
    monkeypatch.setattr(backend, "native_precisions", lambda: ["fp32", "fp16"])
    # The file itself is in float32, which any processor computes.
    monkeypatch.setitem(backend.HINTS, "fp16", "f32")
    monkeypatch.setattr(backend, "precision_of", lambda compiled: wanted)
    with load(artifact_in_bf16, "openvino") as session:
        assert session.precision == wanted


def test_an_int8_session_says_so_though_its_floats_are_float32(
    artifact_in_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "sums_of_int8_saturate", lambda: False)
    write_manifest(artifact_in_bf16, dataclasses.replace(read_manifest(artifact_in_bf16), precision="int8"))
    with load(artifact_in_bf16, "openvino") as session:
        assert session.precision == "int8"
        assert backend.precision_of(session._together.compiled) == "fp32"  # type: ignore[attr-defined]


def test_what_is_compiled_is_read_back(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """If OpenVINO takes another arithmetic than it was told, the session says so instead of computing."""
    monkeypatch.setattr(backend, "precision_of", lambda compiled: "bf16")
    with pytest.raises(UsageError, match="OpenVINO computes in bf16 here; wanted fp32"):
        load(artifacts["asmlp"], "openvino")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": "cuda"}, "device cuda with backend openvino"),
        ({"role": "canonical"}, "the file for canonical on openvino; wanted onnxruntime or torch"),
        ({"role": "cpu"}, "the file for cpu on openvino"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "precision bf16 on onnxruntime"),
        ({"backend": "torch", "precision": "bf16"}, "precision bf16 on torch"),
    ],
)
def test_impossible_options(artifacts: dict[str, Path], options: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        load(artifacts["asmlp"], **{"backend": "openvino", **options})


def test_an_artifact_without_a_file_for_it_says_what_to_type(exported: Path) -> None:
    with pytest.raises(UsageError, match=f"run: mlpdeploy lower {exported} --target openvino"):
        load(exported, "openvino")


def test_a_missing_package_names_the_extra(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.delitem(sys.modules, "openvino")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    backend._core.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"pip install 'mlpdeploy\[openvino\]'"):
        load(artifacts["asmlp"], "openvino")


def test_a_foreign_file_under_the_right_checksum(artifact_in_bf16: Path) -> None:
    manifest = read_manifest(artifact_in_bf16)
    (artifact_in_bf16 / "model.openvino.onnx").write_bytes(b"not a model at all")
    entry = file_entry(artifact_in_bf16 / "model.openvino.onnx", "openvino", "conv")
    files = {**manifest.files, "model.openvino.onnx": entry}
    write_manifest(artifact_in_bf16, dataclasses.replace(manifest, files=files))
    with pytest.raises(ArtifactError, match=r"OpenVINO .* cannot load .*model\.openvino\.onnx"):
        load(artifact_in_bf16, "openvino", precision="fp32")


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """Importing openvino as it is starts its telemetry; importing it through `require` does not."""
    code = (
        "import sys\nfrom mlpdeploy.env import require\n"
        "require('openvino').Core()\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"HOME": str(tmp_path), "PYTHONPATH": sys.path[-1]})
    assert list(tmp_path.iterdir()) == []
