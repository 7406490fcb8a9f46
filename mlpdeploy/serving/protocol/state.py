"""What REST and gRPC share while a server runs."""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TextIO

from mlpdeploy.env import package_version
from mlpdeploy.serving.failures import UnavailableError
from mlpdeploy.serving.interface import Served
from mlpdeploy.serving.metrics import Metrics
from mlpdeploy.serving.protocol.inference import EXTENSIONS, SHARED_MEMORY
from mlpdeploy.serving.protocol.keys import Keys
from mlpdeploy.serving.protocol.limits import Budget
from mlpdeploy.serving.protocol.regions import Regions
from mlpdeploy.serving.repository import ModelRepository


class AccessLog:
    """One JSON line for each request; that one cannot be written is said once, and stops nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._failed = stream, False

    def write(
        self,
        *,
        protocol: str,
        client: str,
        method: str,
        status: int | str,
        seconds: float,
        bytes_in: int = 0,
        bytes_out: int = 0,
        path: str = "",
        request_id: str = "",
    ) -> None:
        """Write the line of one request."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="milliseconds"),
            "protocol": protocol,
            "client": client,
            "method": method,
        }
        if path:
            line["path"] = path[:500]
        line |= {"status": status, "ms": round(1000 * seconds, 3), "bytes_in": bytes_in, "bytes_out": bytes_out}
        if request_id:
            line["id"] = request_id
        try:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
        except OSError as error:
            if not self._failed:
                self._failed = True
                with contextlib.suppress(OSError):  # stderr may be the log
                    text = f"mlpdeploy: the access log cannot be written ({error.strerror}); lines are lost"
                    print(text, file=sys.stderr, flush=True)  # noqa: T201


@dataclass
class ServerState:
    """A running server.

    Attributes:
        repository: the models.
        keys: what a request must show.
        metrics: what is counted.
        access_log: where requests are written to; None writes none.
        shared_memory: whether clients may register regions of it.
        started: whether the models are loaded.
        draining: whether the server is about to stop.
    """

    repository: ModelRepository
    keys: Keys
    metrics: Metrics
    access_log: AccessLog | None = None
    shared_memory: bool = False
    started: bool = False
    draining: bool = False
    budget: Budget = field(default_factory=Budget)
    name: str = "mlpdeploy"
    version: str = field(default_factory=package_version)
    _prefix: str = field(default_factory=lambda: secrets.token_hex(4))
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.regions = Regions(self.budget, self.shared_memory)
        self.extensions = (*EXTENSIONS, SHARED_MEMORY) if self.shared_memory else EXTENSIONS

    @property
    def ready_to_answer(self) -> bool:
        """Whether requests are taken."""
        return self.started and not self.draining

    @property
    def ready(self) -> bool:
        """Whether every model is warm and requests are taken."""
        return self.ready_to_answer and self.repository.ready

    def next_id(self) -> str:
        """Return a name for a request, by which the log can be searched."""
        return f"{self._prefix}-{next(self._numbers)}"

    def model(self, name: str, version: str = "") -> Served:
        """Return a model by name.

        Raises:
            UnknownModelError: there is none.
            UnavailableError: the models are still being loaded.
        """
        if not self.started:
            raise UnavailableError("the models are being loaded", fix="try again in a moment")
        return self.repository.get(name, version)
