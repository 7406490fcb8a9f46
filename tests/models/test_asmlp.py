"""AS-MLP's options."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_asmlp
from torch.nn import functional as F

from mlpdeploy.errors import UsageError
from mlpdeploy.models import create_model
from mlpdeploy.models.asmlp import AsMlpConfig
from mlpdeploy.ops.axial_shift import ShiftSpec


def test_any_size_that_divides() -> None:
    model = tiny_asmlp()
    assert model(torch.zeros(2, 3, 8, 48)).shape == (2, 7)


@pytest.mark.parametrize("size", [(30, 32), (32, 31), (0, 32)])
def test_other_sizes_are_refused_with_the_nearest(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="image size"):
        tiny_asmlp()(torch.zeros(1, 3, *size))


def test_padding_of_odd_sizes_equals_zeros_added_at_each_stage() -> None:
    model = tiny_asmlp(features=True, pad_odd_sizes=True, image_size=(19, 30))
    image = torch.randn(1, 3, 19, 30)
    first, second = model(image)
    assert first.shape[2:] == (5, 8)  # ceil(19 / 4), ceil(30 / 4)
    assert second.shape[2:] == (3, 4)  # ceil(5 / 2), 8 / 2
    by_hand = F.pad(image, (0, 2, 0, 1))
    plain = tiny_asmlp(features=True, pad_odd_sizes=False, depths=(1,), image_size=(20, 32))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    torch.testing.assert_close(plain(by_hand)[0], first)


def test_feature_maps_have_strides_4_to_32() -> None:
    model = create_model("asmlp_t", features=True)
    maps = model(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3)]
    assert "head.weight" not in model.state_dict()


def test_serial_branches_feed_one_shift_into_the_other() -> None:
    parallel, serial = tiny_asmlp(), tiny_asmlp(branches="serial")
    serial.load_state_dict(parallel.state_dict())
    image = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(parallel(image), serial(image))


@pytest.mark.parametrize("change", [{"branches": "both"}, {"feature_norms": True}])
def test_impossible_configurations_are_refused(change: dict) -> None:
    with pytest.raises(UsageError):
        AsMlpConfig(24, (1,), **change)


def test_a_feature_map_smaller_than_the_shift_is_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="reflect padding by 2"):
        AsMlpConfig(24, (1, 1), image_size=(16, 16), shift=ShiftSpec(padding="reflect"))


def test_options_of_the_other_family_are_refused() -> None:
    with pytest.raises(UsageError, match="shift_size, features for vip_s7"):
        create_model("vip_s7", shift_size=3, features=True)
    with pytest.raises(UsageError, match="image size 256x256 for a Vision Permutator"):
        create_model("vip_s7", image_size=256)
