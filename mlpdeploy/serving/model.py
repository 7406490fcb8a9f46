"""One served version of a model: takes requests of any size, answers each with its own rows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from mlpdeploy.manifest import Manifest
from mlpdeploy.runtime.session import Arrays, Session, check_feeds, load
from mlpdeploy.serving.failures import DeadlineError, UnavailableError
from mlpdeploy.serving.options import ServeOptions
from mlpdeploy.serving.stats import ModelStats


class ServedModel:
    """A model that answers. Made by `ServedModel.start`, ended by `close`.

    Attributes:
        name, version: under which it is asked for.
        manifest: the artifact's.
        max_batch: rows that a worker computes at once.
        stats: counted as it goes.
    """

    def __init__(self, name: str, version: str, manifest: Manifest, options: ServeOptions, session: Session) -> None:
        self.name, self.version, self.manifest, self.options = name, version, manifest, options
        self.max_batch = session.max_batch
        self.stats = ModelStats()
        self._session = session
        self.asked = 0

    @classmethod
    async def start(
        cls, name: str, version: str, directory: Path, manifest: Manifest, options: ServeOptions
    ) -> ServedModel:
        """Return the model when it is warm.

        Raises:
            MlpDeployError: the artifact cannot be loaded.
        """

        def warm() -> Session:
            session = load(directory, options.backend, options.device, max_batch=options.max_batch or 8)
            session.warmup()
            return session

        return cls(name, version, manifest, options, await asyncio.to_thread(warm))

    @property
    def ready(self) -> bool:
        """Whether a worker is warm and requests are taken."""
        return self._session is not None

    async def infer(self, feeds: dict[str, Any], timeout: float | None = None) -> Arrays:
        """Return {output name: array} for {input name: array} of any number of rows.

        Cancelling the task that waits takes the rows out of the queue, or discards their answer. The feeds must not
        be changed before the answer is there.

        Args:
            feeds: as `Session.run` takes them.
            timeout: seconds from now; None means the options' `timeout_ms`.

        Raises:
            UsageError: the feeds do not fit the model.
            QueueFullError, DeadlineError, UnavailableError: see `failures`.
            InternalError: the model failed on these rows.
        """
        self.asked += 1
        arrays = check_feeds(self.manifest.inputs, feeds)
        if self._session is None:
            raise UnavailableError(f"model {self.name} is being closed", fix="try again later")
        limit = self.options.timeout_ms / 1000 if timeout is None else timeout
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._session.run, arrays), limit)
        except asyncio.TimeoutError:
            raise DeadlineError(f"no answer within {limit:.3f} s") from None

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, answer the accepted ones within `drain_seconds`, fail the rest, end the workers."""
        self._session.close()
