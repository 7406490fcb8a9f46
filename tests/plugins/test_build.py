"""Building and finding the library: the cache, the lock, and what is said when something is missing or damaged."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlpdeploy.cli import main
from mlpdeploy.errors import MissingDependencyError, PluginError, UsageError
from mlpdeploy.plugins import build as builder
from mlpdeploy.plugins import toolchain
from mlpdeploy.plugins.build import BuildOptions, build_plugin, ensure_plugin_library
from mlpdeploy.plugins.elf import read_symbols
from mlpdeploy.plugins.find import LIBRARY_VARIABLE, PluginLibrary, builds, find_plugin_library, locate
from mlpdeploy.plugins.toolchain import Toolchain, find_tensorrt_include, tensorrt_version


@pytest.fixture
def fake_tools(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Toolchain:
    """Tools that are not there, so that these tests need no compiler; `_compile` has to be replaced too."""
    tools = Toolchain(tmp_path / "nvcc", "13.0.88", "c++ 12", tmp_path / "cmake", None, tmp_path, "10.14.1")
    monkeypatch.setattr(builder, "find_toolchain", lambda include: tools)
    monkeypatch.setattr(builder, "known_architectures", lambda nvcc: {"75", "89", "90"})
    monkeypatch.setattr(builder, "_check_symbols", lambda library, face: None)
    return tools


class FakeCompiler:
    """Stands for CMake and nvcc: takes a while, writes a file and counts."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.runs = error, 0

    def __call__(self, scratch: Path, tools: Toolchain, names: tuple, log: Path, advance: builder.Advance) -> Path:
        self.runs += 1
        log.write_text("compiled\n")
        time.sleep(0.2)
        if self.error:
            raise self.error
        (scratch / "library").write_bytes(b"library for " + ",".join(names).encode())
        return scratch / "library"


