"""Figures of a binary prediction against scikit-learn, and intervals against a simulated truth."""

import math

import numpy as np
import pytest
from sklearn import metrics as peer

from stence_dist.evaluate.statistics import (
    auprc,
    auroc,
    choose_threshold,
    interval,
    measure,
    measure_difference,
    patient_counts,
    precision_recall_curve,
    replicates,
    roc_curve,
    weighted_auprc,
    weighted_auroc,
    weighted_calls,
)


def prediction(n: int, seed: int, *, ties: bool = False, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Binormal scores whose positives lie `shift` higher; with ties, rounded to one digit."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(np.float32)
    scores = rng.normal(size=n) + shift * labels
    return labels, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
def test_areas_equal_scikit_learn(ties: bool) -> None:
    """AUROC and AUPRC equal scikit-learn's, plain and with sample weights, with and without tied scores."""
    labels, scores = prediction(300, 1, ties=ties)
    assert auroc(labels, scores) == pytest.approx(peer.roc_auc_score(labels, scores), abs=1e-12)
    assert auprc(labels, scores) == pytest.approx(peer.average_precision_score(labels, scores), abs=1e-12)
    weights = np.random.default_rng(2).integers(0, 4, size=(5, 300)).astype(float)
    for ours, theirs in ((weighted_auroc, peer.roc_auc_score), (weighted_auprc, peer.average_precision_score)):
        expected = [theirs(labels, scores, sample_weight=row) for row in weights]
        np.testing.assert_allclose(ours(labels, scores, weights), expected, atol=1e-12)


def test_roc_curve_equals_scikit_learn() -> None:
    """All points of the curve, with ties."""
    labels, scores = prediction(200, 3, ties=True)
    expected = peer.roc_curve(labels, scores, drop_intermediate=False)
    ours = roc_curve(labels, scores)
    np.testing.assert_allclose(ours[0], expected[0], atol=1e-12)
    np.testing.assert_allclose(ours[1], expected[1], atol=1e-12)


def test_precision_recall_curve_equals_scikit_learn() -> None:
    """With ties: scikit-learn's points at which recall is gained; the area of the steps is AUPRC."""
    labels, scores = prediction(200, 3, ties=True)
    precision, recall, _ = peer.precision_recall_curve(labels, scores)
    gained = np.flatnonzero(np.diff(recall) < 0)[::-1]
    ours = precision_recall_curve(labels, scores)
    np.testing.assert_allclose(ours[0], recall[gained], atol=1e-12)
    np.testing.assert_allclose(ours[1], precision[gained], atol=1e-12)
    assert (np.diff(ours[0], prepend=0) * ours[1]).sum() == pytest.approx(auprc(labels, scores), abs=1e-12)


def test_one_class_has_no_area() -> None:
    """None, not NaN and not 0.5, where a class is missing or nothing is there."""
    assert auroc(np.ones(5), np.arange(5.0)) is None
    assert auprc(np.zeros(5), np.arange(5.0)) is None
    assert auprc(np.ones(5), np.arange(5.0)) is None
    assert auroc(np.zeros(0), np.zeros(0)) is None


def test_scores_that_are_no_numbers_have_no_area() -> None:
    """Their order would be that of the rows."""
    for area in (auroc, auprc):
        with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
            area(np.array([0, 1]), np.array([0.5, np.nan]))


def test_threshold_has_the_largest_youden_index() -> None:
    """No other observed probability does better, by brute force; the calls match scikit-learn's confusion matrix."""
    labels, scores = prediction(150, 4)
    probability = 1 / (1 + np.exp(-scores))
    threshold = choose_threshold(labels, probability)

    def youden(value: float) -> float:
        calls = probability >= value
        return float(calls[labels == 1].mean() - calls[labels == 0].mean())

    assert youden(threshold) == pytest.approx(max(youden(value) for value in probability))
    calls = weighted_calls(labels, probability, threshold, np.ones((1, 150)))
    (spared, wrong), (missed, right) = peer.confusion_matrix(labels, probability >= threshold)
    assert calls["sensitivity"][0] == pytest.approx(right / (right + missed))
    assert calls["specificity"][0] == pytest.approx(spared / (spared + wrong))
    assert calls["ppv"][0] == pytest.approx(right / (right + wrong))
    assert calls["npv"][0] == pytest.approx(spared / (spared + missed))


def test_bootstrap_keeps_patients_together() -> None:
    """Rows of one patient always have one count, and as many patients are drawn as there are."""
    patient = np.array([7, 3, 7, 5, 3, 7])
    counts = patient_counts(patient, 200, seed=0)
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 0] == counts[:, 5]).all()
    assert (counts[:, 1] == counts[:, 4]).all()
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert len(np.unique(counts[:, 0])) > 1


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicates in blocks of a few rows equal those in one block."""
    labels, scores = prediction(60, 5)
    counts = patient_counts(np.arange(60), 40, seed=1)
    whole = replicates(lambda w: weighted_auroc(labels, scores, w), counts)
    monkeypatch.setattr("stence_dist.evaluate.statistics._BLOCK", 7 * 60)
    np.testing.assert_array_equal(replicates(lambda w: weighted_auroc(labels, scores, w), counts), whole)


def test_interval_covers_the_truth() -> None:
    """Over 200 simulated test sets the 90 % interval holds the true binormal AUROC about 90 % of the time."""
    truth = 0.5 * (1 + math.erf(1.0 / 2))  # Phi(shift / sqrt 2) for unit variances
    covered = 0
    for trial in range(200):
        labels, scores = prediction(200, 1000 + trial)
        counts = patient_counts(np.arange(200), 200, seed=trial)
        low, high = interval(replicates(lambda w, y=labels, s=scores: weighted_auroc(y, s, w), counts), 0.9)
        covered += low <= truth <= high
    assert 0.83 <= covered / 200 <= 0.96


def test_measures_are_numbers_or_null() -> None:
    """Every figure with bounds around it; null everywhere where the labels have one class, Brier aside."""
    labels, scores = prediction(200, 6)
    probability = 1 / (1 + np.exp(-scores))
    counts = patient_counts(np.arange(200), 100, seed=0)
    values = measure(labels, probability, counts, threshold=0.5, level=0.95)
    for name in ("auroc", "auprc", "brier", "sensitivity", "specificity", "ppv", "npv"):
        assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]
    assert values["brier"] == pytest.approx(peer.brier_score_loss(labels, probability))
    single = measure(np.zeros(200), probability, counts, threshold=0.5, level=0.95)
    assert single["auroc"] is None
    assert single["auroc_low"] is None
    assert single["sensitivity"] is None
    assert single["specificity"] is not None


def test_a_paired_difference_is_narrower() -> None:
    """Two nearly equal predictions differ by a well-known amount although each alone is uncertain."""
    labels, scores = prediction(200, 7)
    other = scores + np.random.default_rng(8).normal(size=200) * 0.05
    counts = patient_counts(np.arange(200), 200, seed=0)
    alone = measure(labels, scores, counts, threshold=None, level=0.95)
    paired = measure_difference(labels, scores, other, counts, level=0.95)
    assert paired["auroc"] == pytest.approx(auroc(labels, scores) - auroc(labels, other))
    assert paired["auroc_low"] <= paired["auroc"] <= paired["auroc_high"]
    assert paired["auroc_high"] - paired["auroc_low"] < 0.3 * (alone["auroc_high"] - alone["auroc_low"])
