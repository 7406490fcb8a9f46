"""The ONNX file that TensorRT is given: lowered for the target, with no node in it that the target does not know."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlpdeploy.env import require
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import CANONICAL, Manifest, checked_file, sha256_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from mlpdeploy.export.passes.lower_axial_shift import ShiftForm

# The form of the shift in native layers: of Pad, Slice and Concat the parser makes several times as many layers, and
# TensorRT-RTX larger engines: benchmarks/results/rtx_build.json.
NATIVE_SHIFT: Literal["conv"] = "conv"
FORMS = ("plugin", NATIVE_SHIFT)
FILE = "network.onnx"


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


def lowered_network(
    directory: Path, manifest: Manifest, target: str, shift: ShiftForm, scratch: Path, opset: int | None = None
) -> Network:
    """Return the artifact's model lowered for a target: the file that it has for it, or the canonical one, lowered now.

    Args:
        directory: the artifact.
        target: `tensorrt` or `tensorrt-rtx`.
        shift: `plugin`, or a form in native layers: `conv` or `slice`.
        scratch: a folder for a file that has to be lowered.
        opset: the newest that the target knows; None stands for any.

    Raises:
        UsageError: `plugin` for a model without an axial shift; or a quantized artifact without a model for the target,
            for its canonical one is not quantized; or one that the opset cannot say.
        ArtifactError: a file of the artifact is missing or was changed, or has nodes that the target does not know.
    """
    require("onnx_ir")
    import onnx_ir as ir

    from mlpdeploy.export.lower import TARGETS, lower

    name = _own_file(manifest, target, shift)
    if name is not None:
        entry, path = manifest.files[name], checked_file(directory, manifest, name)
        model = ir.load(path)
        _check(model, path, entry.shift)
        if opset is not None and model.graph.opset_imports[""] > opset:
            return _older(model, entry.shift, scratch, opset)
        weights = sha256_of(directory / entry.weights) if entry.weights else ""
        return Network(path, entry.shift, _joined(sha256_of(path), weights))
    if manifest.precision != "fp32":
        other = any(_own_file(manifest, target, form) for form in FORMS)
        again = f"run: mlpdeploy quantize FLOAT32_ARTIFACT --precision {manifest.precision} --target {target}"
        first = f", after: mlpdeploy lower FLOAT32_ARTIFACT --target {target} --shift {shift} --force" if other else ""
        plugin = ", or build the plugin: mlpdeploy plugin build" if other and shift == NATIVE_SHIFT else ""
        raise UsageError(
            f"{directory} has no {manifest.precision} model for {target} with the shift as {shift}",
            fix=f"{again}{first}{plugin}",
        )
    model = ir.load(checked_file(directory, manifest, manifest.file_for(CANONICAL)))
    has_shift = any((node.domain, node.op_type) == ("mlpdeploy", "AxialShift") for node in model.graph)
    if shift == "plugin" and not has_shift:
        raise UsageError(f"--shift plugin for {manifest.model['name']}", "an AS-MLP", "leave --shift out")
    lower(model, TARGETS[target], shift)
    _check(model, scratch / FILE, shift)
    form = shift if has_shift else ""
    return _saved(model, form, scratch) if opset is None else _older(model, form, scratch, opset)


def _older(model: ir.Model, shift: str, scratch: Path, opset: int) -> Network:
    """Return the network in an opset that the target knows."""
    from mlpdeploy.export.passes.lower_opset import lower_opset

    refused = lower_opset(model, opset).refused
    if refused:
        node, why = next(iter(refused.items()))
        raise UsageError(f"{node} is {why}", f"a model that opset {opset} can say", "use TensorRT 10 or newer")
    return _saved(model, shift, scratch)


def _saved(model: ir.Model, shift: str, scratch: Path) -> Network:
    import onnx_ir as ir

    path, weights = scratch / FILE, "network.weights"
    ir.save(model, path, external_data=weights, size_threshold_bytes=1024)
    return Network(path, shift, _joined(sha256_of(path), sha256_of(scratch / weights)))


def has_own_file(manifest: Manifest, target: str, shift: str) -> bool:
    """Return whether the artifact has a file for a target with the shift as `plugin`, or in native layers."""
    return _own_file(manifest, target, shift) is not None


def _own_file(manifest: Manifest, target: str, shift: str) -> str | None:
    """Return the artifact's own file for a target with this form of the shift; of a quantized one, any native form."""
    forms = {shift, ""} if shift == "plugin" or manifest.precision == "fp32" else {"conv", "slice", ""}
    for role in (target, "tensorrt"):
        for name, entry in manifest.files.items():
            if entry.role == role and entry.shift in forms:
                return name
    return None


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
