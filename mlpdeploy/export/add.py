"""Add files lowered for further targets to an artifact that is there."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from mlpdeploy.artifact import changed_meanwhile, new_artifact, state_of_folder, write_manifest
from mlpdeploy.errors import UsageError
from mlpdeploy.export.export import Progress, lowered_files
from mlpdeploy.export.lower import TARGETS, Shift, resolve_targets
from mlpdeploy.manifest import CANONICAL, FileEntry, Manifest, checked_file, read_manifest
from mlpdeploy.plugins.cpu import ensure_cpu_library


def lower_artifact(
    directory: str | Path,
    target: str | Sequence[str],
    *,
    shift: Shift = "auto",
    force: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Add lowered files to a float32 artifact and return its manifest: the bytes of an export for all targets at once.

    The new folder takes the old one's place whole and verified, or not at all.

    Args:
        directory: made by `mlpdeploy export`.
        target: one name or several.
        shift: the axial shift in the new files, see `export_model`.
        force: replace files for these targets that are there.
        verify: compare with PyTorch before the folder changes.
        progress: called with a short text at the beginning of each step.

    Raises:
        UsageError: an option is impossible, the artifact is quantized, or it has a file for the target.
        ArtifactError: the folder is damaged or cannot be written, or another command has changed it meanwhile.
        VerificationError: a file does not compute what PyTorch computes.
    """
    directory, say = Path(directory).resolve(), progress or (lambda text: None)
    targets = resolve_targets(target, shift)
    before = state_of_folder(directory)
    manifest = read_manifest(directory)
    wanted = {chosen.name for chosen, _ in targets}
    _check(directory, manifest, wanted, shift, force)
    canonical = manifest.file_for(CANONICAL)
    has_shift = bool(manifest.files[canonical].shift)
    kept = {name: entry for name, entry in manifest.files.items() if not _belongs(name, manifest, wanted)}
    for name in kept:
        checked_file(directory, manifest, name)
    with new_artifact(directory) as staging:
        # Links, not copies; what the manifest does not name (engines, say) stays in the folder too.
        shutil.copytree(directory, staging, copy_function=_link, dirs_exist_ok=True)
        for name in manifest.files.keys() - kept.keys():
            (staging / name).unlink(missing_ok=True)
        files, passes = kept, [report for report in manifest.passes if report["target"] not in wanted]
        if any(chosen.blocks for chosen, _ in targets):
            ensure_cpu_library(say)
        for chosen, form in targets:
            say(f"lowering for {chosen.name}")
            written, reports = lowered_files(staging / canonical, staging, chosen, form if has_shift else "")
            files |= written
            passes += reports
        result = dataclasses.replace(
            manifest,
            files=dict(sorted(files.items(), key=lambda item: _rank(*item))),
            passes=tuple(sorted(passes, key=lambda report: list(TARGETS).index(report["target"]))),
            verification={},
        )
        write_manifest(staging, result)
        if verify:
            from mlpdeploy.verify import verify_or_raise

            say("comparing with PyTorch")
            verify_or_raise(staging, "this is a bug of mlpdeploy: please report it")
        if state_of_folder(directory) != before:
            raise changed_meanwhile(directory)
    return read_manifest(directory)


def _check(directory: Path, manifest: Manifest, wanted: set[str], shift: Shift, force: bool) -> None:
    if manifest.precision != "fp32":
        raise UsageError(
            f"{directory} is quantized ({manifest.precision})",
            "a float32 artifact",
            "lower the one that it was made from, and quantize that for the target",
        )
    if shift != "auto" and not manifest.files[manifest.file_for(CANONICAL)].shift:
        raise UsageError(f"--shift {shift} for {manifest.model['name']}", "an AS-MLP", "it has no axial shift")
    there = sorted(entry.role for entry in manifest.models.values() if entry.role in wanted)
    if there and not force:
        raise UsageError(f"{directory} already has a file for {there[0]}", fix="pass --force to replace it")


def _belongs(name: str, manifest: Manifest, targets: set[str]) -> bool:
    """Return whether a file is a model for one of the targets, or the weights of one."""
    models = {key: entry for key, entry in manifest.models.items() if entry.role in targets}
    return name in models or name in {entry.weights for entry in models.values()}


def _rank(name: str, entry: FileEntry) -> tuple[int, str]:
    """Return where a file stands in the manifest: the canonical one first, then by target, then what is no model."""
    order = [f"model.{target}." for target in TARGETS]
    place = next((index for index, start in enumerate(order) if name.startswith(start)), len(order))
    return (-1 if entry.role == CANONICAL else place, name)


def _link(source: str, path: str) -> None:
    """Give a file a second name, or copy it where the file system knows no such thing."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
