"""What an engine is, in a JSON file beside it; an engine's own bytes stay exactly what TensorRT wrote.

`engines/<fingerprint>.plan` (TensorRT) or `.engine` (TensorRT-RTX) and `engines/<fingerprint>.json`. The fingerprint is
a checksum over everything that decides which bytes a build gives: the same request finds the engine that is there. The
JSON file is written last, so an engine without one is a build that was killed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlpdeploy.errors import ArtifactError

FOLDER = "engines"
FORMAT = "mlpdeploy-engine"
VERSION = 1
SUFFIXES = {"tensorrt": ".plan", "tensorrt-rtx": ".engine"}


@dataclass(frozen=True)
class Fingerprint:
    """What decides which engine it is, and whether it can be loaded here.

    Attributes:
        target: `tensorrt` or `tensorrt-rtx`.
        version: of TensorRT, in full.
        gpu: the name of the GPU that it was built on; empty for one built without.
        compute_capabilities: that it runs on, `8.9` and so on.
        precision: of the graph, from the artifact's manifest.
        shift: the form of the axial shift; empty for a model without one.
        profiles: {input name: (min, opt, max) shapes} for each profile.
        flags: the builder options that were set.
        plugin_sha256: of the plugin library, which the engine needs to be loaded; empty without one.
        embedded_sha256: of the plugin's code that the engine carries; empty without any.
        source_sha256: of the artifact's canonical model.
        network_sha256: of the lowered model, weights included, that TensorRT was given.
    """

    target: str
    version: str
    gpu: str
    compute_capabilities: tuple[str, ...]
    precision: str
    shift: str
    profiles: tuple[dict[str, Any], ...]
    flags: dict[str, Any]
    plugin_sha256: str
    source_sha256: str
    network_sha256: str
    embedded_sha256: str = ""

    def name(self) -> str:
        """Return the engine's file name without a suffix: 16 hexadecimal digits."""
        return _sha256(dataclasses.asdict(self))[:16]


@dataclass(frozen=True, kw_only=True)
class BuildFacts:
    """What a build found out.

    Attributes:
        parse_seconds, build_seconds: what the build took.
        network_layers: {kind: how many} as parsed.
        network_types: {type: how many layers of the parsed network give it}.
        engine_layers: what the engine says about itself; None where it could not be asked: without a GPU, or as a
            warning says.
        scratch_bytes: memory of the GPU that a context needs beside the weights; None where it cannot be asked.
        warnings: what TensorRT had to say.
    """

    parse_seconds: float
    build_seconds: float
    network_layers: dict[str, int]
    network_types: dict[str, int]
    engine_layers: dict[str, Any] | None = None
    scratch_bytes: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sidecar(BuildFacts):
    """What `engines/<fingerprint>.json` says.

    Attributes:
        fingerprint: see there.
        file: the engine's name in the same folder.
        sha256, bytes: of the engine.
        driver: version of the NVIDIA driver it was built with; empty without one.
        measured_ms: {form of the shift: {rows: GPU milliseconds}} where `--shift auto` chose by them; else empty.
    """

    fingerprint: Fingerprint
    file: str
    sha256: str
    bytes: int
    driver: str
    measured_ms: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the file's text, with a checksum over everything else in it."""
        body = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return json.dumps({**body, "checksum": _sha256(body)}, indent=1, ensure_ascii=False) + "\n"


def read_sidecar(path: Path) -> Sidecar:
    """Return what a sidecar file says.

    Raises:
        ArtifactError: it is missing, no sidecar, of another version, or edited since it was written.
    """
    again = "build the engine again with mlpdeploy build --force"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error})", fix=again) from error
    if not isinstance(body, dict) or (body.get("format"), body.get("version")) != (FORMAT, VERSION):
        raise ArtifactError(f"{path} does not describe an engine", f"{FORMAT} version {VERSION}", again)
    if body.pop("checksum", None) != _sha256(body):
        raise ArtifactError(f"{path} was edited after it was written: its checksum differs", fix=again)
    fields = {key: value for key, value in body.items() if key not in ("format", "version")}
    mark = fields.pop("fingerprint")
    try:
        fingerprint = Fingerprint(
            **{
                **mark,
                "compute_capabilities": tuple(mark["compute_capabilities"]),
                "profiles": tuple(mark["profiles"]),
            }
        )
        return Sidecar(**{**fields, "fingerprint": fingerprint, "warnings": tuple(fields["warnings"])})
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is incomplete ({error})", fix=again) from error


def engines_of(directory: Path) -> list[Sidecar]:
    """Return what an artifact's engines are, by name; none for an artifact without engines."""
    return [read_sidecar(path) for path in sorted((directory / FOLDER).glob("*.json"))]


def _sha256(body: Any) -> str:
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
