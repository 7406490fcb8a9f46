"""Building, finding and registering the CPU kernels, and what happens without them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import tiny_vip

import mlpdeploy
from mlpdeploy.cli import main
from mlpdeploy.env import cpu_features
from mlpdeploy.errors import MissingDependencyError, PluginError, UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.plugins import cpu
from mlpdeploy.plugins.cpu import build_cpu_library, ensure_cpu_library, find_cpu_library
from mlpdeploy.plugins.find import CACHE_VARIABLE
from mlpdeploy.plugins.toolchain import CPU_FOLDER, CSRC

HEADERS = (Path("/usr/include/onnxruntime"), Path(__file__).parents[2] / "build" / "onnxruntime" / "include")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
DEFAULT = "avx512" if "avx512f" in cpu_features() else "avx2"
needs_default = pytest.mark.skipif("avx2" not in cpu_features(), reason="no kernels for this processor by default")


@pytest.fixture
def compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache, and a compiler that takes a while and writes a line; returns its runs."""
    runs: list[str] = []

    def compile_slowly(scratch: Path, name: str, log: Path) -> Path:
        runs.append(name)
        time.sleep(0.2)
        (scratch / "library").write_text("library")
        return scratch / "library"

    monkeypatch.setattr(cpu, "_compile", compile_slowly)
    monkeypatch.setattr(cpu, "_compiler", lambda: "true")
    monkeypatch.setattr(cpu, "first_line", lambda command: "compiler 1")
    monkeypatch.setattr(cpu, "cpu_features", lambda: ["avx2"])
    monkeypatch.delenv(cpu.SWITCH_VARIABLE, raising=False)
    monkeypatch.delenv(cpu.LIBRARY_VARIABLE, raising=False)
    return runs


def test_built_once_and_found(compiler: list[str], cache: Path) -> None:
    assert find_cpu_library() is None
    said: list[str] = []
    library = ensure_cpu_library(said.append)
    assert said == ["compiling the CPU kernels, once (compiler 1)"]
    assert library == find_cpu_library() == build_cpu_library()
    assert len(compiler) == 1
    build_cpu_library(force=True)
    assert len(compiler) == 2


def test_two_builders_compile_once(compiler: list[str]) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(build_cpu_library())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiler) == 1 and len(set(found)) == 1


