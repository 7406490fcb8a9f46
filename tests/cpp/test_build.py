"""The C++ tests, the JSON form that checksums are taken of, the installed package and the example in the header."""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native import ROOT, tensorrt_options
from PIL import Image

from mlpdeploy.images import sample_photographs


def canonical(build: Path, lines: list[str]) -> list[str]:
    """Return what C++ makes of each line of JSON."""
    text = "".join(line + "\n" for line in lines)
    done = subprocess.run([build / "tests" / "canonical_json"], input=text.encode(), capture_output=True, check=True)
    return done.stdout.decode().split("\n")[:-1]


def python_canonical(line: str) -> str:
    return json.dumps(json.loads(line), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize("program", ["mlpdeploy-tests", "mlpdeploy-onnx-cuda-tests"])
def test_the_cpp_tests_pass(build: Path, native_environment: dict[str, str], program: str) -> None:
    done = subprocess.run([build / "tests" / program], env=native_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("artifacts_are_there", [True, False])
@pytest.mark.parametrize("program", ["mlpdeploy-tests", "mlpdeploy-onnx-cuda-tests", "mlpdeploy-tensorrt-tests"])
def test_the_cpp_tests_leave_nothing_behind(
    build: Path, native_environment: dict[str, str], tmp_path: Path, program: str, artifacts_are_there: bool
) -> None:
    """Also those that fail, here for want of the artifacts."""
    if not (build / "tests" / program).exists():
        pytest.skip("built without TensorRT")
    environment = {**native_environment, "TMPDIR": str(tmp_path)}
    if not artifacts_are_there:
        environment["MLPDEPLOY_TEST_ARTIFACTS"] = str(tmp_path / "nowhere")
    done = subprocess.run([build / "tests" / program], env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) == artifacts_are_there, done.stdout[-4000:]
    assert list(tmp_path.iterdir()) == []


def test_floats_are_written_as_python_writes_them(build: Path) -> None:
    generator = random.Random(0)
    bits = (struct.unpack("<d", generator.randbytes(8))[0] for _ in range(100_000))
    values = [value for value in bits if math.isfinite(value)]
    values += [sign * 2.0**power for power in range(-1074, 1024) for sign in (1, -1)]
    values += [math.nextafter(2.0**power, side) for power in range(-1022, 1023) for side in (0, math.inf)]
    values += [float(f"{digit}e{power}") for power in range(-324, 309) for digit in (1, 1.5, 9.999999999999999)]
    values += [float(f"{generator.randint(0, 10**17)}e{generator.randint(-30, 5)}") for _ in range(50_000)]
    lines = [repr(value) for value in values if math.isfinite(value)]
    assert canonical(build, lines) == [python_canonical(line) for line in lines]


DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: st.lists(children) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), children),
    max_leaves=20,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(DOCUMENTS, min_size=1, max_size=30), st.booleans())
def test_documents_are_written_as_python_writes_them(build: Path, documents: list[object], ascii_only: bool) -> None:
    lines = [json.dumps(document, ensure_ascii=ascii_only) for document in documents]
    assert canonical(build, lines) == [python_canonical(line) for line in lines]


def test_numbers_and_names_that_json_allows_in_several_ways(build: Path) -> None:
    lines = ["-0", "-0.0", "1E5", "1e+05", "0.10", "[1e22,1e21,123456789012345678901234567890]", '{"b":1,"a":2,"b":3}']
    assert canonical(build, lines) == [python_canonical(line) for line in lines]


