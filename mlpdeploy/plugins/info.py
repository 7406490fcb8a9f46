"""What is known of the plugin library and of the tools that build it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mlpdeploy.errors import MlpDeployError
from mlpdeploy.plugins.elf import read_symbols
from mlpdeploy.plugins.find import builds, cache_directory, locate
from mlpdeploy.plugins.toolchain import find_toolchain, sources_sha256


def plugin_info() -> dict[str, Any]:
    """Return the library that is used, every build in the cache, and the tools; problems as text, none is raised.

    `library` is None where none can be used, and `problem` says why. `symbols` are read from the library itself;
    architectures and versions come from the record that the build wrote beside it.
    """
    report: dict[str, Any] = {
        "library": None,
        "problem": None,
        "record": None,
        "symbols": None,
        "cache": str(cache_directory()),
        "builds": [_build(library.path, library.record) for library in builds()],
        "tools": None,
        "tools_problem": None,
    }
    for face in ("IPluginV3", "IPluginV2DynamicExt"):
        try:
            library = locate(face)
            report["symbols"] = dataclasses.asdict(read_symbols(library.path))
        except MlpDeployError as error:
            report["problem"] = report["problem"] or str(error)
            continue
        report["library"], report["problem"] = str(library.path), None
        report["record"] = dataclasses.asdict(library.record) if library.record else None
        break
    try:
        tools = find_toolchain()
        report["tools"] = {name: str(value) for name, value in dataclasses.asdict(tools).items() if value is not None}
    except MlpDeployError as error:
        report["tools_problem"] = str(error)
    return report


def _build(path: Path, record: Any) -> dict[str, Any]:
    return {
        "path": str(path),
        "tensorrt_headers": record.tensorrt_headers if record else None,
        "architectures": record.architectures if record else None,
        "current": bool(record and record.sources_sha256 == sources_sha256()),
    }
