"""From an artifact folder to a Session: what is asked for is checked before any backend is."""

from __future__ import annotations

from pathlib import Path

from mlpdeploy.env import closest
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import CANONICAL, read_manifest
from mlpdeploy.runtime.backends import BACKENDS, DEFAULT_BACKEND, session_of
from mlpdeploy.runtime.session import LoadOptions, Session

AUTO = "auto"
PRECISIONS = ("fp32", "bf16")


def load(
    directory: str | Path,
    backend: str | None = None,
    device: str | None = None,
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    role: str | None = None,
    precision: str | None = None,
    share_processors: bool = False,
    kernels: bool = True,
) -> Session:
    """Return a Session on an artifact folder.

    Args:
        directory: made by `mlpdeploy export`.
        backend: `onnxruntime` (the default), `openvino`, `torch` (the reference), `tensorrt` (an engine that
            `mlpdeploy build` made for this machine), `onnxruntime-tensorrt` (ONNX Runtime's TensorRT provider, which
            builds its own), or `auto`: the fastest of those that are installed and that the
            artifact has a file or an engine for, measured once on each machine.
        device: `cpu` or `cuda`; None takes CUDA where the backend and the machine have it.
        threads: of one run; None takes every processor that this process may use. `tensorrt` has none.
        max_batch: rows that go through the backend at once; None means 32, or what an engine was built for. A larger
            batch is split.
        role: which of the artifact's models: `canonical` or a target's name; None takes the one lowered for the
            backend, or the canonical one where there is none (OpenVINO needs one of its own).
        precision: what floats are computed in, `fp32` or `bf16`; None means the artifact's precision. Only OpenVINO
            computes in another one.
        share_processors: leave the processors to other processes as soon as a run ends. Otherwise ONNX Runtime's
            threads look for more work for a while: faster where the next run follows at once and nobody else computes.
        kernels: run our own CPU kernels where the file has operators for them and this machine has them compiled.

    Raises:
        UsageError: unknown backend, device, role or precision, or one that the backend or the processor has not.
        ArtifactError: the folder is incomplete, edited or truncated.
        MissingDependencyError: the backend's package is not installed.
    """
    name = DEFAULT_BACKEND if backend is None else backend
    if name != AUTO and name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}", fix=closest(name, (*BACKENDS, AUTO)))
    if device is not None and device.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}", "cpu or cuda")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}", "at least 1")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", fix=closest(precision, PRECISIONS))
    directory = Path(directory)
    manifest = read_manifest(directory)
    if len(manifest.inputs) < 1 or not manifest.outputs:
        raise ArtifactError(f"{directory} has no inputs or no outputs", fix="export the model again")
    if role is not None:
        roles = {entry.role: name for name, entry in manifest.models.items()}
        if role not in roles:
            raise UsageError(f"{directory} has no model for {role!r}", fix=closest(role, roles))
        if role == CANONICAL and any(spec.dtype != "float32" for spec in (*manifest.inputs, *manifest.outputs)):
            raise UsageError(
                f"the canonical model of {directory}, which takes float32",
                f"a model with the artifact's inputs, {manifest.inputs[0].dtype}",
                "leave the role out, or load the float32 artifact that this one was made from",
            )
    options = LoadOptions(device, threads, max_batch, role, precision, share_processors, kernels)
    if name == AUTO:
        from mlpdeploy.runtime.auto import fastest_backend

        name = fastest_backend(directory, manifest, options)
    return session_of(name, directory, manifest, options)
