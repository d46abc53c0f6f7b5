"""Calibration of probabilities against scikit-learn and against what they were made from."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from stence_dist.evaluate.calibration import (
    calibration_groups,
    calibration_intercepts,
    calibration_slopes,
    measure_calibration,
)
from stence_dist.evaluate.statistics import patient_counts


def distorted(n: int, seed: int, *, shift: float, slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels of logit P = shift + slope * logit p, and p."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=n) * 1.5
    labels = rng.random(n) < 1 / (1 + np.exp(-(shift + slope * logits)))
    return labels.astype(np.float32), 1 / (1 + np.exp(-logits))


def test_slope_equals_scikit_learn() -> None:
    """Plain and with weights, scikit-learn's unpenalized regression on the logits."""
    labels, probability = distorted(300, 0, shift=0.4, slope=0.6)
    weights = np.random.default_rng(1).integers(0, 4, size=(3, 300)).astype(float)
    logits = np.log(probability / (1 - probability))[:, None]
    expected = [
        LogisticRegression(C=np.inf, tol=1e-9).fit(logits, labels, sample_weight=row).coef_[0, 0] for row in weights
    ]
    np.testing.assert_allclose(calibration_slopes(labels, probability, weights), expected, rtol=1e-5)


def test_intercept_makes_predictions_right_on_average() -> None:
    """The maximum likelihood has sum of labels = sum of probabilities after the shift, with every row of weights."""
    labels, probability = distorted(300, 2, shift=-0.7, slope=1.0)
    weights = np.random.default_rng(3).integers(0, 4, size=(3, 300)).astype(float)
    logits = np.log(probability / (1 - probability))
    for row, shift in zip(weights, calibration_intercepts(labels, probability, weights), strict=True):
        assert (row / (1 + np.exp(-(logits + shift)))).sum() == pytest.approx((row * labels).sum(), rel=1e-9)


def test_both_find_what_was_planted_and_say_where_nothing_is() -> None:
    """Slope and intercept within their intervals of 20,000 rows; None where one class or one probability is left."""
    labels, probability = distorted(20_000, 4, shift=0.0, slope=0.5)
    counts = patient_counts(np.arange(20_000), 20, seed=0)
    found = measure_calibration(labels, probability, counts, level=0.95)
    assert found["slope"] == pytest.approx(0.5, abs=0.03)
    assert found["slope_low"] < found["slope"] < found["slope_high"]
    assert found["intercept"] == pytest.approx(0.0, abs=0.05)
    single = measure_calibration(np.zeros(50), probability[:50], counts[:, :50], level=0.95)
    assert set(single.values()) == {None}
    flat = measure_calibration(labels[:50], np.full(50, 0.3), counts[:, :50], level=0.95)
    assert (flat["slope"], flat["slope_low"]) == (None, None)
    assert flat["intercept"] is not None


def test_groups_equal_scikit_learn() -> None:
    """Means and shares of scikit-learn's quantile bins; sizes add up; ties stay together; Wilson by hand."""
    labels, probability = distorted(205, 5, shift=0.3, slope=1.2)
    groups = calibration_groups(labels, probability)
    observed, predicted = calibration_curve(labels, probability, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(groups.predicted, predicted)
    np.testing.assert_allclose(groups.observed, observed)
    assert groups.size.sum() == 205
    tied = calibration_groups(np.array([0, 1, 1, 1.0]), np.array([0.2, 0.2, 0.2, 0.9]))
    assert tied.size.tolist() == [3, 1]
    assert tied.low[0] == pytest.approx(0.2077, abs=1e-4)  # 2 of 3, Wilson 1927
    assert tied.high[0] == pytest.approx(0.9385, abs=1e-4)


def test_separated_classes_have_no_slope() -> None:
    """The likelihood grows for ever there; the intercept is still one."""
    labels, probability = np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.3, 0.4, 0.45, 0.6, 0.7])
    found = measure_calibration(labels, probability, patient_counts(np.arange(6), 50, seed=0), level=0.95)
    assert [found[name] for name in ("slope", "slope_low", "slope_high")] == [None] * 3
    assert found["intercept"] is not None
