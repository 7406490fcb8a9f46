"""What the protocols need of a model that is served, wherever it is computed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from mlpdeploy.manifest import Manifest
from mlpdeploy.runtime.feeds import Arrays
from mlpdeploy.serving.options import ServeOptions
from mlpdeploy.serving.stats import ModelStats


class Served(Protocol):
    """One version of a model that answers.

    Attributes:
        name, version: under which it is asked for.
        manifest: the artifact's.
        options: it is served with.
        max_batch: rows that are computed at once.
        instances: that compute at the same time, at least.
        asked: calls of `infer` so far.
    """

    name: str
    version: str
    manifest: Manifest
    options: ServeOptions
    max_batch: int
    instances: int
    asked: int

    @property
    def ready(self) -> bool:
        """Whether it is warm and takes requests."""

    @property
    def stats(self) -> ModelStats:
        """What was counted so far."""

    async def infer(self, feeds: dict[str, Any], timeout: float | None = None) -> Arrays:
        """Return {output name: array} for {input name: array} of any number of rows; see `ServedModel.infer`."""

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, answer the accepted ones within `drain_seconds`, and fail the rest."""


# (name, version, artifact folder, its manifest, options) -> the model when it is warm.
Start = Callable[[str, str, Path, Manifest, ServeOptions], Awaitable[Served]]
