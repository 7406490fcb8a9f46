"""The ONNX file that TensorRT is given: lowered for the target, with no node in it that the target does not know."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlpdeploy.env import require
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import CANONICAL, Manifest, checked_file, sha256_of

if TYPE_CHECKING:
    import onnx_ir as ir

# The form of the shift in native layers: of Pad, Slice and Concat the parser makes several times as many layers, and
# TensorRT-RTX larger engines: benchmarks/results/rtx_build.json.
NATIVE_SHIFT = "conv"


@dataclass(frozen=True)
class Network:
    """A lowered model on disk.

    Attributes:
        path: the ONNX file; its weights may be beside it.
        shift: the form of the axial shift; empty for a model without one.
        sha256: over the file and its weights.
    """

    path: Path
    shift: str
    sha256: str


def lowered_network(directory: Path, manifest: Manifest, target: str, shift: str, scratch: Path) -> Network:
    """Return the artifact's model lowered for a target: the file that it has for it, or the canonical one, lowered now.

    Args:
        directory: the artifact.
        target: `tensorrt` or `tensorrt-rtx`.
        shift: `plugin`, or a form in native layers: `conv` or `slice`.
        scratch: a folder for a file that has to be lowered.

    Raises:
        UsageError: `plugin` for a model without an axial shift.
        ArtifactError: a file of the artifact is missing or was changed, or has nodes that the target does not know.
    """
    require("onnx_ir")
    import onnx_ir as ir

    from mlpdeploy.export.lower import lower, resolve_target

    chosen, form = resolve_target(target, shift)  # type: ignore[arg-type]
    for name, entry in manifest.files.items():
        if entry.role in (target, "tensorrt") and entry.shift in (form, ""):
            path = checked_file(directory, manifest, name)
            _check(ir.load(path), path, entry.shift)
            weights = sha256_of(directory / entry.weights) if entry.weights else ""
            return Network(path, entry.shift, _joined(sha256_of(path), weights))
    model = ir.load(checked_file(directory, manifest, manifest.file_for(CANONICAL)))
    has_shift = any((node.domain, node.op_type) == ("mlpdeploy", "AxialShift") for node in model.graph)
    if shift == "plugin" and not has_shift:
        raise UsageError(f"--shift plugin for {manifest.model['name']}", "an AS-MLP", "leave --shift out")
    lower(model, chosen, form)
    path, weights = scratch / "network.onnx", "network.weights"
    _check(model, path, form)
    ir.save(model, path, external_data=weights, size_threshold_bytes=1024)
    return Network(path, form if has_shift else "", _joined(sha256_of(path), sha256_of(scratch / weights)))


def _check(model: ir.Model, path: Path, shift: str) -> None:
    """Raise ArtifactError for a node that is ours and that nobody lowered: TensorRT-RTX would abort on it."""
    known = {"AxialShift"} if shift == "plugin" else set()
    for node in model.graph:
        if node.domain and node.op_type not in known:
            raise ArtifactError(
                f"{path} has the node {node.name!r} ({node.domain}::{node.op_type}), which the target does not know",
                fix="export the model again",
            )


def _joined(*digests: str) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
