"""Who is evaluated: each artifact on each backend, and PyTorch as the reference of the artifacts that share weights."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlpdeploy.classification import check_classifier
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import Manifest, read_manifest
from mlpdeploy.runtime.backends import DEFAULT_BACKEND

REFERENCE = "torch"  # the backend that the others are compared with


@dataclass(frozen=True)
class Candidate:
    """An artifact on a backend.

    Attributes:
        name: the artifact's folder, as short as it is unique among those given.
        directory: the artifact.
        backend: as `load` takes it.
        weights: the checksum of the model's weights: candidates with the same share a reference.
    """

    name: str
    directory: Path
    manifest: Manifest
    backend: str
    weights: str


def list_candidates(
    directories: Sequence[str | Path], backends: Sequence[str], torch: bool | None
) -> tuple[list[Candidate], list[str]]:
    """Return the candidates in the order of the table, and notes on what was left out.

    The reference of a set of weights stands before its first artifact. It is rebuilt from the artifact in fp32, or from
    the first where none is in fp32.

    Args:
        directories: artifacts of classifiers with equally many classes.
        backends: empty means the default one.
        torch: whether to run the reference; None means where PyTorch is installed.

    Raises:
        UsageError: nothing given, an artifact twice, one that is no classifier, or different classes.
        ArtifactError: a folder is no artifact, or its labels do not fit its classes.
    """
    paths = [Path(each) for each in ([directories] if isinstance(directories, str | Path) else directories)]
    if not paths:
        raise UsageError("no artifact is given", "at least one folder made by mlpdeploy export")
    names = _short_names(paths)
    manifests = [read_manifest(path) for path in paths]
    for path, manifest in zip(paths, manifests, strict=True):
        check_classifier(manifest, path)
    counts = [class_count(manifest) for manifest in manifests]
    if len(set(counts)) > 1:
        other = next(index for index, count in enumerate(counts) if count != counts[0])
        raise UsageError(
            f"{paths[0]} has {counts[0]} classes and {paths[other]} {counts[other]}", "artifacts for the same classes"
        )
    for path, manifest, count in zip(paths, manifests, counts, strict=True):
        if manifest.labels and len(manifest.labels) != count:
            raise ArtifactError(f"{path} has {len(manifest.labels)} labels", f"{count}, one for each class")
        if manifest.labels != manifests[0].labels:
            raise UsageError(f"{paths[0]} and {path} have different labels", "artifacts for the same classes")
    chosen = list(dict.fromkeys(backends)) or [DEFAULT_BACKEND]
    notes = []
    if torch is None and importlib.util.find_spec("torch") is None:
        notes.append("PyTorch is not installed: no reference to agree with")
        torch = False
    candidates: list[Candidate] = []
    seen: set[str] = set()
    rows = list(zip(names, paths, manifests, strict=True))
    for name, path, manifest in rows:
        weights = str(manifest.model.get("state_dict_sha256"))
        if torch is not False and weights not in seen:
            seen.add(weights)
            same = [row for row in rows if str(row[2].model.get("state_dict_sha256")) == weights]
            source = next((row for row in same if row[2].precision == "fp32"), same[0])
            candidates.append(Candidate(*source, backend=REFERENCE, weights=weights))
        candidates += [Candidate(name, path, manifest, backend, weights) for backend in chosen]
    return list({(c.name, c.backend): c for c in candidates}.values()), notes


def class_count(manifest: Manifest) -> int:
    """Return the number of classes of a classifier."""
    return int(manifest.outputs[0].shape[1])


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as few as tell them apart."""
    whole = [Path(os.path.abspath(path)).parts for path in paths]
    for index, parts in enumerate(whole):
        if parts in whole[:index]:
            raise UsageError(f"{paths[index]} is given twice", "each artifact once")
    for count in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different parts")
