"""Metrics against scikit-learn and against loops that follow the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score

from mlpdeploy.evaluation.metrics import BINS, AgreementTally, Quality, QualityTally


def scores(rows: int, classes: int, seed: int, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(0, scale, (rows, classes)), generator.integers(0, classes, rows)


def quality(logits: np.ndarray, labels: np.ndarray, batch: int = 1 << 30) -> Quality:
    tally = QualityTally(logits.shape[1])
    for start in range(0, len(labels), batch):
        tally.update(logits[start : start + batch], labels[start : start + batch])
    return tally.result()


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [3, 7, 40])
def test_against_scikit_learn(classes: int) -> None:
    logits, labels = scores(500, classes, classes)
    got, every = quality(logits, labels), list(range(classes))
    assert got.k == min(5, classes)
    assert got.top1.value == pytest.approx(top_k_accuracy_score(labels, logits, k=1, labels=every))
    if classes > 5:
        assert got.top_k.value == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=every))
    else:
        assert got.top_k.value == 1.0
    assert got.nll == pytest.approx(log_loss(labels, softmax(logits), labels=every))
    matrix = confusion_matrix(labels, logits.argmax(axis=1), labels=every)
    assert {(t, p): n for t, p, n in got.confusion} == {
        (t, p): matrix[t, p] for t in every for p in every if matrix[t, p]
    }
    for index, share in got.per_class.items():
        assert (share.hits, share.total) == (matrix[index, index], matrix[index].sum())


def ece_by_definition(logits: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, image by image."""
    probabilities, total = softmax(logits), 0.0
    for low in range(BINS):
        inside = [p for p, y in zip(probabilities, labels, strict=True) if low / BINS < p.max() <= (low + 1) / BINS]
        right = [
            p.argmax() == y
            for p, y in zip(probabilities, labels, strict=True)
            if low / BINS < p.max() <= (low + 1) / BINS
        ]
        if inside:
            total += len(inside) * abs(np.mean(right) - np.mean([p.max() for p in inside]))
    return total / len(labels)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(2, 12), st.integers(0, 10_000), st.floats(0.1, 20))
def test_calibration_error_follows_its_definition(rows: int, classes: int, seed: int, scale: float) -> None:
    logits, labels = scores(rows, classes, seed, scale)
    got = quality(logits, labels)
    assert got.ece == pytest.approx(ece_by_definition(logits, labels), abs=1e-9)
    assert 0 <= got.ece <= 1
    assert sum(bin_.images for bin_ in got.reliability) == rows


def test_calibration_error_by_hand() -> None:
    # Two classes; p = 0.9 three times, right twice; p = 0.6 once, wrong.
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]))
    got = quality(logits, np.array([0, 0, 1, 0]))
    assert got.ece == pytest.approx((3 * abs(2 / 3 - 0.9) + abs(0 - 0.6)) / 4)
    assert got.nll == pytest.approx(-(2 * math.log(0.9) + math.log(0.1) + math.log(0.4)) / 4)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 1000))
def test_the_result_does_not_depend_on_the_batches(rows: int, batch: int, seed: int) -> None:
    logits, labels = scores(rows, 6, seed)
    whole, parts = quality(logits, labels), quality(logits, labels, batch)
    assert (whole.top1, whole.top_k, whole.confusion) == (parts.top1, parts.top_k, parts.confusion)
    assert (whole.nll, whole.ece) == pytest.approx((parts.nll, parts.ece))


def test_of_equal_scores_the_lower_index_comes_first() -> None:
    right = QualityTally(8).update(np.zeros((3, 8)), np.array([0, 4, 5]))
    assert right.tolist() == [True, False, False]
    got = quality(np.zeros((3, 8)), np.array([0, 4, 5]))
    assert (got.top1.hits, got.top_k.hits) == (1, 2)


def test_huge_logits_do_not_overflow() -> None:
    got = quality(np.array([[1e5, -1e5], [-1e5, 1e5]]), np.array([0, 1]))
    assert (got.nll, got.ece, got.top1.hits) == (0.0, 0.0, 2)


def test_agreement_by_definition() -> None:
    logits, _ = scores(300, 9, 1)
    noisy = logits + np.random.default_rng(2).normal(0, 0.3, logits.shape)
    tally = AgreementTally()
    largest = np.concatenate([tally.update(noisy[i : i + 7], logits[i : i + 7]) for i in range(0, 300, 7)])
    got, error = tally.result(), noisy - logits
    np.testing.assert_array_equal(largest, np.abs(error).max(axis=1))
    assert got.top1.hits == (noisy.argmax(1) == logits.argmax(1)).sum() < 300
    assert got.spread == pytest.approx(logits.std())
    assert got.max_error == pytest.approx(np.abs(error).max() / logits.std())
    assert got.mean_error == pytest.approx(np.abs(error).mean() / logits.std())
    assert got.sqnr_db == pytest.approx(10 * np.log10((logits**2).sum() / (error**2).sum()))


def test_agreement_of_equal_bits() -> None:
    logits, _ = scores(5, 4, 0)
    tally = AgreementTally()
    tally.update(logits, logits)
    got = tally.result()
    assert (got.sqnr_db, got.max_error, got.top1.value) == (None, 0.0, 1.0)


def test_errors_of_logits_that_are_all_zero_are_not_exact() -> None:
    tally = AgreementTally()
    tally.update(np.full((2, 3), 0.5), np.zeros((2, 3)))
    got = tally.result()
    assert got.sqnr_db is not None and got.sqnr_db < -3000
    assert got.max_error == 0.5
