"""Export: from a model to a verified artifact folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch

from mlpdeploy.artifact import check_output, new_artifact, write_manifest
from mlpdeploy.env import tool_versions
from mlpdeploy.errors import InternalError, UsageError
from mlpdeploy.export.labels import Labels, labels_for
from mlpdeploy.export.lower import Shift, Target, lower, resolve_targets
from mlpdeploy.export.passes.lower_axial_shift import ShiftForm
from mlpdeploy.export.preprocessing import check_fits, preprocessing_for
from mlpdeploy.export.trace import DEFAULT_OPSET, INPUT_NAME, ExportShape, onnx_from_model
from mlpdeploy.manifest import (
    CANONICAL,
    WEIGHTS,
    FileEntry,
    Manifest,
    Preprocessing,
    TensorSpec,
    file_entry,
    read_manifest,
    state_dict_sha256,
)
from mlpdeploy.models.asmlp import AsMlp
from mlpdeploy.models.build import MODULES, Model, model_from_config
from mlpdeploy.models.create import create_model
from mlpdeploy.models.statistics import model_statistics
from mlpdeploy.plugins.cpu import ensure_cpu_library

CANONICAL_FILE = "model.onnx"
# The lowered file keeps its weights beside it, which a runtime maps instead of copying: a third less memory at load.
# Small constants stay inside, where graph optimizers see them.
INLINE_BYTES = 1024
_TOOLS = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "numpy")

Progress = Callable[[str], None]


def export_model(
    model: str | Model,
    directory: str | Path,
    *,
    checkpoint: str | Path | None = None,
    image_size: int | tuple[int, int] | Literal["dynamic"] | None = None,
    batch: int | None = None,
    shift: Shift = "auto",
    target: str | Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
    labels: Labels | None = None,
    preprocessing: Preprocessing | None = None,
    force: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Write an artifact folder and return its manifest. The folder appears whole and verified, or not at all.

    Args:
        model: a name for `create_model`, or a model that it returned, of which config and weights count: not its hooks.
        directory: the folder to make.
        checkpoint: only with a name.
        image_size: pixels; `dynamic` leaves height and width open, but for a Vision Permutator; None means the model's
            own.
        batch: rows; None leaves it open.
        shift: the axial shift in the lowered file: `conv`, `slice`, `plugin`, or `auto`, the target's fastest.
        target: whom a lowered file is for, one name or several: `cpu` (default), `openvino` or `tensorrt` (default for
            `plugin`).
        opset: of the standard operators.
        labels: one per class; None means the registry's, ImageNet-1k's for 1000 classes, else `class 0`, `class 1`, ...
        preprocessing: how the model's images were prepared in training; None means the registry's, see
            `preprocessing_for`.
        force: replace an artifact that is there.
        verify: compare with PyTorch before the folder appears.
        progress: called with a short text at the beginning of each step.

    Raises:
        UsageError: an option is impossible, or the folder is taken.
        CheckpointError: the checkpoint cannot be read or does not fit.
        ArtifactError: the folder cannot be written.
        VerificationError: the export does not compute what PyTorch computes.
    """
    directory, say = Path(directory), progress or (lambda text: None)
    check_output(directory, force)
    targets = resolve_targets(target, shift)
    if batch is not None and batch < 1:
        raise UsageError(f"batch is {batch}", "at least 1, or dynamic")
    dynamic = image_size == "dynamic"
    size = None if isinstance(image_size, str) else image_size
    if isinstance(model, str):
        say("building the model")
        model = create_model(model, image_size=size, checkpoint=checkpoint)
    elif checkpoint is not None:
        raise UsageError("a checkpoint together with a model", fix="pass it to create_model")
    _check_model(model, size)
    has_shift = isinstance(model, AsMlp)
    if shift != "auto" and not has_shift:
        raise UsageError(f"--shift {shift} for {model.name}", "an AS-MLP", "other models have no axial shift")
    names = labels_for(model, labels)
    if preprocessing is None:
        preprocessing = preprocessing_for(model)
    else:
        check_fits(preprocessing, model)
    say("tracing to ONNX")
    canonical = onnx_from_model(model, ExportShape(batch, dynamic), opset)
    with new_artifact(directory) as staging:
        inputs, outputs = _tensor_specs(canonical)
        _save(canonical, staging / CANONICAL_FILE)
        files = {CANONICAL_FILE: file_entry(staging / CANONICAL_FILE, CANONICAL, "function" if has_shift else "")}
        passes: list[dict[str, Any]] = []
        if any(chosen.blocks for chosen, _ in targets):
            ensure_cpu_library(say)
        for chosen, form in targets:
            say(f"lowering for {chosen.name}")
            written, reports = lowered_files(staging / CANONICAL_FILE, staging, chosen, form if has_shift else "")
            files |= written
            passes += reports
        manifest = Manifest(
            model=_describe(model),
            inputs=inputs,
            outputs=outputs,
            opset=opset,
            precision="fp32",
            preprocessing=preprocessing,
            labels=tuple(names),
            files=files,
            passes=tuple(passes),
            tools=tool_versions(_TOOLS),
        )
        write_manifest(staging, manifest)
        if verify:
            from mlpdeploy.verify import verify_or_raise

            say("comparing with PyTorch")
            verify_or_raise(staging, "this is a bug of mlpdeploy: please report it")
        check_output(directory, force)  # another command may have made it meanwhile
    return read_manifest(directory)


