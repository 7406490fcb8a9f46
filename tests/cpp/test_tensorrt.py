"""The C++ library's backend tensorrt on a simulated GPU, with engines that Python describes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from native import ROOT, tensorrt_options

from mlpdeploy.engines.sidecar import FOLDER, Fingerprint, Sidecar
from mlpdeploy.images import sample_photographs
from mlpdeploy.manifest import CANONICAL, Manifest, read_manifest
from mlpdeploy.runtime.tensorrt_api import EngineError

GPU, CAPABILITY = "Test GPU", "8.9"  # of cpp/tests/fakes
PROFILES = ({"input": ((1, 3, 32, 32), (1, 3, 32, 32), (8, 3, 32, 32))},)
PLAN = b"fake-engine\ninput input -1 3 32 32\noutput logits -1 7\nprofile 1 1 8 0 0\n"

Infer = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def fakes(build: Path) -> Path:
    """The folder of the simulated GPU's libraries."""
    if "-DMLPDEPLOY_WITH_TENSORRT=ON" not in tensorrt_options():
        pytest.skip("no headers of TensorRT or CUDA: the C++ backend tensorrt is not tested")
    return build / "tests" / "fakes"


@pytest.fixture
def infer(build: Path, fakes: Path) -> Infer:
    """Run mlpdeploy-infer with the simulated GPU's libraries, or those of another folder."""

    def run(*words: object, libraries: Path = fakes, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), **variables}
        command = [build / "mlpdeploy-infer", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return run


@pytest.fixture
def folder(artifacts: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of an artifact to which engines may be added."""
    shutil.copytree(artifacts["asmlp"], tmp_path / "asmlp")
    return tmp_path / "asmlp"


@pytest.fixture
def version(folder: Path, infer: Infer) -> str:
    """The version that the simulated TensorRT says that it has."""
    add_engine(folder, "0.0.0")
    told = infer("classify", folder, sample_photographs()[0], "--backend", "tensorrt").stderr
    shutil.rmtree(folder / FOLDER)
    found = re.search(r"here is ([\d.]+\d)", told)
    assert found, told
    return found[1]


def add_engine(folder: Path, version: str, **changes: object) -> Path:
    """Write an engine for the simulated GPU and, as `mlpdeploy build` does, what it is."""
    manifest: Manifest = read_manifest(folder)
    mark = Fingerprint(
        target="tensorrt",
        version=version,
        gpu=GPU,
        compute_capabilities=(CAPABILITY,),
        precision=manifest.precision,
        shift="slice",
        profiles=PROFILES,
        flags={"tf32": False, "workspace_bytes": None, "hardware_compatible": False},
        plugin_sha256="",
        source_sha256=manifest.files[manifest.file_for(CANONICAL)].sha256,
        network_sha256="0" * 64,
    )
    mark = replace(mark, **changes)  # type: ignore[arg-type]
    path = folder / FOLDER / f"{mark.name()}.plan"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(PLAN)
    digest = hashlib.sha256(PLAN).hexdigest()
    sidecar = Sidecar(
        fingerprint=mark,
        file=path.name,
        sha256=digest,
        bytes=len(PLAN),
        driver="580.1",
        parse_seconds=0.1,
        build_seconds=12.5,
        network_layers={"Convolution": 3},
        network_types={"FLOAT": 7},
        warnings=("a warning – “quoted”",),  # noqa: RUF001 (not ASCII on purpose)
    )
    path.with_suffix(".json").write_text(sidecar.to_json(), encoding="utf-8")
    return path


def test_the_cpp_tests_of_tensorrt_pass(build: Path, fakes: Path, native_environment: dict[str, str]) -> None:
    program = build / "tests" / "mlpdeploy-tensorrt-tests"
    done = subprocess.run([program], env=native_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_an_engine_that_python_describes_is_run(folder: Path, infer: Infer, version: str) -> None:
    engine = add_engine(folder, version)
    photographs = sample_photographs()
    done = infer("classify", folder, *photographs, "--backend", "tensorrt", "--device", "cuda:0", "--json")
    assert done.returncode == 0, done.stderr
    assert [len(image["top"]) for image in json.loads(done.stdout)["images"]] == [5] * len(photographs)
    done = infer("bench", folder, "--backend", "tensorrt", "--batch", "8", "--seconds", "0", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["artifact"]["file"] == f"{FOLDER}/{engine.name}"
    assert (report["options"]["backend"], report["tools"]["tensorrt"]) == ("tensorrt", version)


def test_what_differs_is_said_with_pythons_words(folder: Path, infer: Infer, version: str) -> None:
    choice = pytest.importorskip("mlpdeploy.runtime.trt.choice")
    from mlpdeploy.runtime.gpu import Gpu

    machine = choice.Machine("tensorrt", version, Gpu(GPU, CAPABILITY, "580.1", "13.0"))
    manifest = read_manifest(folder)
    for changes in (
        None,  # no engine at all
        {"gpu": "NVIDIA H100 80GB HBM3", "compute_capabilities": ("9.0",)},
        {"precision": "fp16", "source_sha256": "0" * 64},
        {"flags": {"strip": True}, "gpu": "Other"},
        {"version": "1.2.3.4", "flags": {"version_compatible": True}},
        {"version": "1.2.3.4", "profiles": ()},
    ):
        if changes is not None:
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
            add_engine(folder, **{"version": version, **changes})  # type: ignore[arg-type]
        with pytest.raises(EngineError) as refused:
            choice.choose_engine(folder, manifest, machine)
        done = infer("classify", folder, sample_photographs()[0], "--backend", "tensorrt")
        assert (done.returncode, done.stderr) == (1, f"mlpdeploy-infer: {refused.value}\n")


@pytest.mark.parametrize(("visible", "named"), [(None, "1"), ("2, GPU-8932f937 ,0", "GPU-8932f937"), ("3", "1")])
def test_the_advice_to_build_for_another_gpu_is_pythons(
    folder: Path, infer: Infer, version: str, monkeypatch: pytest.MonkeyPatch, visible: str | None, named: str
) -> None:
    """A build is for the first GPU that it sees."""
    choice = pytest.importorskip("mlpdeploy.runtime.trt.choice")
    from mlpdeploy.runtime.gpu import Gpu

    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine = choice.Machine("tensorrt", version, Gpu(GPU, CAPABILITY, "580.1", "13.0"), index=1)
    words = ("classify", folder, sample_photographs()[0], "--backend", "tensorrt", "--device", "cuda:1")
    for changes in (None, {"precision": "fp16"}):
        if changes is not None:
            add_engine(folder, version, **changes)
        with pytest.raises(EngineError) as refused:
            choice.choose_engine(folder, read_manifest(folder), machine)
        assert f"; run: CUDA_VISIBLE_DEVICES={named} mlpdeploy build " in str(refused.value)
        done = infer(*words, FAKE_GPUS="2")
        assert (done.returncode, done.stderr) == (1, f"mlpdeploy-infer: {refused.value}\n")
    shutil.rmtree(folder / FOLDER)
    add_engine(folder, "1.7.1.116", target="tensorrt-rtx")
    assert infer(*words).stderr.endswith(f"; run: CUDA_VISIBLE_DEVICES={named} mlpdeploy build {folder}\n")


def test_an_engine_of_tensorrt_rtx_is_refused_before_anything_is_loaded(
    folder: Path, infer: Infer, tmp_path: Path
) -> None:
    add_engine(folder, "1.7.1.116", target="tensorrt-rtx")
    done = infer("classify", folder, sample_photographs()[0], "--backend", "tensorrt", libraries=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        f"mlpdeploy-infer: {folder} has an engine for tensorrt-rtx, which only Python's session runs; wanted an engine "
        f"for tensorrt; run: mlpdeploy build {folder}\n",
    )


def test_a_missing_or_other_tensorrt_is_one_sentence(folder: Path, fakes: Path, infer: Infer, tmp_path: Path) -> None:
    words = ("classify", folder, sample_photographs()[0], "--backend", "tensorrt")
    library = next(path for path in fakes.glob("libnvinfer.so.*"))
    major = library.suffix[1:]
    if any(Path(root, library.name).exists() for root in ("/usr/lib/x86_64-linux-gnu", "/usr/lib", "/usr/local/lib")):
        pytest.skip("a real TensorRT is installed")

    def refusal(**variables: str) -> str:
        done = infer(*words, libraries=tmp_path, **variables)
        assert done.returncode == 1
        return done.stderr

    assert f"libnvinfer.so.{major} cannot be loaded (" in refusal()
    assert "or name its folder in LD_LIBRARY_PATH" in refusal()
    other = "8" if major != "8" else "10"
    (tmp_path / f"libnvinfer.so.{other}").symlink_to(library)
    (tmp_path / "libcuda.so.1").symlink_to(fakes / "libcuda.so.1")
    assert refusal() == (
        f"mlpdeploy-infer: the TensorRT that is installed is libnvinfer.so.{other}, and libmlpdeploy was compiled for "
        f"TensorRT {major}; wanted libnvinfer.so.{major}; compile libmlpdeploy with the headers of the installed one\n"
    )
    (tmp_path / library.name).symlink_to(library)
    assert f"is TensorRT 12.0.0, and libmlpdeploy was compiled for TensorRT {major}" in refusal(
        FAKE_TENSORRT_VERSION="120000"
    )
    oldest = {"8": "8600"}.get(major, f"{major}0000")
    assert "is older than the headers of libmlpdeploy; wanted " in refusal(FAKE_TENSORRT_VERSION=oldest)


def test_backends_and_devices_that_there_are_not(artifacts: dict[str, Path], infer: Infer) -> None:
    done = infer("classify", artifacts["asmlp"], "x.jpg", "--backend", "tensort")
    assert (done.returncode, done.stderr) == (
        2,
        "mlpdeploy-infer: unknown backend 'tensort'; did you mean tensorrt?\n",
    )
    done = infer("classify", artifacts["asmlp"], "x.jpg", "--device", "gpu:0")
    assert (done.returncode, done.stderr) == (2, "mlpdeploy-infer: unknown device 'gpu:0'; wanted cpu or cuda\n")


def test_a_library_without_tensorrt_says_so(tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(
        '#include "tensorrt/tensorrt.h"\n#include <cstdio>\n'
        "int main() try { std::string file; mlpdeploy::open_tensorrt({}, {}, {}, file); }\n"
        "catch (const mlpdeploy::Error& error) { std::puts(error.what()); return error.exit_code(); }\n"
    )
    cpp = ROOT / "cpp"
    sources = [cpp / "src" / "tensorrt" / "absent.cpp", cpp / "src" / "error.cpp", tmp_path / "main.cpp"]
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    include = [f"-I{cpp / 'include'}", f"-I{cpp / 'src'}"]
    subprocess.run(["g++", "-std=c++17", *include, *sources, "-o", tmp_path / "main"], check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (
        2,
        "the backend tensorrt in a library that was built without it; wanted onnxruntime; build it with "
        "-DMLPDEPLOY_WITH_TENSORRT=ON\n",
    )
