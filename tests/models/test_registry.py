from __future__ import annotations

import pytest

from mlpdeploy.errors import UsageError
from mlpdeploy.models.registry import MODELS, resolve_model


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("asmlp_s", "asmlp_s"),
        ("asmlp_small_patch4_shift5_224", "asmlp_s"),
        ("AS-MLP-T", "asmlp_t"),
        ("ViP-S/7", "vip_s7"),
        ("vip_small_14", "vip_s14"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert resolve_model(alias).name == name


def test_an_unknown_model_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean asmlp_s") as error:
        resolve_model("asmpl_s")
    assert error.value.exit_code == 2


def test_every_name_is_unique() -> None:
    names = [name for entry in MODELS for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))
