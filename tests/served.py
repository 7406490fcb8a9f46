"""A model for tests of serving that needs no runtime: its worker starts at once, and rows can make it misbehave.

As a program this file is the worker. Its artifact is a manifest only (`write_model`). Row x of the input becomes
`answers(x)`; the first value of a row may be one of `RAISE`, `DIE`, `HANG`.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.artifact import write_manifest
from mlpdeploy.errors import ArtifactError
from mlpdeploy.manifest import FileEntry, Manifest, TensorSpec, read_manifest
from mlpdeploy.runtime.feeds import Arrays
from mlpdeploy.runtime.session import Session
from mlpdeploy.serving.pool import Workers
from mlpdeploy.serving.worker import main

RAISE, DIE, HANG = 1e6, 2e6, 3e6
WIDTH = 5

FIXED = ((TensorSpec("x", ("batch", WIDTH), "float32", "NC"),), (TensorSpec("y", ("batch", 3), "float32", "NK"),))
OPEN = (
    (TensorSpec("x", ("batch", 2, "2*height", "2*width"), "float32", "NCHW"),),
    (TensorSpec("y", ("batch", 2, "height", "width"), "float32", "NCHW"), TensorSpec("z", ("batch",), "float64", "N")),
)


def write_model(directory: Path, *, open_sizes: bool = False, batch: int | str = "batch", **model: Any) -> Path:
    """Write an artifact; `model` may have `sleep_s` (of each run), `scale`, `broken`."""
    directory.mkdir(parents=True, exist_ok=True)
    inputs, outputs = (
        tuple(dataclasses.replace(spec, shape=(batch, *spec.shape[1:])) for spec in specs)
        for specs in (OPEN if open_sizes else FIXED)
    )
    entry = FileEntry("canonical", "", 0)
    values = {"name": "small", "scale": 1.0, **model}
    write_manifest(directory, Manifest(values, inputs, outputs, 21, "fp32", files={"model.onnx": entry}))
    return directory


def answers(x: np.ndarray, scale: float = 1.0) -> Arrays:
    """Return the outputs of rows, each from its row alone."""
    if x.ndim == 4:
        return {"y": np.ascontiguousarray(x[:, :, ::2, ::2]), "z": x.astype(np.float64).sum((1, 2, 3))}
    return {"y": np.stack([x[:, 0] * scale, x[:, 1] + x[:, 2], -x[:, 4]], axis=1)}


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def bad_row(mark: float, count: int = 1) -> np.ndarray:
    """Return rows of which the first misbehaves."""
    x = rows(count)
    x[0, 0] = mark
    return x


def workers(hang_seconds: float = 0.3) -> Workers:
    return Workers((sys.executable, __file__), hang_seconds)


class SmallSession(Session):
    backend = "small"

    def _execute(self, feeds: Arrays, into: Arrays | None) -> Arrays:
        x = feeds["x"]
        time.sleep(self.manifest.model.get("sleep_s", 0.0))
        marks = x.reshape(len(x), -1)[:, 0]
        if (marks == RAISE).any():
            raise ValueError("a bad row")
        if (marks == DIE).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (marks == HANG).any():
            time.sleep(3600)
        result = answers(x, self.manifest.model["scale"])
        for name, array in (into or {}).items():
            array[...] = result[name]
        return result if into is None else into

    def warmup(self, batch: int = 1, runs: int = 3) -> None:
        super().warmup(batch, 1)

    def native_interface(self) -> Any:
        raise NotImplementedError

    def _release(self) -> None:
        pass


def load(directory: Path, backend: str | None, device: str | None, *, max_batch: int, **_: Any) -> Session:
    manifest = read_manifest(directory)
    if manifest.model.get("broken"):
        raise ArtifactError(f"{directory} is broken", fix="mend it")
    return SmallSession(manifest, "cpu", max_batch)


if __name__ == "__main__":
    main(load)
