"""What stands on the TensorRT backend: verify, auto, bench, predict, inspect, doctor; all on the simulated GPU."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fakes.machine import Machine

from mlpdeploy.bench.run import bench_artifact
from mlpdeploy.cli import main
from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.inspection import inspect_artifact
from mlpdeploy.manifest import read_manifest
from mlpdeploy.runtime import auto, gpu, tensorrt_api
from mlpdeploy.runtime.gpu import Gpu
from mlpdeploy.runtime.loading import load
from mlpdeploy.verify.verify import verify_artifact

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shared(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("built") / "tiny"
        return Machine(patch).built(exported, place, BuildOptions(batches=((1, 2, 4),)))


@pytest.fixture
def built(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared, tmp_path / "tiny"))


def test_verify_compares_the_engine(machine: Machine, built: Path) -> None:
    before = read_manifest(built)
    report = verify_artifact(built, backend="tensorrt")
    assert report.passed and report.worst() < 1e-4
    ((name, file),) = report.files.items()
    assert name.startswith("engines/") and file["backend"] == "tensorrt"
    names = [check["check"] for check in file["checks"]]
    assert names[0] == "names, axes, dtypes and shapes" and any("batch 8" in name for name in names)
    assert read_manifest(built) == before  # an engine belongs to a machine, the manifest does not


def test_verify_sees_an_engine_that_computes_something_else(machine: Machine, built: Path, monkeypatch: Any) -> None:
    kind = machine.module._inner["ICudaEngine"]
    run = kind._run
    monkeypatch.setattr(kind, "_run", lambda self, feeds: {name: a * 1.01 for name, a in run(self, feeds).items()})
    report = verify_artifact(built, backend="tensorrt")
    assert not report.passed and "is not equal to PyTorch: values" in report.failure()


def test_auto_takes_an_engine_that_fits(machine: Machine, built: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLPDEPLOY_CACHE", str(tmp_path / "cache"))
    asked: list[list[str]] = []

    def measure(directory: object, manifest: object, options: object, backends: list[str]) -> dict[str, Any]:
        asked.append(backends)
        return {name: {"1": 1.0 if name == "tensorrt" else 9.0} for name in backends}

    monkeypatch.setattr(auto, "_measure", measure)
    with load(built, "auto") as session:
        assert session.backend == "tensorrt"
    with load(built, "auto", "cpu") as session:
        assert session.backend == "onnxruntime"
    with load(built, "auto", threads=1) as session:
        assert session.backend == "onnxruntime"
    machine.use_gpu(Gpu("NVIDIA T4", "7.5", "580.65.06", "13.0"))
    with load(built, "auto") as session:
        assert session.backend == "onnxruntime"
    assert asked == [["onnxruntime", "tensorrt"]]


def test_auto_measures_it(machine: Machine, built: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLPDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(auto, "SECONDS", 0.05)
    with load(built, "auto") as session:
        assert session.backend in ("onnxruntime", "tensorrt")
    (kept,) = (tmp_path / "cache" / "backends").iterdir()
    assert '"gpu": "NVIDIA L4"' in kept.read_text()


def test_bench(machine: Machine, built: Path) -> None:
    report = bench_artifact(
        built, batches=(1, 2), backend="tensorrt", peers=("onnxruntime",), memory=False, seconds=0.05
    )
    assert report.artifact["file"].startswith("engines/")
    assert [result.status for result in report.results] == ["measured"] * 4
    assert [(result.name, result.gpu_ms is not None) for result in report.at_batch(2)] == [
        ("mlpdeploy", True),
        ("onnxruntime", False),
    ]


def test_the_commands(machine: Machine, built: Path, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    pictures = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    for words in (
        ["predict", str(built), *pictures, "--backend", "tensorrt"],
        ["verify", str(built), "--backend", "tensorrt"],
        ["inspect", str(built)],
    ):
        done = CliRunner().invoke(main, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert "tensorrt 11.4.0.106 for NVIDIA L4; fp32, shift as conv" in done.output
    assert inspect_artifact(built)["engines"][0]["fingerprint"]["gpu"] == "NVIDIA L4"


def test_doctor_tells_of_the_driver(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlpdeploy import doctor

    found = doctor._driver()
    assert found.detail.startswith("NVIDIA L4, compute capability 8.9, driver 580.65.06, CUDA 13.0")
    monkeypatch.setattr(tensorrt_api, "cuda_major", lambda target: 13)
    monkeypatch.setattr(gpu, "visible_gpu", lambda index=0: Gpu("NVIDIA L4", "8.9", "550.54", "12.4"))
    assert (doctor._driver().status, doctor._driver().fix) == ("warning", "update the driver")
    monkeypatch.setattr(doctor, "installed_version", lambda package: None)
    assert doctor._cuda().fix == "pip install 'mlpdeploy[cuda]'"


def test_the_script_for_a_real_gpu_runs_on_a_simulated_one(machine: Machine, built: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("gpu_runtime", ROOT / "benchmarks" / "gpu" / "runtime.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.RUNS = 3
    found = script.examine(built, ("1:2:4",), runs=3)
    assert found["failed"] == [] and found["parity"]["passed"]
    assert set(found["times"]) == {"1", "4", "5", "8"} and found["times"]["8"]["gpu_ms"] is None
    assert set(found["graphs"].values()) == {"CUDA graph"}
    machine.device.can_capture = False
    assert script.main([str(built), "--profile", "1:2:4", "-o", str(tmp_path / "out.json")]) == 1
    assert '"failed": [\n  "graphs"\n ]' in (tmp_path / "out.json").read_text()
