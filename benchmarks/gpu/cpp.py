"""The C++ library on TensorRT: built here, compared with Python on the same engine, and how fast.

    python benchmarks/gpu/cpp.py DIR [-o results.json]    # DIR has an engine for this GPU
    python benchmarks/gpu/cpp.py --missing                # what is missing here for it, or nothing

Needs what runtime.py needs, and cmake, g++, the headers of CUDA and of the installed TensorRT, and the packages that
docs/how-to/cpp.md names. Never run on a GPU yet. Exits with 1 when the predictions differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.env import cpu_count, git_commit, installed_version
from mlpdeploy.errors import MlpDeployError
from mlpdeploy.images import sample_photographs
from mlpdeploy.plugins.toolchain import find_nvcc, find_tensorrt_include, tensorrt_version
from mlpdeploy.verify.tolerance import row_identity

ROOT = Path(__file__).resolve().parents[2]
BATCHES = (1, 8)
SECONDS = 3


def configure(folder: Path) -> list[str]:
    """Return CMake's command for a library with TensorRT alone."""
    command = ["cmake", "-S", str(ROOT / "cpp"), "-B", str(folder), "-DMLPDEPLOY_WITH_ONNXRUNTIME=OFF"]
    command += ["-DMLPDEPLOY_BUILD_TESTS=OFF", "-DMLPDEPLOY_WITH_TENSORRT=ON"]
    command += [f"-DTENSORRT_INCLUDE_DIR={find_tensorrt_include()}"]
    nvcc = find_nvcc()
    include = nvcc.resolve().parent.parent / "include" if nvcc else None
    return [*command, f"-DCUDA_INCLUDE_DIR={include}"] if include and (include / "cuda.h").is_file() else command


def missing(folder: Path) -> str:
    """Return why the library cannot be built or loaded here; empty where it can."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            return f"no {tool}"
    try:
        headers = tensorrt_version(find_tensorrt_include())
    except MlpDeployError as error:
        return str(error)
    installed = installed_version("tensorrt") or headers
    if _numbers(installed) < _numbers(headers) or _numbers(installed)[0] != _numbers(headers)[0]:
        return f"headers of TensorRT {headers}, and TensorRT {installed} is installed"
    done = subprocess.run(configure(folder), capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    lines = (done.stderr.strip() or "CMake fails").splitlines()
    return next((line for line in lines if "mlpdeploy needs" in line or "headers" in line), lines[-1]).strip()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def build(folder: Path) -> Path:
    """Return the program mlpdeploy-infer."""
    subprocess.run(configure(folder), check=True)
    subprocess.run(["cmake", "--build", str(folder), "--parallel", str(cpu_count())], check=True)
    return folder / "mlpdeploy-infer"


def environment() -> dict[str, str]:
    """Return the environment in which the loader finds the libraries of pip's TensorRT."""
    package = importlib.util.find_spec("tensorrt_libs")
    folders = [str(Path(package.origin).parent)] if package and package.origin else []
    return {**os.environ, "LD_LIBRARY_PATH": ":".join([*folders, os.environ.get("LD_LIBRARY_PATH", "")])}


def answer(command: list[str]) -> Any:
    """Return the JSON that a command prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment())
    return json.loads(done.stdout)


def compare(ours: Any, pythons: Any, precision: str) -> dict[str, Any]:
    """Return how far the probabilities of all classes are apart, in standard deviations of Python's, and the limit."""
    both = [_probabilities(document) for document in (ours, pythons)]
    if both[0].shape != both[1].shape:
        raise SystemExit(f"C++ tells {both[0].shape} probabilities, and Python {both[1].shape}")
    apart = float(np.abs(both[0] - both[1]).max()) / (float(both[1].std()) or 1.0)
    allowed = row_identity(precision, "tensorrt")
    return {"pictures": len(both[0]), "apart": apart, "allowed": allowed, "equal": apart <= allowed}


def _probabilities(document: Any) -> np.ndarray:
    """Return (pictures, classes), by the classes' numbers."""
    pictures = [sorted(picture["top"], key=lambda one: one["index"]) for picture in document["images"]]
    return np.array([[one["probability"] for one in picture] for picture in pictures])


def main(arguments: list[str]) -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--missing", action="store_true", help="say what is missing here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.missing:
            print(missing(Path(folder)), end="")
            return 0
        program, directory = str(build(Path(folder))), str(options.directory)
        manifest = json.loads((options.directory / "manifest.json").read_text())
        words = [directory, *map(str, sample_photographs()), "--backend", "tensorrt", "--top", "1000", "--json"]
        ours = answer([program, "classify", *words])
        pythons = answer([sys.executable, "-m", "mlpdeploy", "predict", *words])
        result = {"git_commit": git_commit(), "compared": compare(ours, pythons, manifest["precision"])}
        bench = [program, "bench", directory, "--backend", "tensorrt", "--seconds", str(SECONDS), "--json"]
        result["bench"] = [answer([*bench, "--batch", str(batch)]) for batch in BATCHES]
    text = json.dumps(result, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")
    if not result["compared"]["equal"]:
        print("FAILED: C++ and Python differ", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
