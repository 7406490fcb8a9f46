"""ONNX Runtime's CUDA and TensorRT providers: what they are asked, what they are given, and when they do not start.

Never on a GPU: onnxruntime-gpu is a stand-in on the simulated GPU, and its names are compared with the real package.
"""

from __future__ import annotations

import _ctypes
import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fakes import fake_onnxruntime_gpu
from fakes.fake_cuda import DeviceTensor, DlpackTensor
from fakes.fake_onnxruntime_gpu import CUDA, TENSORRT, FakeOnnxRuntime
from fakes.machine import Machine
from tiny import tiny_asmlp

from mlpdeploy.errors import MissingDependencyError, UsageError
from mlpdeploy.export.add import lower_artifact
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import TensorSpec, read_manifest
from mlpdeploy.quant.quantize import quantize_artifact
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.runtime import onnxruntime_gpu, onnxruntime_tensorrt
from mlpdeploy.runtime.loading import load
from mlpdeploy.verify.verify import verify_artifact

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def ort(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeOnnxRuntime:
    fake = FakeOnnxRuntime(machine.device, tmp_path)
    real = onnxruntime_gpu.require
    monkeypatch.setattr(onnxruntime_gpu, "require", lambda name: fake.module if name == "onnxruntime" else real(name))
    return fake


@pytest.fixture(scope="module")
def half(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("half") / "tiny"
    quantize_artifact(exported, place, Recipe("fp16"), targets=("cpu", "tensorrt"), verify=False)
    return place


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 3, 32, 32), np.float32)


def plain(artifact: Path, batch: np.ndarray) -> np.ndarray:
    with load(artifact, device="cpu", role="canonical") as session:
        return session.run({"input": batch})["logits"]


def same(got: Any, wanted: np.ndarray) -> None:
    """Equal but for the order of summation, which the number of rows and threads decides."""
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_the_names_are_those_of_the_real_package(ort: FakeOnnxRuntime) -> None:
    assert {name for name in vars(ort.module) if not name.startswith("_")} <= set(dir(onnxruntime))
    for mine, real in (
        (fake_onnxruntime_gpu._Binding, onnxruntime.IOBinding),
        (fake_onnxruntime_gpu._Session, onnxruntime.InferenceSession),
    ):
        for name in (name for name in vars(mine) if not name.startswith("_")):
            code, wanted = getattr(mine, name).__code__, getattr(real, name).__code__
            assert code.co_varnames[: code.co_argcount] == wanted.co_varnames[: code.co_argcount], name


