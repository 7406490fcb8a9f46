"""How fast a quantized artifact is here beside the float32 one: a quick look in passing, not a benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlpdeploy.bench.measure import Candidate, Run, measure_interleaved
from mlpdeploy.env import installed_version
from mlpdeploy.manifest import Manifest, read_manifest
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import Session

# Target -> the backend that it was lowered for, where that runs on any machine.
BACKENDS = {"cpu": "onnxruntime", "openvino": "openvino"}
SECONDS = 2.0  # per target
MIN_RUNS = 5


def quick_speed(exact: Path, quantized: Path, threads: int | None = None) -> dict[str, float]:
    """Return {target: speed of the quantized artifact over that of the float32 one}, at batch 1 on this machine.

    Args:
        exact: the float32 artifact.
        quantized: what was made of it.
        threads: of one run.
    """
    found = {}
    manifest = read_manifest(quantized)
    targets = _targets(manifest) & _targets(read_manifest(exact))
    for target, backend in BACKENDS.items():
        if target not in targets or installed_version(backend) is None:
            continue
        with (
            load(exact, backend, "cpu", threads=threads) as before,
            load(quantized, backend, "cpu", threads=threads) as after,
        ):
            (feed,) = before.random_feeds(1, height_width=tuple(manifest.model["config"]["image_size"])).values()
            candidates = [Candidate("exact", _run(before)), Candidate("quantized", _run(after))]
            timings = measure_interleaved(
                candidates, [feed], baseline="quantized", min_runs=MIN_RUNS, seconds=SECONDS, warmup=2
            )
            found[target] = timings[0].time_over_baseline
    return found


def _targets(manifest: Manifest) -> set[str]:
    return {entry.role for entry in manifest.models.values()}


def _run(session: Session) -> Run:
    spec = session.inputs[0]
    return lambda batch: list(session.run({spec.name: batch.astype(np.dtype(spec.dtype), copy=False)}).values())
