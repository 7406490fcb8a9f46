"""Run an artifact: one Session protocol, one module per backend."""

from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import Session

__all__ = ["Session", "load"]