@pytest.fixture
def compiler(fake_tools: Toolchain, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    fake = FakeCompiler()
    monkeypatch.setattr(builder, "_compile", fake)
    return fake


def test_built_once_and_found(compiler: FakeCompiler, cache: Path) -> None:
    with pytest.raises(PluginError, match="not built; run: mlpdeploy plugin build"):
        find_plugin_library()
    said: list[str] = []
    library = build_plugin(BuildOptions(), said.append)
    assert library.record is not None
    assert library.record.architectures == ("75", "89", "90")
    assert library.record.ptx == ("75", "90")
    assert "compiling the CUDA plugin for sm_75, sm_89, sm_90" in said[0]
    assert build_plugin(BuildOptions()) == library
    assert ensure_plugin_library() == find_plugin_library() == library.path
    assert compiler.runs == 1
    assert build_plugin(BuildOptions(force=True)).path == library.path
    assert build_plugin(BuildOptions(architectures=("sm_89",))).path != library.path
    assert compiler.runs == 3
    assert sorted(path.name for path in library.path.parent.iterdir()) == ["build.json", "build.log", library.path.name]


def test_built_when_it_is_needed(compiler: FakeCompiler) -> None:
    said: list[str] = []
    path = ensure_plugin_library(say=said.append)
    assert path.exists() and "compiling" in said[0] and compiler.runs == 1
    with pytest.raises(PluginError, match="give a library with IPluginV3; wanted headers of the TensorRT that will"):
        ensure_plugin_library("IPluginV2DynamicExt")


def test_two_builders_at_once_compile_once(compiler: FakeCompiler) -> None:
    said: list[str] = []
    results: list[PluginLibrary] = []

    def one() -> None:
        results.append(build_plugin(BuildOptions(), said.append))

    threads = [threading.Thread(target=one), threading.Thread(target=one)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1]
    assert compiler.runs == 1
    assert "another process builds the CUDA plugin; waiting for it" in said


def test_a_killed_build_leaves_nothing_that_is_found(compiler: FakeCompiler) -> None:
    compiler.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        build_plugin(BuildOptions())
    assert builds() == []
    compiler.error = None
    build_plugin(BuildOptions())
    assert len(builds()) == 1


def test_changed_sources_are_built_again(compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    old = build_plugin(BuildOptions())
    for module in ("build", "find"):
        monkeypatch.setattr(f"mlpdeploy.plugins.{module}.sources_sha256", lambda: "other")
    with pytest.raises(PluginError, match="not built; 1 of other versions are in the cache"):
        find_plugin_library()
    assert build_plugin(BuildOptions()).path != old.path


def test_the_checksum_covers_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(toolchain.CSRC, tmp_path / "csrc")
    monkeypatch.setattr(toolchain, "CSRC", tmp_path / "csrc")
    before = toolchain.sources_sha256.__wrapped__()
    assert before == toolchain.sources_sha256()
    for name in ("axial_shift/axial_shift_index.h", "axial_shift/axial_shift.cu", "guard.cpp", "CMakeLists.txt"):
        path = tmp_path / "csrc" / name
        path.write_text(path.read_text() + "\n")
        after = toolchain.sources_sha256.__wrapped__()
        assert after != before, name
        before = after


def test_no_warning_stops_a_users_build() -> None:
    """Compilers and headers to come warn of more; our tests' own builds turn warnings into errors by their options."""
    package = toolchain.CSRC.parents[1]
    files = [path for part in ("plugins", "../cpp/cmake") for path in (package / part).rglob("*") if path.is_file()]
    files += [package / "../cpp/CMakeLists.txt", package / "../cpp/CMakePresets.json"]
    texts = {path: path.read_text() for path in files if path.suffix in (".py", ".txt", ".cmake", ".json")}
    assert len(texts) > 10
    assert [str(path) for path, text in texts.items() if "-Werror" in text or "WARNING_AS_ERROR" in text] == []


def test_a_damaged_library_is_not_handed_out(compiler: FakeCompiler) -> None:
    library = build_plugin(BuildOptions())
    library.path.write_bytes(library.path.read_bytes()[:-1])
    for attempt in (find_plugin_library, lambda: build_plugin(BuildOptions())):
        with pytest.raises(PluginError, match=r"changed or cut off; run: mlpdeploy plugin build --force"):
            attempt()
    build_plugin(BuildOptions(force=True))
    assert find_plugin_library() == library.path
    (library.path.parent / "build.json").write_text("{}")
    with pytest.raises(PluginError, match="not built"):
        find_plugin_library()


def test_a_library_named_by_hand(compiler: FakeCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "mine.so"))
    for attempt in (find_plugin_library, ensure_plugin_library):
        with pytest.raises(PluginError, match=r"MLPDEPLOY_PLUGIN_LIBRARY is .*mine\.so, and there is no such file"):
            attempt()
    (tmp_path / "mine.so").write_bytes(b"library")
    assert locate() == PluginLibrary(tmp_path / "mine.so", None)
    assert compiler.runs == 0
    monkeypatch.setenv(LIBRARY_VARIABLE, str(build_plugin(BuildOptions()).path))
    with pytest.raises(PluginError, match="has the interface IPluginV3; wanted IPluginV2DynamicExt"):
        find_plugin_library("IPluginV2DynamicExt")


def test_a_compiler_error_names_the_line_and_the_log(fake_tools: Toolchain, cache: Path) -> None:
    fake_tools.cmake.write_text("#!/bin/sh\necho 'axial_shift.cu(3): error: expected a ;'\necho more\nexit 2\n")
    fake_tools.cmake.chmod(0o755)
    with pytest.raises(PluginError, match=r"axial_shift\.cu\(3\): error: expected a ;.*see .*\.log") as caught:
        build_plugin(BuildOptions())
    log = Path(caught.value.fix.removeprefix("see "))
    assert log.parent == cache
    assert log.read_text().endswith("error: expected a ;\nmore\n")
    assert builds() == []


def test_the_compilers_steps_reach_the_progress_bar(fake_tools: Toolchain, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with (tmp_path / "log").open("w") as file:
        command = ["printf", "[1/7] Building\\nnoise\\n[7/7] Linking\\n"]
        builder._run(command, file.fileno(), tmp_path / "log", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 7), (7, 7)]


def test_an_unknown_architecture(compiler: FakeCompiler) -> None:
    with pytest.raises(UsageError, match=r"architecture '98' with nvcc 13\.0\.88; wanted did you mean"):
        build_plugin(BuildOptions(architectures=("98",)))


def headers(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "NvInferRuntime.h").touch()
    (folder / "NvInferVersion.h").write_text(text)
    return folder


OLD_STYLE = "#define NV_TENSORRT_MAJOR {} //!< major\n#define NV_TENSORRT_MINOR {}\n#define NV_TENSORRT_PATCH 1\n"
NEW_STYLE = """#define TRT_MAJOR_ENTERPRISE 11
#define TRT_MINOR_ENTERPRISE 4
#define TRT_PATCH_ENTERPRISE 0
#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major
#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE
#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE
"""


def test_headers_are_found_and_say_their_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = headers(tmp_path / "old", OLD_STYLE.format(8, 6))
    new = headers(tmp_path / "new" / "include", NEW_STYLE)
    assert (tensorrt_version(old), tensorrt_version(new)) == ("8.6.1", "11.4.0")
    monkeypatch.setenv("TENSORRT_HOME", str(tmp_path / "new"))
    assert find_tensorrt_include() == new
    monkeypatch.setenv("MLPDEPLOY_TENSORRT_INCLUDE", str(old))
    assert find_tensorrt_include() == old
    assert find_tensorrt_include(new) == new
    with pytest.raises(MissingDependencyError, match=r"--tensorrt-include is .*, and there is no NvInferRuntime\.h"):
        find_tensorrt_include(tmp_path)
    monkeypatch.delenv("TENSORRT_HOME")
    monkeypatch.delenv("MLPDEPLOY_TENSORRT_INCLUDE")
    monkeypatch.setattr(toolchain, "_SYSTEM_INCLUDES", ())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"headers are not installed.*--tensorrt-include"):
        find_tensorrt_include()
    with pytest.raises(PluginError, match="does not say its version"):
        tensorrt_version(headers(tmp_path / "empty", ""))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_without_a_compiler_there_is_one_clear_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    result = run("plugin", "build")
    assert result.exit_code == 1
    assert result.stderr.startswith("mlpdeploy: no nvcc found") and len(result.stderr.splitlines()) == 1
    result = run("plugin", "info", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["library"] is None and "not built" in report["problem"] and "no nvcc" in report["tools_problem"]


def test_nvcc_is_found_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "home/bin/nvcc"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\necho 'release 12.4, V12.4.131'\necho compute_75 compute_90a\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert toolchain.find_nvcc() == tmp_path / "home/bin/nvcc"
    monkeypatch.setenv("CUDACXX", str(tmp_path / "mine"))
    monkeypatch.setenv("PATH", os.defpath)
    assert toolchain.find_nvcc() == tmp_path / "mine"
    assert toolchain.nvcc_version(tmp_path / "mine") == "12.4.131"
    (tmp_path / "mine").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(PluginError, match="does not run"):
        toolchain.nvcc_version(tmp_path / "mine")


def test_the_command_line_builds(compiler: FakeCompiler) -> None:
    result = run("plugin", "build", "--arch", "89", "--json")
    assert result.exit_code == 0, result.output
    built = json.loads(result.stdout)
    assert built["record"]["architectures"] == ["89"]
    assert "compiling the CUDA plugin for sm_89" in result.stderr
    assert "sm_89" in run("plugin", "build", "--arch", "89").stdout
    assert run("plugin", "biuld").exit_code == 2


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("text")
    with pytest.raises(PluginError, match="no 64-bit shared library"):
        read_symbols(tmp_path / "text.so")


def test_a_library_that_is_cut_off_is_refused(plugin_library: PluginLibrary, tmp_path: Path) -> None:
    (tmp_path / "half.so").write_bytes(plugin_library.path.read_bytes()[:5000])
    with pytest.raises(PluginError, match="is damaged"):
        read_symbols(tmp_path / "half.so")
    with pytest.raises(PluginError, match="exports getCreators, mlpdeploy_axial_shift, setLoggerFinder"):
        builder._check_symbols(plugin_library.path, "IPluginV2DynamicExt")


def test_info_of_a_real_library(plugin_library: PluginLibrary, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(plugin_library.path))
    result = run("plugin", "info")
    assert result.exit_code == 0
    assert "getCreators, mlpdeploy_axial_shift, setLoggerFinder" in result.stdout and "sm_90" in result.stdout
    told = json.loads(run("plugin", "info", "--json").stdout)["record"]["ptx"]
    assert plugin_library.record is not None and told == list(plugin_library.record.ptx) == ["75", "120"]
