"""Photographs to input tensors, as a model of Triton's Python backend.

This file is copied into a Triton repository as `model.py`, with the manifest of the artifact beside it. Triton's Python
needs the package mlpdeploy (without extras), so that a photograph becomes the same tensor there as everywhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from mlpdeploy.errors import ImageError
from mlpdeploy.images import image_from_bytes, preprocess
from mlpdeploy.manifest import read_manifest

IMAGE = "image"


class TritonPythonModel:
    """Takes encoded pictures, (N, 1) bytes, and gives the model's input, (N, C, H, W)."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Read how the model wants its pictures."""
        folder = Path(arguments["model_repository"], arguments["model_version"])
        manifest = read_manifest(folder)
        assert manifest.preprocessing is not None
        self._preprocessing, self._spec = manifest.preprocessing, manifest.inputs[0]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return an answer for each request; one with a bad picture fails alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        pictures = triton.get_input_tensor_by_name(request, IMAGE).as_numpy().reshape(-1)
        try:
            rows = [preprocess(image_from_bytes(picture), self._preprocessing) for picture in pictures]
        except ImageError as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error), triton.TritonError.INVALID_ARG))
        prepared = np.stack(rows).astype(self._spec.dtype, copy=False)
        return triton.InferenceResponse([triton.Tensor(self._spec.name, prepared)])