def test_other_sources_are_not_found(compiler: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    build_cpu_library()
    monkeypatch.setattr(cpu, "_sources", lambda: "0" * 64)
    assert find_cpu_library() is None


def test_a_library_for_another_architecture_is_not_found(compiler: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines may share the home folder."""
    build_cpu_library()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert find_cpu_library() is None


def test_a_compiler_that_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"no library.*CXX"):
        cpu._compile(tmp_path, "true", tmp_path / "log")


def test_a_failed_build_is_one_line(compiler: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Path:
        raise PluginError("the CPU kernels could not be compiled (error: no)")

    monkeypatch.setattr(cpu, "_compile", fail)
    said: list[str] = []
    assert ensure_cpu_library(said.append) is None
    assert said[-1] == "without the CPU kernels, which are faster: the CPU kernels could not be compiled (error: no)"


def test_a_cache_that_cannot_be_written_is_one_line(
    compiler: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    said: list[str] = []
    assert ensure_cpu_library(said.append) is None
    assert len(said) == 1 and said[0].startswith("without the CPU kernels")


def test_a_cache_in_proc_and_no_folder_for_temporary_files_are_one_line(
    compiler: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise FileNotFoundError("No usable temporary directory found")

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryDirectory", fails)
        assert ensure_cpu_library(said.append) is None
    monkeypatch.setenv(CACHE_VARIABLE, "/proc/nope")
    assert ensure_cpu_library(said.append) is None
    assert [line.partition(":")[0] for line in said[1:]] == ["without the CPU kernels, which are faster"] * 2


def test_a_cache_of_another_user_says_which_variable_names_one(
    compiler: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    done = CliRunner().invoke(main, ["plugin", "build", "--cpu"])
    assert done.exit_code == 1
    assert done.stderr.endswith("(Permission denied); name a folder that you own in MLPDEPLOY_CACHE\n")


def test_without_a_home_folder(monkeypatch: pytest.MonkeyPatch, compiler: list[str]) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert find_cpu_library() is None and ensure_cpu_library() is None


def test_without_a_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingDependencyError, match="apt install g"):
        build_cpu_library()


def test_the_switch(compiler: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    build_cpu_library()
    monkeypatch.setenv(cpu.SWITCH_VARIABLE, "0")
    assert find_cpu_library() is None and ensure_cpu_library() is None
    monkeypatch.setenv(cpu.SWITCH_VARIABLE, "avx51")
    with pytest.raises(UsageError, match="did you mean avx512"):
        find_cpu_library()


def test_only_processors_that_gain(compiler: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    build_cpu_library()
    monkeypatch.setattr(cpu, "cpu_features", list)
    assert find_cpu_library() is None
    monkeypatch.setenv(cpu.SWITCH_VARIABLE, "portable")
    assert find_cpu_library() is not None


def outputs(session: mlpdeploy.Session, rows: int = 3) -> np.ndarray:
    (result,) = session.run(session.random_feeds(rows, 0, (32, 32))).values()
    return result


@needs_compiler
@needs_default
@pytest.mark.parametrize("family", ["asmlp", "vip"])
def test_sessions_use_them(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    build_cpu_library()
    artifact = exported
    if family == "vip":
        artifact = tmp_path / "vip"
        export_model(tiny_vip(), artifact, verify=False)
    with mlpdeploy.load(artifact, threads=2) as session:
        assert session.kernels == DEFAULT
        fast = outputs(session)
    monkeypatch.setenv(cpu.SWITCH_VARIABLE, "0")
    with mlpdeploy.load(artifact, threads=2) as session:
        assert session.kernels == ""
        plain = outputs(session)
    assert not np.array_equal(fast, plain)
    np.testing.assert_allclose(fast, plain, rtol=0, atol=2e-5 * plain.std())


@needs_default
@pytest.mark.parametrize("content", [None, b"no library"])
def test_a_broken_library_is_a_warning(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    library = tmp_path / "library.so"
    if content is not None:
        library.write_bytes(content)
    monkeypatch.setenv(cpu.LIBRARY_VARIABLE, str(library))
    with pytest.warns(UserWarning, match="without the CPU kernels"):
        session = mlpdeploy.load(exported)
    with session:
        assert session.kernels == ""
        assert np.isfinite(outputs(session)).all()


def test_canonical_files_need_none(exported: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mlpdeploy.load(exported, role="canonical") as session:
            assert session.kernels == ""


def test_doctor_and_build_command(compiler: list[str]) -> None:
    assert "mlpdeploy plugin build --cpu" in CliRunner().invoke(main, ["doctor"]).output
    done = CliRunner().invoke(main, ["plugin", "build", "--cpu"])
    assert done.exit_code == 0 and cpu.LIBRARY_NAME in done.output
    done = CliRunner().invoke(main, ["plugin", "build", "--cpu", "--arch", "89"])
    assert done.exit_code == 2


@needs_compiler
def test_the_interface_is_onnxruntimes(tmp_path: Path) -> None:
    """Every place and field that ort_interface.h names, against the real header."""
    folder = next((path for path in HEADERS if (path / "onnxruntime_c_api.h").is_file()), None)
    if folder is None:
        pytest.skip("no headers of ONNX Runtime here (cpp/get_onnxruntime.py fetches them)")
    source = Path(__file__).parent / "native" / "ort_interface.cpp"
    command = ["g++", "-std=c++17", "-fsyntax-only", f"-I{CSRC / CPU_FOLDER}", "-isystem", folder, source]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SANITIZED = ["g++", "-std=c++17", "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall",
             "-Wextra", "-Werror", "-Wno-uninitialized", "-Wno-maybe-uninitialized",  # of GCC 12's AVX-512 headers
             "-DMLPDEPLOY_TILE_PART=static __attribute__((noinline))",  # inlined it takes three times as long
             f"-I{CSRC / CPU_FOLDER}", "-pthread"]  # fmt: skip


def compiled(*command: object) -> None:
    done = subprocess.run([*SANITIZED, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sanitized_kernels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return kernels.cpp for an instruction set, compiled once for all blocks."""
    folder = tmp_path_factory.mktemp("sanitized")

    def object_of(isa: str) -> Path:
        at = folder / f"{isa}.o"
        if not at.exists():
            # avx512 has the others, in the same lines
            few_rows = ["-DMLPDEPLOY_MOST_ROWS=6"] if isa in ("avx512bf16", "avx512round", "avx512vnni") else []
            compiled(*few_rows, *cpu.FLAGS[isa], "-c", CSRC / CPU_FOLDER / "kernels.cpp", "-o", at)
        return at

    return object_of


@pytest.fixture(scope="module")
def sanitized_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a source that knows no instruction set, compiled once, as the library compiles it."""
    folder = tmp_path_factory.mktemp("sources")

    def object_of(name: str) -> Path:
        at = folder / f"{name}.o"
        if not at.exists():
            compiled("-c", CSRC / CPU_FOLDER / f"{name}.cpp", "-o", at)
        return at

    return object_of


@needs_compiler
@pytest.mark.parametrize(
    ("block", "isa"),
    [(block, isa) for block in ("axial_shift_block", "permutator_block") for isa in (*cpu.FLOAT_SETS, "amx", "amxint8")]
    + [("axial_shift_block", isa) for isa in ("avx512bf16", "avx512round", "avx512vnni", "avxvnni")]
    + [("cycle_block", isa) for isa in ("avx512", "amx", "amxint8", "avxvnni")]
    + [("downsample", isa) for isa in ("amx", "amxint8")]
    + [("patch_embed", isa) for isa in ("avx512", "avx2")],
)
def test_sanitizers_find_nothing(
    tmp_path: Path,
    isa: str,
    block: str,
    sanitized_kernels: Callable[[str], Path],
    sanitized_source: Callable[[str], Path],
) -> None:
    """A block on buffers that are exactly as large as the tensors, with many shapes, on two threads."""
    if isa in cpu.FEATURES and cpu.FEATURES[isa] not in cpu_features():
        pytest.skip(f"this processor has no {isa}")
    floats = isa if isa in cpu.FLOAT_SETS else "avx512" if "avx512f" in cpu_features() else "avx2"
    kinds = [f"-DKERNELS={isa}", f"-DFLOAT_KERNELS={floats}", *(["-DINT8"] if isa in cpu.INT8_SETS else [])]
    objects = [sanitized_kernels(name) for name in dict.fromkeys((isa, floats))]
    objects += map(sanitized_source, (block, "token_block", "dense", "memory"))
    program, host = tmp_path / "host", Path(__file__).parent / "native" / f"host_{block}.cpp"
    compiled(*kinds, *cpu.FLAGS[isa], host, *objects, "-o", program)
    done = subprocess.run([str(program)], capture_output=True, text=True, env={**os.environ, "ASAN_OPTIONS": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ok"


@needs_compiler
@pytest.mark.parametrize("isa", cpu.INSTRUCTION_SETS)
def test_gelu(tmp_path: Path, isa: str) -> None:
    """Of every magnitude, also far outside of what the tables and polynomials were fitted on."""
    if isa in cpu.FEATURES and cpu.FEATURES[isa] not in cpu_features():
        pytest.skip(f"this processor has no {isa}")
    program, source = tmp_path / "gelu", Path(__file__).parent / "native" / "gelu.cpp"
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=fast", f"-I{CSRC / CPU_FOLDER}", *cpu.FLAGS[isa], source]
    done = subprocess.run([*map(str, command), "-o", str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    error = float(subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout)
    assert error < (9e-6 if isa in ("amx", "avx512bf16", "amxint8", "avx512vnni") else 1.6e-7)


@needs_compiler
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_what_a_thread_keeps_is_its_own(tmp_path: Path, sanitizers: str) -> None:
    folder, program = CSRC / CPU_FOLDER, tmp_path / "spares"
    checks = ["-O1", "-g1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror"]
    source = Path(__file__).parent / "native" / "spares.cpp"
    command = ["g++", "-std=c++17", *checks, f"-I{folder}", folder / "spares.cpp", source, "-o", program, "-pthread"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, env={**os.environ, "ASAN_OPTIONS": ""})
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked for on Linux")
def test_memory_for_weights(tmp_path: Path) -> None:
    folder, program = CSRC / CPU_FOLDER, tmp_path / "memory"
    checks = ["-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all", "-Wall", "-Wextra", "-Werror"]
    source = Path(__file__).parent / "native" / "memory.cpp"
    command = ["g++", "-std=c++17", *checks, f"-I{folder}", folder / "memory.cpp", source, "-o", program, "-pthread"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
