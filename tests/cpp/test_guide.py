"""docs/how-to/cpp.md and the head of session.h as a stranger follows them: every command and every block of code."""

from __future__ import annotations

import os
import re
import shlex
import struct
import subprocess
from pathlib import Path

import pytest
from native import ROOT, tensorrt_options
from tiny import tiny_asmlp

from mlpdeploy.export.export import export_model
from mlpdeploy.images import sample_photographs

PAGE = ROOT / "docs" / "how-to" / "cpp.md"
# The camera of the examples gives two frames.
CAMERA = """
#include <cstdio>
struct Frame { const std::uint8_t* rgb; int height, width; std::ptrdiff_t stride; };
struct Camera {
  std::vector<std::uint8_t> pixels = std::vector<std::uint8_t>(224 * 224 * 3, 100);
  int left = 2;
  bool next(Frame& frame) { return frame = {pixels.data(), 224, 224, 224 * 3}, left-- > 0; }
};
int main() {
  Camera camera;
  Frame frame{};
  static_cast<void>(frame), static_cast<void>(camera);
  try {
"""
END = """
    return 0;
  } catch (const mlpdeploy::Error& error) {
    std::fprintf(stderr, "%s\\n", error.what());
    return error.exit_code();
  }
}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), flags=re.S | re.M)


def commands() -> list[str]:
    """Every line of shell on the page, without its comment."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [" ".join(shlex.split(line, comments=True)) if "<" not in line else line for line in lines]


@pytest.fixture(scope="module")
def place(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root, with what the page's commands name."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "build").symlink_to(ROOT / "build")
    (folder / "cpp").symlink_to(ROOT / "cpp")
    export_model(tiny_asmlp(image_size=(224, 224), num_classes=1000), folder / "asmlp_s", verify=False)
    (folder / "photo.jpg").symlink_to(sample_photographs()[0])
    photograph = sample_photographs()[0].read_bytes()
    (folder / "frames").write_bytes(2 * (struct.pack("<I", len(photograph)) + photograph))
    done = subprocess.run(["cmake", "--install", build, "--prefix", folder / "opt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def programs(place: Path) -> Path:
    """Every block of C++ and the program at the head of the header, built as the page's CMake block says."""
    (cmake,) = blocks("cmake")
    header = (ROOT / "cpp" / "include" / "mlpdeploy" / "session.h").read_text()
    example = re.search(r"^//   #include <mlpdeploy/session\.h>\n.*?^//   }\n", header, flags=re.S | re.M)
    assert example is not None
    sources = {"header": re.sub(r"^//(   )?", "", example[0], flags=re.M)}
    assert len(sources["header"].splitlines()) == 20
    for index, block in enumerate(blocks("cpp")):
        lines = block.splitlines(keepends=True)
        includes = [line for line in lines if line.startswith("#include")] or ["#include <mlpdeploy/session.h>\n"]
        body = [line for line in lines if not line.startswith("#include")]
        sources[f"block{index}"] = "".join(includes) + CAMERA + "".join(body) + END
    text = "cmake_minimum_required(VERSION 3.22)\nproject(stranger LANGUAGES CXX)\n"
    for name, source in sources.items():
        folder = place / name
        folder.mkdir()
        (folder / "main.cpp").write_text(source)
        (folder / "CMakeLists.txt").write_text("add_executable(camera main.cpp)\n" + cmake)
        # A target of this name for each, as the page has only one.
        (folder / "CMakeLists.txt").write_text((folder / "CMakeLists.txt").read_text().replace("camera", f"{name}_it"))
        text += f"add_subdirectory({name})\n"
    (place / "CMakeLists.txt").write_text(text)
    for command in (
        ["cmake", "-S", place, "-B", place / "out", f"-DCMAKE_PREFIX_PATH={place / 'opt'}"],
        ["cmake", "--build", place / "out", "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return place / "out"


def test_the_program_at_the_head_of_the_header_runs(place: Path, programs: Path) -> None:
    command = [programs / "header" / "header_it", "asmlp_s", *sample_photographs()]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" %  ") == 5 * len(sample_photographs())


@pytest.mark.parametrize(
    ("index", "told"),
    [
        (0, ""),
        (1, ""),
        (2, "CUDA provider"),
        (3, "nvinfer" if "-DMLPDEPLOY_WITH_TENSORRT=ON" in tensorrt_options() else "tensorrt"),
    ],
)
def test_every_block_of_code_runs(place: Path, programs: Path, index: int, told: str) -> None:
    assert len(blocks("cpp")) == 4
    program = programs / f"block{index}" / f"block{index}_it"
    done = subprocess.run([program], cwd=place, capture_output=True, text=True)
    # Those for a GPU say what is missing here.
    assert told in done.stderr and (done.returncode == 0) == (not told), done.stderr


# What takes minutes, or changes the machine: done by hand.
BY_HAND = ("sudo apt install", "make cpp", "cmake --build", "python cpp/check_headers.py")


def test_every_command_runs(place: Path) -> None:
    done = 0
    for line in commands():
        if line.startswith(BY_HAND):
            continue
        line = line.partition(" && cmake --install build/mine")[0].replace("/opt/onnxruntime", "build/onnxruntime")
        line = line.replace("/opt/mlpdeploy", str(place / "again")).replace("build/mine", str(place / "mine"))
        line = line.replace("bench asmlp_s", "bench asmlp_s --seconds 0")
        if "TENSORRT_ROOT" in line:
            continue  # needs TensorRT; tests/cpp/test_tensorrt.py configures with its headers
        ran = subprocess.run(["bash", "-c", line], cwd=place, capture_output=True, text=True, env={**os.environ})
        on_gpu = "cuda:0" in line
        assert (ran.returncode == 0) != on_gpu, (line, ran.stdout, ran.stderr)
        assert "\n" not in ran.stderr.strip() or not on_gpu
        done += 1
    assert done >= 6
    installed = place / "again" / "bin" / "mlpdeploy-infer"
    done_there = subprocess.run([installed, "--version"], capture_output=True, text=True)
    assert done_there.returncode == 0 and done_there.stdout.startswith("mlpdeploy-infer ")
