"""What a request may end with, besides its answer. `UsageError` is the fifth: the request itself is wrong."""

from __future__ import annotations

from mlpdeploy.errors import MlpDeployError


class UnknownModelError(MlpDeployError):
    """No model, or no version of it, has this name."""


class QueueFullError(MlpDeployError):
    """As many rows wait as may wait; said at once, the request has not been queued."""


class DeadlineError(MlpDeployError):
    """The answer was not there in time."""


class UnavailableError(MlpDeployError):
    """The model is not ready or is being closed, or its process died twice under this request."""
