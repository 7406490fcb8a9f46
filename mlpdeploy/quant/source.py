"""The float32 artifact that a quantization starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError
from mlpdeploy.export.lower import TARGETS, lower
from mlpdeploy.export.passes.lower_axial_shift import ShiftForm
from mlpdeploy.export.passes.rewrite import PassReport
from mlpdeploy.manifest import CANONICAL, Manifest, checked_file, read_manifest


@dataclass(frozen=True)
class Source:
    """A float32 artifact, ready to be lowered again.

    Attributes:
        directory: of the artifact.
        manifest: of the artifact.
        shifts: {target: the form of its axial shift} of the lowered files that are wanted.
    """

    directory: Path
    manifest: Manifest
    shifts: dict[str, ShiftForm]

    def lowered(
        self, target: str, *, expand_gelu: bool | None = None, blocks: bool = False
    ) -> tuple[ir.Model, list[PassReport]]:
        """Return the model lowered for a target in float32, and what the passes did; None means the target's Gelu."""
        chosen = TARGETS[target]
        if expand_gelu is not None:
            chosen = dataclasses.replace(chosen, expand_gelu=expand_gelu)
        model = ir.load(checked_file(self.directory, self.manifest, self.manifest.file_for(CANONICAL)))
        return model, lower(model, chosen, self.shifts.get(target, chosen.shift), blocks=blocks)


def open_source(directory: str | Path, targets: Sequence[str] | None = None) -> Source:
    """Return a float32 artifact that can be quantized.

    Args:
        directory: made by `mlpdeploy export`.
        targets: whom to make files for; None means those that the artifact has files for.

    Raises:
        ArtifactError: no artifact, or a damaged one.
        UsageError: it is quantized already, or a target is unknown.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if manifest.precision != "fp32":
        raise UsageError(
            f"{directory} is quantized already ({manifest.precision})",
            "a float32 artifact",
            "quantize the one that it was made from",
        )
    lowered = {entry.role: entry for entry in manifest.models.values() if entry.role != CANONICAL}
    chosen = list(lowered) if targets is None else list(dict.fromkeys(targets))
    for name in chosen:
        if name not in TARGETS:
            raise UsageError(f"unknown target {name!r}", fix=closest(name, TARGETS))
    shifts: dict[str, Any] = {name: lowered[name].shift for name in chosen if name in lowered and lowered[name].shift}
    return Source(directory, manifest, {name: shifts.get(name, TARGETS[name].shift) for name in chosen})
