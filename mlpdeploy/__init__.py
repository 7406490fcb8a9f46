"""From a PyTorch checkpoint of an axial-shift or permute MLP to the fastest correct inference on a machine.

    import mlpdeploy

    mlpdeploy.export_model("asmlp_s", "asmlp_s", checkpoint="asmlp_s.pth")
    with mlpdeploy.load("asmlp_s") as session:
        logits = session.run({"input": images})["logits"]  # (N, 3, 224, 224) float32 -> (N, 1000) float32

Importing this package loads neither torch nor onnx nor a runtime: each function imports what it needs when called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mlpdeploy.errors import MlpDeployError

if TYPE_CHECKING:
    from mlpdeploy.evaluation.evaluate import evaluate_artifacts
    from mlpdeploy.export.export import export_model
    from mlpdeploy.models.create import create_model
    from mlpdeploy.prediction import predict
    from mlpdeploy.runtime.loading import load
    from mlpdeploy.runtime.session import Session
    from mlpdeploy.verify import verify_artifact

_LAZY = {
    "create_model": "mlpdeploy.models.create",
    "export_model": "mlpdeploy.export.export",
    "evaluate_artifacts": "mlpdeploy.evaluation.evaluate",
    "verify_artifact": "mlpdeploy.verify",
    "load": "mlpdeploy.runtime.loading",
    "Session": "mlpdeploy.runtime.session",
    "predict": "mlpdeploy.prediction",
}

__all__ = [
    "MlpDeployError",
    "Session",
    "create_model",
    "evaluate_artifacts",
    "export_model",
    "load",
    "predict",
    "verify_artifact",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from mlpdeploy.env import package_version

        return package_version()
    if name not in _LAZY:
        raise AttributeError(f"module 'mlpdeploy' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
