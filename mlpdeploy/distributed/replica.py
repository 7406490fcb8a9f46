"""What runs on Ray Serve: a model behind its own batching, as on one machine; errors are told as plain values."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlpdeploy.errors
from mlpdeploy.errors import InternalError, MlpDeployError
from mlpdeploy.manifest import Manifest
from mlpdeploy.runtime.feeds import Arrays
from mlpdeploy.serving import failures
from mlpdeploy.serving.model import ServedModel
from mlpdeploy.serving.options import ServeOptions
from mlpdeploy.serving.pool import Workers
from mlpdeploy.serving.stats import ModelStats

# (class, got, wanted, fix) of an error: exceptions themselves arrive as Ray's, with a traceback in their text.
Told = tuple[str, str, str, str]
_MARK = "mlpdeploy-error:"
UNWELL_SECONDS = 60.0


@dataclass(frozen=True)
class Order:
    """What a replica serves."""

    name: str
    version: str
    directory: str
    manifest: Manifest
    options: ServeOptions
    workers: Workers


@dataclass(frozen=True)
class Reply:
    """The outputs of a request or its error, and what this replica has counted so far."""

    outputs: Arrays | None
    error: Told | None
    replica: str
    stats: ModelStats


class Replica:
    """One replica of a model. Ray Serve calls everything in here."""

    async def __init__(self, order: Order) -> None:  # type: ignore[misc] # Ray Serve awaits it
        """Load and warm the model.

        Raises:
            RuntimeError: it cannot be loaded; the text is for `error_in`.
        """
        self._id = uuid4().hex
        try:
            self._model = await ServedModel.start(
                order.name, order.version, Path(order.directory), order.manifest, order.options, order.workers
            )
        except MlpDeployError as error:
            raise RuntimeError(_MARK + json.dumps(told(error))) from None
        self._ready_at = time.monotonic()

    async def infer(self, feeds: dict[str, Any], timeout: float) -> Reply:
        """Answer one request."""
        try:
            outputs = await self._model.infer(feeds, timeout)
        except (MlpDeployError, InternalError) as error:
            return Reply(None, told(error), self._id, self._model.stats)
        return Reply(outputs, None, self._id, self._model.stats)

    async def check_health(self) -> None:
        """Raise if no worker has been warm for long; Ray Serve then starts the replica again.

        A worker that died is started again by the model itself, which is quicker and loses nothing.
        """
        now = time.monotonic()
        if self._model.ready:
            self._ready_at = now
        elif now - self._ready_at > UNWELL_SECONDS:
            raise RuntimeError(f"model {self._model.name} has had no warm worker for {UNWELL_SECONDS:g} s")


def told(error: MlpDeployError | InternalError) -> Told:
    """Return an error as plain values."""
    if isinstance(error, InternalError):
        return ("InternalError", str(error), "", "")
    return (type(error).__name__, error.got, error.wanted, error.fix)


def error_of(values: Told) -> Exception:
    """Return the error that was told."""
    kind, *parts = values
    if kind == "InternalError":
        return InternalError(parts[0])
    module = mlpdeploy.errors if hasattr(mlpdeploy.errors, kind) else failures
    error: MlpDeployError = getattr(module, kind, MlpDeployError)(*parts)
    return error


def error_in(text: str) -> Exception | None:
    """Return the error that a replica's constructor told, which stands somewhere in Ray Serve's message."""
    _, mark, rest = text.partition(_MARK)
    try:
        return error_of(json.JSONDecoder().raw_decode(rest)[0]) if mark else None
    except ValueError:
        return None
