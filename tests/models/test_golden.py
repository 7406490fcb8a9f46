"""The models against data from the official implementations."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpdeploy.models import MODELS, create_model
from mlpdeploy.models.build import model_from_config
from mlpdeploy.models.registry import resolve_model
from mlpdeploy.models.statistics import model_statistics

GOLDEN = Path(__file__).parent.parent / "golden"
STATE_DICTS = json.loads((GOLDEN / "official_state_dicts.json").read_text())
# Parameters and multiply-adds of the official modules at 224x224, as published or counted.
COUNTS = {
    "asmlp_t": (28.28, 4.35),
    "asmlp_s": (49.59, 8.51),
    "asmlp_b": (87.75, 15.13),
    "vip_s14": (29.89, 6.86),
    "vip_s7": (25.11, 6.90),
    "vip_m7": (55.27, 16.28),
    "vip_l7": (87.78, 24.34),
}


@pytest.mark.parametrize("name", [entry.name for entry in MODELS])
def test_tensor_names_and_shapes_are_the_official_ones(name: str) -> None:
    state = model_from_config(resolve_model(name).config, "meta").state_dict()
    assert {key: list(tensor.shape) for key, tensor in state.items()} == STATE_DICTS[name]


@pytest.mark.parametrize("name", [entry.name for entry in MODELS])
def test_parameters_and_multiply_adds(name: str) -> None:
    counts = model_statistics(model_from_config(resolve_model(name).config, "meta"), (224, 224), 3)
    assert (round(counts.parameters / 1e6, 2), round(counts.macs / 1e9, 2)) == COUNTS[name]


@pytest.mark.parametrize("name", ["asmlp_t", "asmlp_s", "vip_s14", "vip_s7"])
def test_logits_equal_the_official_implementation_in_float64(name: str) -> None:
    model = model_from_config(resolve_model(name).config).double().eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(tensor.shape))
            if tensor.ndim == 1:
                values = 0.1 * values + (1 if key.endswith("weight") else 0)
            else:
                values = values / np.sqrt(np.prod(tensor.shape[1:]))
            tensor.copy_(torch.from_numpy(values))
        image = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 224, 224)))
        logits = model(image).numpy()
    np.testing.assert_allclose(logits, np.load(GOLDEN / f"{name}.npz")["logits"], rtol=0, atol=1e-10)


def test_random_weights_depend_on_the_seed_alone() -> None:
    one, same, other = (create_model("asmlp_t", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)