def test_the_example_in_the_header_runs(build: Path, artifacts: dict[str, Path]) -> None:
    command = [build / "tests" / "header_example", artifacts["asmlp"], *sample_photographs()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "china.jpg" in done.stdout and "class " in done.stdout
    done = subprocess.run([command[0], "/nowhere"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (
        1,
        "/nowhere does not exist; wanted a folder made by mlpdeploy export; see: mlpdeploy export --help",
    )


def test_the_fuzz_targets_survive_a_short_run(build: Path, artifacts: dict[str, Path], tmp_path: Path) -> None:
    manifest = artifacts["asmlp"] / "manifest.json"
    photograph = tmp_path / "small.png"
    Image.open(sample_photographs()[0]).resize((20, 13)).save(photograph)
    frames = tmp_path / "frames"
    frames.write_bytes(b"".join(struct.pack("<I", len(part)) + part for part in (b"", b"abc", bytes(500))))
    for target, seed in (("manifest", manifest), ("frames", frames), ("image", photograph)):
        done = subprocess.run([build / "fuzz" / f"fuzz_{target}", "3000", "1", seed], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["inputs"] == 3000


def test_the_public_headers_name_no_third_party_type() -> None:
    include = ROOT / "cpp" / "include"
    for header in include.rglob("*.h"):
        for line in header.read_text().splitlines():
            if line.startswith("#include"):
                assert "<" in line and "/" not in line.replace("<mlpdeploy/", "<"), line
        assert not any(word in header.read_text() for word in ("Ort::", "OrtSession", "nlohmann", "jpeg_", "png_"))


def test_both_headers_stand_alone(tmp_path: Path) -> None:
    include = f"-I{ROOT / 'cpp' / 'include'}"
    (tmp_path / "c.c").write_text("#include <mlpdeploy.h>\nint main(void) { return 0; }\n")
    (tmp_path / "cpp.cpp").write_text("#include <mlpdeploy/session.h>\nint main() { return 0; }\n")
    for command in (
        ["gcc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", include, tmp_path / "c.c"],
        ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", include, tmp_path / "cpp.cpp"],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"no {command[0]}")
        assert done.returncode == 0, done.stderr


def test_a_library_without_onnx_runtime_says_so(tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(
        '#include "onnx_streams.h"\n#include <cstdio>\n'
        "int main() try { std::string file; mlpdeploy::SharedPool* pool = nullptr;\n"
        "mlpdeploy::open_onnxruntime({}, {}, {}, *pool, file); }\n"
        "catch (const mlpdeploy::Error& error) { std::puts(error.what()); return error.exit_code(); }\n"
    )
    cpp = ROOT / "cpp"
    sources = [cpp / "src" / "onnx_absent.cpp", cpp / "src" / "error.cpp", tmp_path / "main.cpp"]
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    include = [f"-I{cpp / 'include'}", f"-I{cpp / 'src'}"]
    subprocess.run(["g++", "-std=c++17", "-Wall", *include, *sources, "-o", tmp_path / "main"], check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (
        2,
        "the backend onnxruntime in a library that was built without it; wanted tensorrt; build it with "
        "-DMLPDEPLOY_WITH_ONNXRUNTIME=ON\n",
    )


def test_a_library_without_any_backend_is_not_configured(tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    command = ["cmake", "-S", ROOT / "cpp", "-B", tmp_path, "-DMLPDEPLOY_WITH_ONNXRUNTIME=OFF"]
    done = subprocess.run([*command, "-DMLPDEPLOY_BUILD_TESTS=OFF"], capture_output=True, text=True)
    assert done.returncode == 1 and "without ONNX Runtime the library needs" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("option", "why"),
    [
        (
            "-DMLPDEPLOY_FRAME_KERNEL=ON",
            "nvcc does not compile an empty file; name a C++ compiler that it takes in NVCC_",
        ),
        ("-DMLPDEPLOY_FRAME_KERNEL=OFF", "MLPDEPLOY_FRAME_KERNEL is off"),
    ],
)
def test_an_nvcc_that_refuses_the_host_compiler_stops_nothing(tmp_path: Path, option: str, why: str) -> None:
    if shutil.which("cmake") is None or "-DMLPDEPLOY_WITH_TENSORRT=ON" not in tensorrt_options():
        pytest.skip("no cmake, or no headers of TensorRT or CUDA")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'error: -- unsupported GNU version!' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    command = ["cmake", "-S", ROOT / "cpp", "-B", tmp_path / "out", "-DMLPDEPLOY_WITH_ONNXRUNTIME=OFF", option]
    command += ["-DMLPDEPLOY_BUILD_TESTS=OFF", f"-DMLPDEPLOY_NVCC={nvcc}", *tensorrt_options()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert why in done.stdout and "the library will normalize frames on the processor" in done.stdout
    assert ("unsupported GNU version" in done.stdout) == option.endswith("ON")
    assert str(nvcc) not in (tmp_path / "out/CMakeFiles/mlpdeploy_core.dir/build.make").read_text()


def test_a_static_library_is_found_and_linked(build: Path, artifacts: dict[str, Path], tmp_path: Path) -> None:
    static, opt, user = tmp_path / "static", tmp_path / "opt", tmp_path / "user"

    def run(*command: object) -> str:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    options = ["-DBUILD_SHARED_LIBS=OFF", "-DMLPDEPLOY_BUILD_TESTS=OFF", "-DCMAKE_SKIP_RPATH=ON"]
    onnxruntime = ROOT / "build" / "onnxruntime"
    run("cmake", "-S", ROOT / "cpp", "-B", static, f"-DONNXRUNTIME_ROOT={onnxruntime}", *options)
    # Of the objects that are there, as compiling them again takes minutes.
    objects = [file for name in ("core", "json") for file in build.glob(f"CMakeFiles/mlpdeploy_{name}.dir/**/*.o")]
    run("ar", "rcs", static / "libmlpdeploy.a", *objects)
    shutil.copy(build / "mlpdeploy-infer", static)
    run("cmake", "--install", static, "--prefix", opt)
    user.mkdir()
    shutil.copy(build / "tests" / "header_example.cpp", user / "main.cpp")
    (user / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(user LANGUAGES CXX)\nfind_package(mlpdeploy REQUIRED)\n"
        "add_executable(user main.cpp)\ntarget_link_libraries(user mlpdeploy::mlpdeploy)\n"
    )
    run("cmake", "-S", user, "-B", user / "out", f"-DCMAKE_PREFIX_PATH={opt}")
    run("cmake", "--build", user / "out")
    assert "china.jpg" in run(user / "out" / "user", artifacts["asmlp"], *sample_photographs())


def test_a_folder_without_headers_is_refused(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / "cpp" / "get_onnxruntime.py", tmp_path / "out", "--headers", tmp_path]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 1 and "holds no onnxruntime_c_api.h" in done.stderr