def lowered_files(
    canonical: Path, directory: Path, target: Target, shift: ShiftForm | Literal[""]
) -> tuple[dict[str, FileEntry], list[dict[str, Any]]]:
    """Write a canonical file's model lowered for one target; return the new files' entries and the passes' reports.

    The canonical file is read again for each target, so that a target added later gets the same bytes.

    Args:
        canonical: path of the canonical file.
        directory: to write to.
        shift: empty for a model without one.
    """
    model = ir.load(canonical)
    reports = lower(model, target, shift or target.shift, blocks=True)
    passes = [{"target": target.name, **report.to_dict()} for report in reports]
    return write_lowered(model, directory, target.name, shift), passes


def write_lowered(model: ir.Model, directory: Path, target: str, shift: str) -> dict[str, FileEntry]:
    """Write a lowered model and, beside it, its weights; return the entries of both files."""
    name, weights = f"model.{target}.onnx", f"model.{target}.weights"
    ir.save(model, directory / name, external_data=weights, size_threshold_bytes=INLINE_BYTES)
    return {
        name: file_entry(directory / name, target, shift, weights),
        weights: file_entry(directory / weights, WEIGHTS),
    }


def _check_model(model: Model, size: int | tuple[int, int] | None) -> None:
    if type(model) not in MODULES.values():  # whose layers are built anew to be traced
        raise UsageError(f"a {type(model).__name__}", "a model from mlpdeploy.create_model")
    if size is not None:
        wanted = (size, size) if isinstance(size, int) else tuple(size)
        if wanted != model.config.image_size:
            raise UsageError(
                f"image size {wanted} for a model made for {model.config.image_size}", fix="pass it to create_model"
            )
    state = model.state_dict()
    own = {name: tensor.shape for name, tensor in model_from_config(model.config, "meta").state_dict().items()}
    if {name: tensor.shape for name, tensor in state.items()} != own:
        changed = next(
            name for name in (*own, *state) if name not in own or name not in state or state[name].shape != own[name]
        )
        raise UsageError(
            f"a model that was changed after it was made ({changed})",
            "the layers of its config",
            "pass num_classes and the like to create_model, and load the weights into that",
        )
    for name, tensor in state.items():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise UsageError(
                f"the weight {name} is {tensor.dtype} on {tensor.device}", "float32", "model.float().cpu()"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise UsageError(f"the weight {name} has NaN or infinite values", "finite weights")


def _save(model: ir.Model, path: Path) -> None:
    """Write the model; the same model gives the same bytes."""
    proto = ir.to_proto(model)
    if proto.ByteSize() >= 2**31:
        raise InternalError(f"{path.name} would be {proto.ByteSize()} bytes, over protobuf's limit")
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _tensor_specs(model: ir.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    def spec(value: ir.Value) -> TensorSpec:
        assert value.shape is not None and value.dtype is not None
        shape = tuple(int(size) if isinstance(size, int) else str(size.value) for size in value.shape)
        layout = {4: "NCHW", 2: "NK"}[len(shape)]
        return TensorSpec(str(value.name), shape, str(value.dtype.numpy()), layout)

    inputs = tuple(spec(value) for value in model.graph.inputs)
    if [item.name for item in inputs] != [INPUT_NAME]:
        raise InternalError(f"the traced model has the inputs {[item.name for item in inputs]}")
    return inputs, tuple(spec(value) for value in model.graph.outputs)


def _describe(model: Model) -> dict[str, Any]:
    config = model.config
    statistics = model_statistics(model, config.image_size, config.in_chans)
    return {
        "name": model.name,
        "family": config.family,
        "source": model.source,
        "random_weights": model.source.startswith("random"),
        "config": dataclasses.asdict(config),
        "state_dict_sha256": state_dict_sha256(
            {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
        ),
        "parameters": statistics.parameters,
        "macs": statistics.macs,
    }
