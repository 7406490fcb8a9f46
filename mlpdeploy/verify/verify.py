"""`verify_artifact`: names, axes and shapes, then values, rows and classes, of every file that can run here."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.artifact import changed_meanwhile, write_manifest
from mlpdeploy.env import installed_version, require
from mlpdeploy.errors import ArtifactError, MlpDeployError, VerificationError
from mlpdeploy.manifest import CANONICAL, FileEntry, Manifest, checked_file, read_manifest, state_dict_sha256
from mlpdeploy.runtime.backends import DEFAULT_BACKEND, GPU_BACKENDS, ROLE_BACKENDS
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import Session
from mlpdeploy.runtime.torch import reference_model
from mlpdeploy.verify.diverge import first_divergence
from mlpdeploy.verify.inputs import Pool, pools
from mlpdeploy.verify.interface import interface_failures
from mlpdeploy.verify.tolerance import rms
from mlpdeploy.verify.values import Outputs, Reference, value_checks, values_without_kernels

Progress = Callable[[str], None]


@dataclass(frozen=True)
class VerifyReport:
    """What was checked, and what came of it.

    Attributes:
        model: the registry's name.
        weights: where they come from.
        passed: whether every check of every file that can run here passed, and there was one.
        files: {file name: {"backend": who computed, "checks": [...], "skipped": reason or None, "divergence": sentence
            or None}}.
        photographs: how many of the images are real.
        reference: what the values were compared with.
    """

    model: str
    weights: str
    passed: bool
    files: dict[str, dict[str, Any]]
    photographs: int
    reference: str

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON data."""
        return dataclasses.asdict(self)

    @property
    def compared(self) -> bool:
        """Whether a file could be run here."""
        return any(file["checks"] for file in self.files.values())

    def failure(self) -> str:
        """Return one sentence about the first failure, or that nothing was compared, or an empty string."""
        if not self.compared:
            return "nothing was compared: none of the artifact's files can be run here"
        for name, file in self.files.items():
            failed = [check for check in file["checks"] if not check["passed"]]
            if failed:
                first = failed[0]
                figures = f"{first['check']}: {describe(first)}"
                more = f" (and {len(failed) - 1} more checks)" if len(failed) > 1 else ""
                where = f"; {file['divergence']}" if file["divergence"] else ""
                return f"{name} is not equal to PyTorch: {figures}{more}{where}"
        return ""

    def worst(self) -> float:
        """Return the largest error of any value check, relative to the spread of the outputs."""
        errors = [
            check["relative_error"]
            for file in self.files.values()
            for check in file["checks"]
            if check["check"].startswith("values") and "relative_error" in check
        ]
        return max(errors, default=float("nan"))


def describe(check: dict[str, Any]) -> str:
    """Return the figures of one check in words."""
    if "reason" in check:
        return str(check["reason"])
    if "agree" in check:
        return f"{check['agree']} of {check['rows']} rows"
    if "max_error" in check:
        bounds = f"allowed {check['allowed']:.1e}, PyTorch's own {check['pytorch_error']:.1e}"
        return f"error {check['max_error']:.1e}, {bounds}"
    return f"relative error {check['relative_error']:.1e}, allowed {check['allowed']:.1e}"


