"""What an artifact holds: files, operators, passes, verification, engines."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from mlpdeploy.engines.outside import outside_commands
from mlpdeploy.engines.sidecar import engines_of
from mlpdeploy.env import installed_version
from mlpdeploy.manifest import checked_file, read_manifest


def inspect_artifact(directory: str | Path) -> dict[str, Any]:
    """Return the manifest as JSON data, with more in it.

    `files` has per model its operators, where the package onnx is installed; `engines` what the folder's engines say of
    themselves; `commands` {what for: command line} of NVIDIA's tools for these files.

    Raises:
        ArtifactError: the folder is incomplete, edited or truncated.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    files: dict[str, dict[str, Any]] = {}
    for name, entry in manifest.files.items():
        path = checked_file(directory, manifest, name)
        files[name] = {**dataclasses.asdict(entry), **(_operators(path) if name in manifest.models else {})}
    engines = engines_of(directory)
    return {
        **dataclasses.asdict(manifest),
        "files": files,
        "engines": [dataclasses.asdict(engine) for engine in engines],
        "commands": outside_commands(directory, manifest, engines),
    }


def _operators(path: Path) -> dict[str, Any]:
    """Return how often each operator stands in an ONNX file, the most frequent first."""
    if installed_version("onnx") is None:
        return {}
    import onnx

    model = onnx.load(path, load_external_data=False)
    counts = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    return {"nodes": sum(counts.values()), "operators": dict(counts.most_common())}
