"""The architectures, written with the official checkpoints' tensor names. They know nothing of export or runtime."""

from mlpdeploy.models.create import create_model
from mlpdeploy.models.registry import DEMO_MODELS, MODELS, resolve_model

__all__ = ["DEMO_MODELS", "MODELS", "create_model", "resolve_model"]
