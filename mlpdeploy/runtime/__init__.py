"""Run an artifact: one Session protocol, one module per backend."""

from mlpdeploy.runtime.session import Session, load

__all__ = ["Session", "load"]
