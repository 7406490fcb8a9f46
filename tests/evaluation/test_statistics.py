"""Intervals and tests against scipy's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mlpdeploy.evaluation.statistics import mcnemar_p_value, rate


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_equals_scipy(total: int, share: float) -> None:
    hits = round(share * total)
    got = rate(hits, total)
    expected = binomtest(hits, total).proportion_ci(method="wilson")
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert got.low <= got.value <= got.high


def test_wilson_by_hand() -> None:
    got = rate(8, 10)
    assert (got.low, got.high) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert (rate(0, 7).low, rate(7, 7).high) == (0.0, 1.0)
    assert rate(0, 0).value is None


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_equals_the_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_p_value(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_p_value(first, second) == mcnemar_p_value(second, first)


def test_mcnemar_with_many_differences() -> None:
    assert mcnemar_p_value(3000, 3200) == pytest.approx(binomtest(3000, 6200).pvalue, rel=1e-6)
