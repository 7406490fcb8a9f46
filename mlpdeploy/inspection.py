"""What an artifact holds: files, operators, passes, verification."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from mlpdeploy.env import installed_version
from mlpdeploy.manifest import checked_file, read_manifest


def inspect_artifact(directory: str | Path) -> dict[str, Any]:
    """Return the manifest as JSON data, and per file its operators where the package onnx is installed.

    Raises:
        ArtifactError: the folder is incomplete, edited or truncated.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    files: dict[str, dict[str, Any]] = {}
    for name, entry in manifest.files.items():
        path = checked_file(directory, manifest, name)
        files[name] = {**dataclasses.asdict(entry), **(_operators(path) if name in manifest.models else {})}
    return {**dataclasses.asdict(manifest), "files": files}


def _operators(path: Path) -> dict[str, Any]:
    """Return how often each operator stands in an ONNX file, the most frequent first."""
    if installed_version("onnx") is None:
        return {}
    import onnx

    model = onnx.load(path, load_external_data=False)
    counts = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    return {"nodes": sum(counts.values()), "operators": dict(counts.most_common())}
