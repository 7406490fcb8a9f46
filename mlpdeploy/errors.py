"""Errors that a user or a file can cause. Each says what came, what was wanted and what to do."""

from __future__ import annotations


class MlpDeployError(Exception):
    """A failure with three parts: what came (`got`), what was wanted, and what to do about it (`fix`)."""

    exit_code = 1

    def __init__(self, got: str, wanted: str = "", fix: str = "") -> None:
        self.got, self.wanted, self.fix = got, wanted, fix
        parts = [got, f"wanted {wanted}" if wanted else "", fix]
        super().__init__("; ".join(part.strip().rstrip(".") for part in parts if part))


class UsageError(MlpDeployError):
    """The request itself is wrong: unknown name, impossible value, options that contradict each other."""

    exit_code = 2


class MissingDependencyError(MlpDeployError):
    """A package that this request needs is not installed."""


class CheckpointError(MlpDeployError):
    """A checkpoint cannot be read, or does not fit the model."""


class ArtifactError(MlpDeployError):
    """An artifact folder is incomplete, edited, truncated or not ours."""


class ImageError(MlpDeployError):
    """A picture cannot be used as input."""


class PluginError(MlpDeployError):
    """The plugin library cannot be built, is missing or damaged."""


class VerificationError(MlpDeployError):
    """The exported model does not compute what the reference computes."""


class InternalError(Exception):
    """A bug of ours. Deliberately not a `MlpDeployError`: it must never be shown as the user's mistake."""
