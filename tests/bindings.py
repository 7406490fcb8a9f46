"""TensorRT's real Python bindings without TensorRT: a process in which `import tensorrt` gives one version's.

The bindings are small packages apart from TensorRT's libraries, which cannot be installed everywhere: `make bindings`
puts them beside the virtual environment, and stub libraries make them load.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mlpdeploy

VERSIONS = {8: "8.6.1", 10: "10.16.1.11", 11: "11.4.0.106"}
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin", "nvparsers")
BINDINGS = Path(os.environ.get("MLPDEPLOY_BINDINGS") or Path(sys.prefix) / "tensorrt-bindings")
STUB = Path(__file__).parent / "runtime" / "stub_nvinfer.c"


def run_with_bindings(
    program: Path, major: int, scratch: Path, request: Any = None, real_registry: bool = False
) -> dict[str, Any]:
    """Return the JSON that a program prints which finds these bindings; it gets `request` as JSON on stdin.

    Args:
        scratch: a folder that keeps the stub libraries between two calls.
        real_registry: take the plugin registry of the dispatch runtime, a real one, which is there for 11 only.
    """
    folder = BINDINGS / str(major)
    if not (folder / "tensorrt_bindings").is_dir():
        pytest.skip(f"TensorRT {major}'s bindings are not in {folder}: make bindings")
    place = scratch / f"{major}{'-registry' if real_registry else ''}"
    libraries = [str(place)]
    if real_registry:
        libraries.append(str(_dispatch().parent))
    if not place.exists():
        _make(place, major, _dispatch() if real_registry else None)
    paths = [place, folder, Path(mlpdeploy.__file__).parent.parent]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    command = [sys.executable, str(program)]
    done = subprocess.run(command, env=environment, input=json.dumps(request), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # TensorRT's own logger writes to stdout too; the program's answer is the last line.
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _dispatch() -> Path:
    """Return TensorRT 11's dispatch library, in which its plugin registry is."""
    found = importlib.util.find_spec("tensorrt_dispatch_libs")
    if found is None or found.origin is None:
        pytest.skip("no tensorrt-dispatch-cu13-libs: see tests/plugins/requirements.txt")
    return Path(found.origin).parent / "libnvinfer_dispatch.so.11"


def _make(place: Path, major: int, registry: Path | None) -> None:
    """Make a package `tensorrt` as the real one is, and stub libraries beside it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stub libraries")
    (place / "tensorrt" / "plugin").mkdir(parents=True)
    text = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    (place / "tensorrt" / "__init__.py").write_text(text)
    (place / "tensorrt" / "plugin" / "__init__.py").write_text("from tensorrt_bindings.plugin import *\n")
    real = ["-DREAL_REGISTRY", "-Wl,--no-as-needed", str(registry)] if registry else []
    for library in LIBRARIES:
        name = f"lib{library}.so.{major}"
        command = [compiler, "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", str(STUB), *real]
        subprocess.run([*command, "-o", str(place / name)], check=True)