def verify_artifact(
    directory: str | Path,
    *,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    record: bool = True,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare every model of an artifact with PyTorch, and return what was found.

    The reference is the torch module with the artifact's own weights, in float64; how far a result may be from it
    follows from what PyTorch itself loses in the artifact's precision. Batches of 1, 2, 3 and 8 images,
    photographs among them; a second image size where height and width are open.

    Args:
        directory: made by `mlpdeploy export`.
        backend: whose results are compared, for the files that it runs; the other files are run by the first of
            `ROLE_BACKENDS` that is installed, and with None all of them. With `tensorrt` the engine for this machine is
            compared, and nothing else.
        device: where they are computed, see `load`; None means the CPU, or a GPU for `tensorrt`.
        threads: of one run.
        record: write the report into the manifest; one about an engine is never written, for it belongs to a machine.
        progress: called with a short text at the beginning of each step.

    Raises:
        ArtifactError: the folder is incomplete or edited, the weights are not those that were exported, or the folder
            cannot be written and `record` is wanted.
        MissingDependencyError: torch or the backend is not installed.
    """
    require("torch")
    directory, say = Path(directory), progress or (lambda text: None)
    manifest = read_manifest(directory)
    on_gpu = backend in GPU_BACKENDS
    device, record = (device, False) if on_gpu else (device or "cpu", record)
    if record and not os.access(directory, os.W_OK):
        raise ArtifactError(
            f"{directory} cannot be written", "a place for the report", "pass --no-record (record=False)"
        )
    if backend is not None or (device or "").startswith("cuda"):
        with load(directory, backend, device, threads=threads) as session:  # tells what is missing, before any work
            backend = backend and session.backend
    model = reference_model(directory, manifest)
    _check_weights(manifest, model)
    sets = pools(manifest)
    say(f"computing the reference in float64 and {manifest.precision}")
    references = [_reference(model, pool, manifest) for pool in sets]
    files: dict[str, dict[str, Any]] = {}
    if on_gpu:
        with load(directory, backend, device, threads=threads) as session:
            say(f"checking {session.file}")
            checks = _checks(session, sets, references)
            files[session.file] = {"backend": backend, "checks": checks, "skipped": None, "divergence": None}
    for name, entry in manifest.models.items() if not on_gpu else ():
        say(f"checking {name}")
        reason = _why_skipped(entry, manifest)
        if reason:
            files[name] = {"backend": None, "checks": [], "skipped": reason, "divergence": None}
            continue
        runs_on = _backend_for(entry.role, backend, device)
        files[name] = _check_file(directory, manifest, name, sets, references, model, runs_on, device, threads)
    results = [check["passed"] for file in files.values() for check in file["checks"]]
    report = VerifyReport(
        model=manifest.model["name"],
        weights=manifest.model["source"],
        passed=bool(results) and all(results),
        files=files,
        photographs=sets[0].photographs,
        reference="PyTorch, float64",
    )
    if record:
        now = read_manifest(directory)
        if dataclasses.replace(now, verification={}) != dataclasses.replace(manifest, verification={}):
            raise changed_meanwhile(directory)
        write_manifest(directory, dataclasses.replace(now, verification=report.to_dict()))
    return report


def verify_or_raise(directory: str | Path, fix: str) -> None:
    """Compare an artifact with PyTorch, as far as its files can be run here, and record the report in it.

    Raises:
        VerificationError: it does not compute what PyTorch computes; `fix` says what to do about it.
    """
    report = verify_artifact(directory)
    if report.compared and not report.passed:
        raise VerificationError(report.failure(), fix=fix)


def _why_skipped(entry: FileEntry, manifest: Manifest) -> str:
    """Return why a file's values are not compared, or an empty string."""
    if entry.role == CANONICAL and manifest.precision != "fp32":
        return "it is the float32 source of the others"
    if entry.role != CANONICAL and entry.shift == "plugin":
        return "it needs TensorRT and the plugin"
    if entry.role in ("tensorrt", "tensorrt-rtx") and manifest.float_precision == "bf16":
        return "only TensorRT computes its bfloat16 operators"
    return ""


def _backend_for(role: str, asked: str | None, device: str | None) -> str:
    """Return who runs a file: the backend that was asked for where it can, else the first that is installed."""
    able = ROLE_BACKENDS.get(role, (DEFAULT_BACKEND,))
    if asked in able:
        return asked
    if device is not None and device.startswith("cuda"):
        return DEFAULT_BACKEND
    return next((name for name in able if installed_version(name) is not None), able[0])


def _check_weights(manifest: Manifest, model: Any) -> None:
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if state_dict_sha256(state) != manifest.model["state_dict_sha256"]:
        raise ArtifactError(
            "the canonical model's weights are not those that were exported", fix="export the model again"
        )


def _reference(model: Any, pool: Pool, manifest: Manifest) -> Reference:
    """Run the torch module in float64 and in the artifact's precision, row by row, which bounds the memory."""
    import copy

    import torch

    names = [spec.name for spec in manifest.outputs]
    own_dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(manifest.precision, torch.float32)

    def run(dtype: Any) -> Outputs:
        rows = []
        module = copy.deepcopy(model).to(dtype)
        with torch.inference_mode():
            for image in pool.images:
                result = module(torch.from_numpy(image[None]).to(dtype))
                rows.append(result if isinstance(result, tuple) else (result,))
        return {name: np.concatenate([row[i].double().numpy() for row in rows]) for i, name in enumerate(names)}

    exact, framework = run(torch.float64), run(own_dtype)
    errors = {name: framework[name] - exact[name] for name in names}
    if manifest.precision == "fp16" and not all(np.isfinite(error).all() for error in errors.values()):
        # PyTorch's fp16 overflows where the file need not: nodes out of range stay in float32. bfloat16 has the range,
        # and three bits less.
        framework = run(torch.bfloat16)
        errors = {name: (framework[name] - exact[name]) / 8 for name in names}
    return Reference(
        exact,
        own_error={name: float(np.abs(error).max()) for name, error in errors.items()},
        own_rms={name: rms(error) for name, error in errors.items()},
    )


def _check_file(
    directory: Path,
    manifest: Manifest,
    name: str,
    sets: list[Pool],
    references: list[Reference],
    model: Any,
    backend: str,
    device: str | None,
    threads: int | None,
) -> dict[str, Any]:
    """Return the results of one file's checks, and where it diverges."""
    divergence = None
    role = manifest.files[name].role
    with load(directory, backend, device, threads=threads, role=role) as session:
        checks = _checks(session, sets, references)
    if checks[0]["passed"] and session.kernels:
        with load(directory, backend, device, threads=threads, role=role, kernels=False) as session:
            for pool, reference in zip(sets, references, strict=True):
                checks += values_without_kernels(session, pool, reference, manifest.precision)
    if checks[0]["passed"] and not all(check["passed"] for check in checks):
        path = checked_file(directory, manifest, name)
        batch = manifest.inputs[0].shape[0]
        rows = batch if isinstance(batch, int) else 1
        try:
            divergence = first_divergence(path, model, sets[0].images[:1].repeat(rows, 0), manifest.precision)
        except MlpDeployError as error:
            divergence = f"the first node that diverges could not be found ({error})"
    return {"backend": backend, "checks": checks, "skipped": None, "divergence": divergence}


def _checks(session: Session, sets: list[Pool], references: list[Reference]) -> list[dict[str, Any]]:
    """Return the results of all checks, that of the interface first; values are only compared where it is right."""
    manifest = session.manifest
    inputs, outputs = session.native_interface()
    failures = interface_failures("input", manifest.inputs, inputs)
    failures += interface_failures("output", manifest.outputs, outputs)
    checks: list[dict[str, Any]] = [
        {"check": "names, axes, dtypes and shapes", "passed": not failures, "reason": "; ".join(failures)}
    ]
    if not failures:
        for pool, reference in zip(sets, references, strict=True):
            checks += value_checks(session, pool, reference, manifest.precision)
    return checks
