"""The PyTorch backend: the reference."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mlpdeploy.runtime.loading import load


def switches() -> list[str]:
    return [torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision]


def test_products_on_a_gpu_are_in_float32(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's default rounds a convolution's factors to ten bits there. Not on a GPU: the switches are looked at."""
    seen: list[list[str]] = []
    before = switches()
    with load(exported, backend="torch", device="cpu") as session:
        model: Any = session._model  # type: ignore[attr-defined]
        session._model = lambda x: seen.append(switches()) or model(x)  # type: ignore[attr-defined]
        images = np.zeros((2, 3, 32, 32), np.float32)
        wanted = session.run({"input": images})
        session.device = "cuda"
        monkeypatch.setattr(torch, "from_numpy", lambda array: SimpleNamespace(to=lambda *where: torch.tensor(array)))
        found = session.run({"input": images})
    assert np.array_equal(found["logits"], wanted["logits"])
    assert seen == [before, ["ieee", "ieee"]] and switches() == before
    assert torch.backends.cudnn.enabled
