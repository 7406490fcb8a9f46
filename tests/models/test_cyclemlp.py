"""CycleMLP's sizes."""

from __future__ import annotations

import pytest

from mlpdeploy.errors import UsageError
from mlpdeploy.models.cyclemlp import CycleMlpConfig


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depths": ()}, "depths are"),
        ({"depths": (1, 0)}, "depths are"),
        ({"widths": (20, 24, 28)}, "2 each"),
        ({"mlp_ratios": (4,)}, "2 each"),
        ({"widths": (20, 3)}, "at least 4 channels"),
        ({"mlp_ratios": (4, 0)}, "ratio of 1"),
        ({"feature_norms": True}, "feature_norms without features"),
        ({"features": True, "fork_last3": True}, "fork_last3 without feature_norms"),
    ],
)
def test_impossible_sizes_of_a_cyclemlp_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CycleMlpConfig(**{"depths": (1, 1), "widths": (20, 24), "mlp_ratios": (4, 4)} | options)
