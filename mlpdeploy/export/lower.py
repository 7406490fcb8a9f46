"""Lower a canonical model for one target: which passes, in which forms, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError
from mlpdeploy.export.passes.flatten_tokens import flatten_tokens
from mlpdeploy.export.passes.fold_norm_affine import fold_norm_affine
from mlpdeploy.export.passes.form_axial_shift_blocks import form_axial_shift_blocks
from mlpdeploy.export.passes.form_cycle_blocks import form_cycle_blocks
from mlpdeploy.export.passes.form_permutator_blocks import form_permutator_blocks
from mlpdeploy.export.passes.lower_axial_shift import SHIFT_FORMS, ShiftForm, lower_axial_shift
from mlpdeploy.export.passes.lower_cycle_mlp import lower_cycle_mlp
from mlpdeploy.export.passes.lower_gelu import lower_gelu
from mlpdeploy.export.passes.lower_group_norm import NormForm, lower_group_norm
from mlpdeploy.export.passes.lower_permute_mlp import lower_permute_mlp
from mlpdeploy.export.passes.merge_patches import merge_patches
from mlpdeploy.export.passes.rewrite import PassReport, remove_unused

Shift = Literal["auto", "plugin", "conv", "slice"]


@dataclass(frozen=True)
class Target:
    """What a runtime wants to be given.

    Attributes:
        name: also the middle of the lowered file's name, `model.<name>.onnx`.
        shift: the form of the axial shift that `auto` means here, by the measurement named in docs/design.md.
        norm: the form of GroupNorm1.
        expand_gelu: whether Gelu is written as the operators that the runtime fuses.
        blocks: whether the runtime may have a kernel for whole blocks (`form_*_blocks`).
    """

    name: str
    shift: ShiftForm
    norm: NormForm
    expand_gelu: bool
    blocks: bool = False


TARGETS = {
    target.name: target
    for target in (
        Target("cpu", "conv", "instance", expand_gelu=True, blocks=True),
        Target("openvino", "conv", "layer", expand_gelu=False),
        Target("tensorrt", "plugin", "layer", expand_gelu=False),
        Target("tensorrt-rtx", "conv", "layer", expand_gelu=False),
    )
}


def resolve_targets(names: str | Sequence[str] | None, shift: Shift = "auto") -> list[tuple[Target, ShiftForm]]:
    """Return the targets, in the order of `TARGETS`, each with the form of its shift.

    Without a name: `tensorrt` for `--shift plugin`, else `cpu`.

    Raises:
        UsageError: unknown target or form, or a plugin for a target that has none.
    """
    if shift != "auto" and shift not in SHIFT_FORMS:
        raise UsageError(f"shift lowering {shift!r}", f"auto, {', '.join(SHIFT_FORMS)}")
    wanted = (names,) if isinstance(names, str) else tuple(names or ())
    resolved = dict(_resolve(name, shift) for name in wanted or ("tensorrt" if shift == "plugin" else "cpu",))
    return [(target, resolved[target]) for target in TARGETS.values() if target in resolved]


def _resolve(name: str, shift: Shift) -> tuple[Target, ShiftForm]:
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}", fix=closest(name, TARGETS))
    target = TARGETS[name]
    if shift == "plugin" and target.shift != "plugin":
        raise UsageError(f"the axial shift as a plugin for the target {name}", "conv or slice", "it has no plugins")
    return target, target.shift if shift == "auto" else shift


def lower(model: ir.Model, target: Target, shift: ShiftForm, *, blocks: bool = False) -> list[PassReport]:
    """Rewrite a canonical model in place for a target, and return what each pass did.

    Args:
        blocks: form whole blocks where the target may have a kernel for them. Who changes types between operators, or
            wants to see them, leaves it out; and who asks for another form of the shift wants to see that.
    """
    reports = [merge_patches(model), fold_norm_affine(model)]
    if blocks and target.blocks and shift == target.shift:
        reports += [form_axial_shift_blocks(model), form_permutator_blocks(model), form_cycle_blocks(model)]
    reports += [
        lower_axial_shift(model, shift),
        lower_group_norm(model, target.norm),
        lower_permute_mlp(model),
        lower_cycle_mlp(model),
        flatten_tokens(model),
    ]
    if target.expand_gelu:
        reports.append(lower_gelu(model))
    remove_unused(model)
    return reports