def test_cuda(ort: FakeOnnxRuntime, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = images(5)
    with load(artifact, device="cuda:1", max_batch=2) as session:
        assert (session.backend, session.device, session.file) == ("onnxruntime", "cuda:1", "model.onnx")
        same(session.run({"input": batch})["logits"], plain(artifact, batch))
        into = np.empty((5, 7), np.float32)
        session.run({"input": batch}, {"logits": into})
        same(into, plain(artifact, batch))
        assert session.native_interface()[0][0].name == "input"
    ((cuda, options), cpu) = ort.sessions[0]["providers"]
    assert (cuda, cpu) == (CUDA, "CPUExecutionProvider")
    assert options == {"device_id": "1", "use_tf32": "0"}
    assert capsys.readouterr().out == ""  # what preload_dlls prints is no data


@pytest.mark.parametrize("kind", ["interface", "dlpack"])
def test_arrays_on_the_gpu_are_bound_where_they_are(
    machine: Machine, ort: FakeOnnxRuntime, artifact: Path, kind: str
) -> None:
    batch = images(5)
    x, y = DeviceTensor(machine.device, batch), DeviceTensor(machine.device, np.zeros((5, 7), np.float32))
    with load(artifact, device="cuda", max_batch=2) as session:
        machine.device.log.clear()
        given: Any = x if kind == "interface" else DlpackTensor(x, machine.device)
        assert session.run({"input": given}, {"logits": y})["logits"] is y
        same(y.numpy(), plain(artifact, batch))
        same(session.run({"input": given})["logits"], plain(artifact, batch))
        assert not {"copy_in", "copy_out", "copy_within"} & set(machine.device.log)
    assert len(machine.device.streams) == 1  # those that waited are gone


def test_arrays_of_another_context(machine: Machine, ort: FakeOnnxRuntime, artifact: Path) -> None:
    own = DeviceTensor(machine.device, images(2), context="autoinit")
    into = DeviceTensor(machine.device, np.zeros((2, 7), np.float32), context="autoinit")
    with load(artifact, device="cuda") as session:
        with pytest.raises(UsageError, match=r"^input 'input' lies in another CUDA context .*autoprimaryctx"):
            session.run({"input": own})
        with pytest.raises(UsageError, match=r"^output array 'logits' lies in another CUDA context "):
            session.run({"input": images(2)}, {"logits": into})
        pooled = DeviceTensor(machine.device, images(2), context="pool")
        same(session.run({"input": pooled})["logits"], plain(artifact, images(2)))


def test_arrays_on_the_gpu_and_a_fixed_batch(machine: Machine, ort: FakeOnnxRuntime, tmp_path: Path) -> None:
    export_model(tiny_asmlp(), tmp_path / "two", batch=2, verify=False)
    with load(tmp_path / "two", device="cuda") as session:
        assert session.fixed_batch == 2
        x = DeviceTensor(machine.device, images(4))
        same(session.run({"input": x})["logits"], plain(tmp_path / "two", images(4)))
        with pytest.raises(UsageError, match="3 rows on the GPU for a model with a fixed batch of 2"):
            session.run({"input": DeviceTensor(machine.device, images(3))})
        assert len(session.run({"input": images(3)})["logits"]) == 3


def test_a_provider_that_does_not_start(
    ort: FakeOnnxRuntime, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime itself would compute on the CPU, and say so in its log only."""
    ort.broken = {CUDA}
    (tmp_path / "capi").mkdir()
    with pytest.raises(MissingDependencyError, match=r"does not start its CUDA.*libonnxruntime_providers_cuda\.so"):
        load(artifact, device="cuda")
    # A library of which this machine has everything.
    shutil.copy(_ctypes.__file__, tmp_path / "capi" / "libonnxruntime_providers_cuda.so")
    with pytest.raises(MissingDependencyError, match=r"though its libraries are there; wanted a GPU and a driver"):
        load(artifact, device="cuda")
    with load(artifact) as session:  # nobody insists
        assert session.device == "cpu"
        assert len(session.run({"input": images(1)})["logits"]) == 1
    assert "mlpdeploy: computes on the CPU: ONNX Runtime" in capsys.readouterr().err


def test_nodes_that_are_left_to_the_cpu_are_told(
    ort: FakeOnnxRuntime, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ort.on_cpu = 3
    load(artifact, device="cuda").close()
    assert "3 of 12 nodes run on the CPU, not on CUDAExecutionProvider" in capsys.readouterr().err


def test_the_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needed = ("libc.so.6", "libnvinfer.so.10", "libcudnn.so.9")
    monkeypatch.setattr("mlpdeploy.plugins.elf.needed_libraries", lambda path: needed)
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so").touch()
    fake = FakeOnnxRuntime(None, tmp_path)  # type: ignore[arg-type]
    error = onnxruntime_gpu._did_not_start(fake.module, TENSORRT)
    assert "does not start its TensorrtExecutionProvider: libnvinfer.so.10, libcudnn.so.9 cannot be loaded" in str(
        error
    )
    assert error.fix == (
        "run: pip install 'onnxruntime-gpu[cuda,cudnn]', "
        "pip install 'tensorrt==10.*' and put its folder on LD_LIBRARY_PATH"
    )
    needed = ("libcuda.so.1", "libc.so.6")
    if not Path("/proc/driver/nvidia").exists():
        assert onnxruntime_gpu._did_not_start(fake.module, TENSORRT).fix == "install the NVIDIA driver"


def test_a_runtime_without_the_provider(artifact: Path) -> None:
    with pytest.raises(UsageError, match=r"has no CUDA provider.*pip uninstall onnxruntime"):
        load(artifact, device="cuda")
    with pytest.raises(UsageError, match="has no TensorRT provider"):
        load(artifact, "onnxruntime-tensorrt")


def test_an_fp16_artifact_on_cuda(ort: FakeOnnxRuntime, half: Path) -> None:
    with load(half, device="cuda") as session:
        assert session.file == "model.cpu.onnx" and session.precision == "fp16"
        assert len(session.run({"input": images(2)})["logits"]) == 2
    with load(half) as session:  # by itself an fp16 artifact stays where it was verified
        assert session.device == "cpu"
    with pytest.raises(UsageError, match="the file for tensorrt on cuda; wanted float32, or fp16 with"):
        load(half, device="cuda", role="tensorrt")


def options_of(ort: FakeOnnxRuntime) -> dict[str, str]:
    (name, options), (second, _), last = ort.sessions[-1]["providers"]
    assert (name, second, last) == (TENSORRT, CUDA, "CPUExecutionProvider")
    return dict(options)


def test_the_tensorrt_provider(ort: FakeOnnxRuntime, artifact: Path) -> None:
    batch = images(5)
    with load(artifact, "onnxruntime-tensorrt", max_batch=4) as session:
        assert (session.backend, session.device) == ("onnxruntime-tensorrt", "cuda:0")
        same(session.run({"input": batch})["logits"], plain(artifact, batch))
    options, cache = options_of(ort), artifact / "engines" / "onnxruntime"
    sha256 = read_manifest(artifact).files["model.onnx"].sha256
    assert options == {
        "device_id": "0",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(cache),
        "trt_engine_cache_prefix": f"mlpdeploy-ieee-{sha256[:16]}",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(cache),
        "trt_profile_min_shapes": "input:1x3x32x32",
        "trt_profile_opt_shapes": "input:4x3x32x32",
        "trt_profile_max_shapes": "input:4x3x32x32",
    }
    assert cache.is_dir()


@pytest.mark.parametrize("there", [True, False])
def test_tensorrt_is_loaded_before_the_provider_asks_for_its_libraries(
    ort: FakeOnnxRuntime, artifact: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """The provider names libnvinfer alone, which pip installs where the system's loader does not look."""
    sessions: list[int] = []

    def load_tensorrt(target: str) -> Any:
        sessions.append(len(ort.sessions))
        if not there:
            raise MissingDependencyError("the package tensorrt is not installed")
        return SimpleNamespace(load_plugins=lambda library: None)

    monkeypatch.setattr("mlpdeploy.runtime.onnxruntime_tensorrt.load_tensorrt", load_tensorrt)
    load(artifact, "onnxruntime-tensorrt", max_batch=4).close()
    assert sessions == [0] and len(ort.sessions) == 1


def test_the_tensorrt_provider_with_our_plugin(
    ort: FakeOnnxRuntime, machine: Machine, artifact: Path, tmp_path: Path
) -> None:
    lower_artifact(artifact, "tensorrt", verify=False)
    assert read_manifest(artifact).files["model.tensorrt.onnx"].shift == "plugin"
    machine.library = tmp_path / "libmlpdeploy_plugins.so"
    batch = images(3)
    with load(artifact, "onnxruntime-tensorrt") as session:
        assert session.file == "model.tensorrt.onnx"
        np.testing.assert_allclose(session.run({"input": batch})["logits"], plain(artifact, batch), atol=1e-4)
    # By TensorRT's own loader: ONNX Runtime would only open it, and the library registers nothing by itself.
    assert machine.module.get_plugin_registry()._loaded == [str(machine.library)]
    assert "trt_extra_plugin_lib_paths" not in options_of(ort)


@pytest.mark.parametrize("with_plugin", [False, True])
def test_the_plugin_is_there_before_the_first_session_of_any_file(
    ort: FakeOnnxRuntime, machine: Machine, artifact: Path, tmp_path: Path, with_plugin: bool
) -> None:
    """ONNX Runtime lists TensorRT's plugins once in a process."""
    if with_plugin:
        machine.library = tmp_path / "libmlpdeploy_plugins.so"
    load(artifact, "onnxruntime-tensorrt").close()
    loaded = machine.module.get_plugin_registry()._loaded
    assert loaded == ([str(machine.library)] if with_plugin else [])


def test_an_onnxruntime_that_lists_no_newer_plugins(
    ort: FakeOnnxRuntime, machine: Machine, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower_artifact(artifact, "tensorrt", verify=False)
    machine.library = tmp_path / "libmlpdeploy_plugins.so"
    monkeypatch.setattr(onnxruntime_tensorrt, "installed_version", lambda name: "1.21.1")
    with pytest.raises(MissingDependencyError, match=r"1\.21\.1 does not know .*; wanted 1\.22 or newer"):
        load(artifact, "onnxruntime-tensorrt")
    monkeypatch.setattr(onnxruntime_tensorrt, "installed_version", lambda name: "1.22.0")
    load(artifact, "onnxruntime-tensorrt").close()


@pytest.mark.parametrize(("before", "after", "name"), [(None, "0", "ieee"), ("0", "0", "ieee"), ("1", "1", "tf32")])
def test_float32_is_not_rounded_to_ten_bits_unless_the_user_says_so(
    ort: FakeOnnxRuntime, artifact: Path, monkeypatch: pytest.MonkeyPatch, before: str | None, after: str, name: str
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", before or "")
    if before is None:
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    load(artifact, "onnxruntime-tensorrt").close()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == after
    assert options_of(ort)["trt_engine_cache_prefix"].startswith(f"mlpdeploy-{name}-")


def test_the_tensorrt_provider_in_fp16(ort: FakeOnnxRuntime, half: Path, machine: Machine, tmp_path: Path) -> None:
    machine.library = tmp_path / "libmlpdeploy_plugins.so"
    load(half, "onnxruntime-tensorrt").close()
    enabled = [name for name in options_of(ort) if name.endswith("_enable")]
    assert enabled == ["trt_engine_cache_enable", "trt_timing_cache_enable", "trt_fp16_enable"]


def test_verify_on_cuda(ort: FakeOnnxRuntime, artifact: Path) -> None:
    report = verify_artifact(artifact, device="cuda", record=False)
    assert report.passed and {session["providers"][0][0] for session in ort.sessions} == {CUDA}


def test_what_cannot_be(ort: FakeOnnxRuntime, artifact: Path) -> None:
    for arguments, text in (
        ({"device": "cpu"}, "device cpu on the backend onnxruntime-tensorrt; wanted cuda"),
        ({"threads": 2}, "threads on the backend onnxruntime-tensorrt"),
    ):
        with pytest.raises(UsageError, match=text):
            load(artifact, "onnxruntime-tensorrt", **arguments)  # type: ignore[arg-type]
    ort.broken = {TENSORRT}
    with pytest.raises(MissingDependencyError, match="does not start its TensorrtExecutionProvider"):
        load(artifact, "onnxruntime-tensorrt")
    with pytest.raises(UsageError, match="the open image size of 'input' on the backend onnxruntime-tensorrt"):
        onnxruntime_tensorrt._profile((TensorSpec("input", ("N", 3, "32*h", 32), "float32", "NCHW"),), 8)
    assert onnxruntime_tensorrt._profile((TensorSpec("input", (4, 3, 32, 32), "float32", "NCHW"),), 8) == {}


def test_the_script_for_a_real_gpu_runs_on_a_simulated_one(
    ort: FakeOnnxRuntime, artifact: Path, tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_file_location("gpu_onnxruntime", SCRIPTS / "onnxruntime_gpu.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.BATCHES, script.RUNS = (1, 2), 2
    result = tmp_path / "result.json"
    assert script.main([str(artifact), "--backend", "onnxruntime-tensorrt", "-o", str(result)]) == 0
    body = json.loads(result.read_text())
    assert body["parity"]["passed"] and body["failed"] == [] and set(body["milliseconds"]) == {"1", "2"}
