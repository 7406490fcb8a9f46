"""The models against data from the official implementations."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpdeploy.models import MODELS, create_model
from mlpdeploy.models.build import Model, model_from_config
from mlpdeploy.models.identify import OFFSET
from mlpdeploy.models.registry import Config, resolve_model
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
    "cyclemlp_b1": (15.16, 2.12),
    "cyclemlp_b2": (26.80, 3.88),
    "cyclemlp_b3": (38.39, 6.83),
    "cyclemlp_b4": (51.80, 10.03),
    "cyclemlp_b5": (75.75, 12.23),
}


@pytest.mark.parametrize("name", [entry.name for entry in MODELS])
def test_tensor_names_and_shapes_are_the_official_ones(name: str) -> None:
    state = model_from_config(resolve_model(name).config, "meta").state_dict()
    official = {key: shape for key, shape in STATE_DICTS[name].items() if not key.endswith(OFFSET)}
    assert {key: list(tensor.shape) for key, tensor in state.items()} == official


@pytest.mark.parametrize("name", [entry.name for entry in MODELS])
def test_parameters_and_multiply_adds(name: str) -> None:
    counts = model_statistics(model_from_config(resolve_model(name).config, "meta"), (224, 224), 3)
    assert (round(counts.parameters / 1e6, 2), round(counts.macs / 1e9, 2)) == COUNTS[name]


@pytest.mark.parametrize("name", ["asmlp_t", "asmlp_s", "vip_s14", "vip_s7", "cyclemlp_b1", "cyclemlp_b5"])
def test_logits_equal_the_official_implementation_in_float64(name: str) -> None:
    model = _by_rule(resolve_model(name).config)
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 224, 224)))
    with torch.no_grad():
        logits = model(image).numpy()
    np.testing.assert_allclose(logits, np.load(GOLDEN / f"{name}.npz")["logits"], rtol=0, atol=1e-10)


def test_feature_maps_of_any_size_equal_the_official_backbone_in_float64() -> None:
    config = resolve_model("cyclemlp_b1").config
    model = _by_rule(dataclasses.replace(config, features=True, feature_norms=True, image_size=(21, 35)))
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 21, 35)))
    with torch.no_grad():
        maps = model(image)
    golden = np.load(GOLDEN / "cyclemlp_b1_features.npz")
    assert len(maps) == 4
    for index, found in enumerate(maps):
        np.testing.assert_allclose(found.numpy(), golden[f"stage{index}"], rtol=0, atol=1e-10)


def _by_rule(config: Config) -> Model:
    """Return the float64 model with the golden data's weights."""
    model = model_from_config(config).double().eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(tensor.shape))
            if tensor.ndim == 1:
                values = 0.1 * values + (1 if key.endswith("weight") else 0)
            else:
                values = values / np.sqrt(np.prod(tensor.shape[1:]))
            tensor.copy_(torch.from_numpy(values))
    return model


def test_random_weights_depend_on_the_seed_alone() -> None:
    one, same, other = (create_model("asmlp_t", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)
