"""Which CPU kernels the C++ library runs: builds of the sources that it was compiled beside, and no others."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from native import NativeSession

import mlpdeploy
from mlpdeploy.env import cpu_features
from mlpdeploy.errors import UsageError
from mlpdeploy.plugins import cpu
from mlpdeploy.plugins.find import CACHE_VARIABLE
from mlpdeploy.quant.quantize import quantize_artifact
from mlpdeploy.quant.recipe import Recipe

LIKE_PYTHON = {cpu.SWITCH_VARIABLE: "", cpu.LIBRARY_VARIABLE: ""}


@pytest.fixture(scope="module")
def library() -> Path:
    """A build of these sources; exporting an AS-MLP made one."""
    if "avx2" not in cpu_features():
        pytest.skip("no kernels for this processor by default")
    found = cpu.find_cpu_library()
    if found is None:
        pytest.skip("the CPU kernels are not built: no compiler, or they are switched off")
    return found


def measured(build: Path, folder: Path, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [build / "mlpdeploy-infer", "bench", folder, "--batch", "1", "--seconds", "0", "--json"]
    environment = {**os.environ, **LIKE_PYTHON, CACHE_VARIABLE: str(cache), **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def kernels(build: Path, folder: Path, cache: Path, **variables: str) -> str:
    done = measured(build, folder, cache, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return str(json.loads(done.stdout)["artifact"]["kernels"])


def put(library: Path, cache: Path, sources: str, mark: str = "abcdef01") -> Path:
    """Leave a build as `build_cpu_library` does."""
    folder = cache / "cpu" / f"{sources[:16]}-{mark}"
    folder.mkdir(parents=True)
    (folder / cpu.LIBRARY_NAME).symlink_to(library)
    return folder


def assert_pythons_bits(build: Path, folder: Path) -> None:
    with mlpdeploy.load(folder) as session:
        feeds = session.random_feeds(3, 0, (32, 32))
        python = session.run(feeds)
    native = NativeSession(build, folder)
    found = native.run(feeds, {key: np.empty_like(array) for key, array in python.items()})
    native.close()
    assert {key: array.tobytes() for key, array in found.items()} == {k: a.tobytes() for k, a in python.items()}


def test_a_build_of_these_sources_runs(build: Path, artifacts: dict[str, Path], library: Path, tmp_path: Path) -> None:
    assert kernels(build, artifacts["asmlp"], tmp_path) == ""
    put(library, tmp_path, cpu._sources())
    assert kernels(build, artifacts["asmlp"], tmp_path) == cpu.kernels_of(library)
    assert kernels(build, artifacts["vip"], tmp_path) == cpu.kernels_of(library)
    assert kernels(build, artifacts["asmlp"], tmp_path, **{cpu.SWITCH_VARIABLE: "0"}) == ""
    assert kernels(build, artifacts["asmlp"], tmp_path, **{cpu.SWITCH_VARIABLE: "portable"}) == "portable"


@pytest.mark.parametrize("name", ["asmlp", "vip", "cyclemlp"])
def test_bf16_has_pythons_bits(
    build: Path, artifacts: dict[str, Path], library: Path, tmp_path: Path, name: str
) -> None:
    wanted = cpu.kernels_of(library, "bf16")
    if wanted is None:
        pytest.skip("no kernels for bfloat16 on this processor")
    quantize_artifact(artifacts[name], tmp_path / "bf16", Recipe("bf16"), targets=("cpu",), verify=False)
    put(library, tmp_path / "cache", cpu._sources())
    assert kernels(build, tmp_path / "bf16", tmp_path / "cache") == wanted
    assert_pythons_bits(build, tmp_path / "bf16")


@pytest.mark.parametrize("name", ["asmlp", "vip", "cyclemlp"])
@pytest.mark.parametrize("switch", ["", "0"])
def test_int8_has_pythons_bits(
    build: Path,
    artifacts: dict[str, Path],
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    switch: str,
) -> None:
    """Without kernels too, where products saturate by default on processors without VNNI."""
    wanted = "" if switch else cpu.kernels_of(library, "int8") or ""
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(5).standard_normal((16, 3, 32, 32)).astype(np.float32))
    quantize_artifact(artifacts[name], tmp_path / "int8", Recipe("int8"), images=images, targets=("cpu",), verify=False)
    put(library, tmp_path / "cache", cpu._sources())
    assert kernels(build, tmp_path / "int8", tmp_path / "cache", **{cpu.SWITCH_VARIABLE: switch}) == wanted
    monkeypatch.setenv(cpu.SWITCH_VARIABLE, switch)
    assert_pythons_bits(build, tmp_path / "int8")


def test_builds_of_other_sources_do_not_run(
    build: Path, artifacts: dict[str, Path], library: Path, tmp_path: Path
) -> None:
    other = put(library, tmp_path, "0" * 64)
    (other.parent / "current").symlink_to(other.name)  # which the library used to follow
    assert kernels(build, artifacts["asmlp"], tmp_path) == ""
    named = {cpu.LIBRARY_VARIABLE: str(other / cpu.LIBRARY_NAME)}
    assert kernels(build, artifacts["asmlp"], tmp_path, **named) == cpu.kernels_of(library)


def test_the_newest_build_runs(build: Path, artifacts: dict[str, Path], library: Path, tmp_path: Path) -> None:
    broken = put(library, tmp_path, cpu._sources(), "00000000") / cpu.LIBRARY_NAME
    broken.unlink()
    broken.write_bytes(b"no library")
    os.utime(broken, (1, 1))
    put(library, tmp_path, cpu._sources(), "ffffffff")
    assert kernels(build, artifacts["asmlp"], tmp_path) == cpu.kernels_of(library)


def test_a_broken_library_is_one_line(build: Path, artifacts: dict[str, Path], library: Path, tmp_path: Path) -> None:
    (tmp_path / "library.so").write_bytes(b"no library")
    done = measured(build, artifacts["asmlp"], tmp_path, **{cpu.LIBRARY_VARIABLE: str(tmp_path / "library.so")})
    assert done.returncode == 0 and json.loads(done.stdout)["artifact"]["kernels"] == ""
    assert done.stderr.startswith(f"mlpdeploy-infer: without the CPU kernels: {tmp_path}/library.so cannot be loaded (")
    assert done.stderr.count("\n") == 1


def test_unknown_kernels_are_refused_in_pythons_words(
    build: Path, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cpu.SWITCH_VARIABLE, "avx51")
    with pytest.raises(UsageError) as python:
        cpu.wanted_kernels()
    done = measured(build, artifacts["asmlp"], tmp_path, **{cpu.SWITCH_VARIABLE: "avx51"})
    assert (done.returncode, done.stderr) == (2, f"mlpdeploy-infer: {python.value}\n")
