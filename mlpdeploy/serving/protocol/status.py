"""Which failure is which status, in HTTP and in gRPC; and what a client may read about it."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass

from mlpdeploy.errors import ImageError, MlpDeployError, UsageError
from mlpdeploy.serving.failures import DeadlineError, QueueFullError, UnavailableError, UnknownModelError
from mlpdeploy.serving.protocol.limits import RefusedError

RETRY_AFTER_SECONDS = 1

# Failure -> (HTTP status, name of the gRPC status). Anything else is ours: 500, and the client reads no internals.
_STATUS: tuple[tuple[type[MlpDeployError], int, str], ...] = (
    (UnknownModelError, 404, "NOT_FOUND"),
    (QueueFullError, 429, "RESOURCE_EXHAUSTED"),
    (DeadlineError, 504, "DEADLINE_EXCEEDED"),
    (UnavailableError, 503, "UNAVAILABLE"),
    (UsageError, 400, "INVALID_ARGUMENT"),
    (ImageError, 400, "INVALID_ARGUMENT"),
)
# What the statuses of RefusedError are in gRPC.
_REFUSED = {401: "UNAUTHENTICATED", 408: "DEADLINE_EXCEEDED", 413: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}


@dataclass(frozen=True)
class Failure:
    """What a client is told.

    Attributes:
        status: of HTTP.
        grpc: name of the gRPC status.
        text: for people.
    """

    status: int
    grpc: str
    text: str


def failure_of(error: BaseException, request_id: str) -> Failure:
    """Return what a client is told about an error; one of ours is written to stderr with its traceback."""
    if isinstance(error, RefusedError):
        return Failure(error.status, _REFUSED.get(error.status, "INVALID_ARGUMENT"), str(error))
    for kind, status, grpc in _STATUS:
        if isinstance(error, kind):
            return Failure(status, grpc, str(error))
    lines = "".join(traceback.format_exception(error))
    print(f"mlpdeploy: request {request_id} failed\n{lines}", file=sys.stderr, flush=True)  # noqa: T201
    return Failure(500, "INTERNAL", f"internal error; the server's log tells more about request {request_id}")
