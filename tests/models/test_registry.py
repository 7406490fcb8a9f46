from __future__ import annotations

import pytest

from mlpdeploy.errors import UsageError
from mlpdeploy.models.registry import DEMO_MODELS, MODELS, resolve_model


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("asmlp_s", "asmlp_s"),
        ("asmlp_small_patch4_shift5_224", "asmlp_s"),
        ("AS-MLP-T", "asmlp_t"),
        ("ViP-S/7", "vip_s7"),
        ("vip_small_14", "vip_s14"),
        ("CycleMLP_B3", "cyclemlp_b3"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert resolve_model(alias).name == name


def test_an_unknown_model_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean asmlp_s") as error:
        resolve_model("asmpl_s")
    assert error.value.exit_code == 2


def test_published_models_and_our_own_are_kept_apart() -> None:
    assert len(MODELS) == 12
    assert all(entry.top1_percent and entry.config.num_classes == 1000 for entry in MODELS)
    assert all(entry.preprocessing.height_width == entry.config.image_size for entry in (*MODELS, *DEMO_MODELS))
    assert [entry.name for entry in DEMO_MODELS] == ["asmlp_digits", "vip_digits", "cyclemlp_digits"]
    for entry in DEMO_MODELS:
        assert entry.top1_percent is None
        assert resolve_model(entry.name.replace("_", "-")) is entry
        assert len(entry.labels) == entry.config.num_classes == 10


def test_every_name_is_unique() -> None:
    names = [name for entry in (*MODELS, *DEMO_MODELS) for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))
