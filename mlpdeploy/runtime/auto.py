"""`backend="auto"`: the fastest backend for an artifact on this machine, measured once and remembered."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.artifact import write_file
from mlpdeploy.bench.measure import Candidate, Run, measure_interleaved
from mlpdeploy.engines.sidecar import FOLDER, Sidecar
from mlpdeploy.env import cpu_count, cpu_name, installed_version, sums_of_int8_saturate
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import CANONICAL, Manifest
from mlpdeploy.plugins.find import cache_directory
from mlpdeploy.runtime.backends import DEFAULT_BACKEND, ROLE_BACKENDS, session_of
from mlpdeploy.runtime.session import LoadOptions, Session

BATCHES = (1, 8)
SECONDS = 2.0  # per batch size, all backends together
MIN_RUNS = 5

# Backend -> the role of the file that it runs.
_OWN_ROLE = {DEFAULT_BACKEND: "cpu", "openvino": "openvino"}


def fastest_backend(directory: Path, manifest: Manifest, options: LoadOptions) -> str:
    """Return the backend that runs this artifact fastest here, without changing its precision.

    The first time it is measured, interleaved, and remembered in the user's cache folder for this model, processor,
    number of threads, precision and these versions. What was measured goes to stderr.

    Raises:
        UsageError: no installed backend can do what `options` ask for.
        ArtifactError: the artifact is damaged.
    """
    engine = _engine(directory, manifest, options)
    backends = [*_able(manifest, options), *(["tensorrt"] if engine else [])]
    if not backends:
        raise UsageError(
            "no installed backend can run this artifact as asked", fix="leave --precision out, or see: mlpdeploy doctor"
        )
    if len(backends) == 1:
        return backends[0]
    key = {
        **_key(manifest, options, backends),
        **({"engine": engine.sha256, "gpu": engine.fingerprint.gpu} if engine else {}),
    }
    path = cache_folder() / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.json"
    known = _remembered(path, key, backends)
    if known is not None:
        return known
    figures = _measure(directory, manifest, options, backends)
    winner = min(figures, key=lambda name: math.prod(figures[name].values()))
    _say(figures, winner)
    _remember(path, {"key": key, "ms": figures, "backend": winner})
    return winner


def cache_folder() -> Path:
    """Return where choices are remembered, see `cache_directory`."""
    return cache_directory("backends")


def _engine(directory: Path, manifest: Manifest, options: LoadOptions) -> Sidecar | None:
    """Return the engine of the artifact that TensorRT could run here as asked, or None."""
    if options.device == "cpu" or options.threads is not None or options.precision not in (None, manifest.precision):
        return None
    if options.role is not None and "tensorrt" not in ROLE_BACKENDS[options.role]:
        return None
    if not any((directory / FOLDER).glob("*.json")):  # before TensorRT is imported
        return None
    from mlpdeploy.runtime.tensorrt import fitting_engine

    return fitting_engine(directory, manifest, options)


def _able(manifest: Manifest, options: LoadOptions) -> list[str]:
    """Return the installed backends that have a file in the artifact and keep to the precision that is asked for.

    On a processor where OpenVINO's sums of 8-bit products saturate it is not among them for INT8 with 8-bit weights.
    """
    roles = {entry.role for entry in manifest.models.values()}
    if options.device is not None and options.device != "cpu":
        return [DEFAULT_BACKEND]
    saturates = manifest.needs_wide_sums and sums_of_int8_saturate()
    able = []
    for backend, role in _OWN_ROLE.items():
        # Without a file of its own ONNX Runtime runs the canonical one, which is in float32 whatever the artifact is.
        has_own = role in roles or (backend == DEFAULT_BACKEND and manifest.precision == "fp32")
        has_file = backend in ROLE_BACKENDS[options.role] if options.role else has_own
        keeps = options.precision in (None, manifest.precision) or backend != DEFAULT_BACKEND
        if has_file and keeps and not (saturates and backend == "openvino") and installed_version(backend) is not None:
            able.append(backend)
    return able


def _key(manifest: Manifest, options: LoadOptions, backends: list[str]) -> dict[str, Any]:
    return {
        "files": {name: entry.sha256 for name, entry in sorted(manifest.files.items()) if entry.role != CANONICAL},
        "model": manifest.model["state_dict_sha256"],
        "cpu": cpu_name(),
        "threads": options.threads or cpu_count(),
        "precision": options.precision or manifest.precision,
        "role": options.role,
        "device": options.device,
        "backends": {name: installed_version(name) for name in backends},
    }


def _remembered(path: Path, key: dict[str, Any], backends: list[str]) -> str | None:
    """Return the choice in a cache file, or None where there is none or the file is not what was written."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(entry, dict) or entry.get("key") != key or entry.get("backend") not in backends:
        return None
    return str(entry["backend"])


def _remember(path: Path, entry: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(entry, indent=1) + "\n").encode())
    except (OSError, ArtifactError) as error:
        sys.stderr.write(f"mlpdeploy: the choice cannot be remembered ({error}): it is measured again next time\n")


def _measure(
    directory: Path, manifest: Manifest, options: LoadOptions, backends: list[str]
) -> dict[str, dict[str, float]]:
    """Return {backend: {batch: median milliseconds}}."""
    figures: dict[str, dict[str, float]] = {name: {} for name in backends}
    sessions = {name: session_of(name, directory, manifest, options) for name in backends}
    try:
        first = sessions[backends[0]]
        size = manifest.model["config"]["image_size"]
        for batch in (first.fixed_batch,) if first.fixed_batch else BATCHES:
            (feed,) = first.random_feeds(batch, height_width=tuple(size)).values()
            candidates = [Candidate(name, _run(session)) for name, session in sessions.items()]
            for timing in measure_interleaved(candidates, [feed], min_runs=MIN_RUNS, seconds=SECONDS):
                figures[timing.name][str(batch)] = timing.p50_ms
    finally:
        for session in sessions.values():
            session.close()
    return figures


def _run(session: Session) -> Run:
    return functools.partial(_outputs, session, session.inputs[0].name)


def _outputs(session: Session, name: str, batch: np.ndarray) -> list[np.ndarray]:
    return list(session.run({name: batch}).values())


def _say(figures: dict[str, dict[str, float]], winner: str) -> None:
    texts = [
        f"{name} " + ", ".join(f"{time_ms:.1f} ms at batch {batch}" for batch, time_ms in times.items())
        for name, times in figures.items()
    ]
    sys.stderr.write(f"mlpdeploy: measured {'; '.join(texts)}: takes {winner} on this machine from now on\n")
