"""The linear probe and nearest neighbors on planted features."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from stence_dist.evaluate.knn import knn_scores, labelled_knn_scores
from stence_dist.evaluate.probe import STRENGTHS, demographics, fit_probe, probe_scores
from stence_dist.evaluate.statistics import auroc, known_auroc


def planted(n: int, seed: int, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Features whose first direction, of another scale and offset, carries the label."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(np.float32)
    features = rng.normal(size=(n, width)).astype(np.float32)
    features[:, 0] += 2 * labels
    features[:, 0] = 100 * features[:, 0] - 7
    return features, labels


def test_probe_finds_a_planted_direction() -> None:
    """The largest weight is the planted one, and new data reach the AUROC that the direction allows (about .92)."""
    features, labels = planted(400, 0)
    probe = fit_probe(features, labels, np.arange(400), seed=0)
    assert np.abs(probe.weights).argmax() == 0
    fresh, truth = planted(2000, 1)
    assert auroc(truth, probe.predict(fresh)) > 0.9


def test_probe_equals_scikit_learn_at_its_strength() -> None:
    """Probabilities equal those of scikit-learn on standardized features with the chosen C."""
    features, labels = planted(200, 2)
    probe = fit_probe(features, labels, np.arange(200), seed=0)
    standard = (features - features.mean(axis=0, dtype=np.float64)) / features.std(axis=0, dtype=np.float64)
    peer = LogisticRegression(C=probe.strength, max_iter=2000).fit(standard, labels)
    np.testing.assert_allclose(probe.predict(features), peer.predict_proba(standard)[:, 1], atol=1e-4)


def test_probe_is_deterministic() -> None:
    """The same arguments give the same probe."""
    features, labels = planted(60, 3, width=100)
    first, second = (fit_probe(features, labels, np.arange(60), seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)
    assert first.strength == second.strength


def test_folds_count_patients_not_rows() -> None:
    """Ten positive rows of one patient allow no cross-validation (middle C); of ten patients they do (smallest C)."""
    labels = np.repeat([1.0, 0.0], [10, 30]).astype(np.float32)
    features = labels[:, None] + 0.1 * np.random.default_rng(4).normal(size=(40, 5))
    patient = np.concatenate([np.zeros(10), np.arange(1, 31)]).astype(np.int64)
    assert fit_probe(features, labels, patient, seed=0).strength == STRENGTHS[len(STRENGTHS) // 2]
    assert fit_probe(features, labels, np.arange(40), seed=0).strength == STRENGTHS[0]


@pytest.mark.parametrize("positives", [1, 2])
def test_probe_works_with_few_of_a_class(positives: int) -> None:
    """One positive leaves nothing to cross-validate, two leave two folds; constant features are no trouble."""
    features, _ = planted(12, 6)
    features[:, 3] = 1.0
    labels = np.zeros(12, dtype=np.float32)
    labels[:positives] = 1
    assert np.isfinite(fit_probe(features, labels, np.arange(12), seed=0).predict(features)).all()


def test_probe_scores_leave_unknown_labels_out() -> None:
    """NaN labels on either side count for nothing and have no score; one class gives none at all."""
    features, labels = planted(200, 7)
    known = labels.copy()
    known[::3] = np.nan
    patient, keep = np.arange(200), ~np.isnan(known)
    partial = probe_scores(features, known, features, known, patient=patient, seed=0)
    without = (features[keep], labels[keep])
    whole = probe_scores(*without, *without, patient=patient[keep], seed=0)
    np.testing.assert_array_equal(partial[keep], whole)
    assert np.isnan(partial[~keep]).all()
    assert known_auroc(known, partial) == auroc(labels[keep], whole)
    one_class = np.zeros(200, dtype=np.float32)
    nothing = probe_scores(features, one_class, features, labels, patient=patient, seed=0)
    assert np.isnan(nothing).all()
    assert np.isnan(known_auroc(labels, nothing))


def test_neighbors_equal_scikit_learn() -> None:
    """Scores equal scikit-learn's 5 nearest by cosine on standardized features."""
    features, labels = planted(150, 8)
    queries, truth = planted(60, 9)
    center, scale = features.mean(axis=0), features.std(axis=0)
    peer = KNeighborsClassifier(5, metric="cosine").fit((features - center) / scale, labels)
    expected = peer.predict_proba((queries - center) / scale)[:, 1]
    np.testing.assert_allclose(knn_scores(features, labels, queries), expected, atol=1e-6)
    asked = np.where(np.arange(60) % 4, truth, np.nan).astype(np.float32)
    scores = labelled_knn_scores(features, labels, queries, asked)
    np.testing.assert_array_equal(np.isnan(scores), np.isnan(asked))
    scored = ~np.isnan(asked)
    assert known_auroc(asked, scores) == pytest.approx(auroc(truth[scored], expected[scored]))
    for reference in (np.full(150, np.nan, dtype=np.float32), np.ones(150, dtype=np.float32)):
        assert np.isnan(labelled_knn_scores(features, reference, queries, truth)).all()
    constant = np.full((150, 1), 0.1, dtype=np.float32)  # its float32 deviation is not 0
    wider, asked_wider = np.hstack([features, constant]), np.hstack([queries, constant[:1].repeat(len(queries), 0)])
    np.testing.assert_array_equal(knn_scores(wider, labels, asked_wider), knn_scores(features, labels, queries))


def test_demographics_impute_from_the_fitted_rows() -> None:
    """A missing age is the median of the rows that the baseline is fitted on, never of others; flags mark it."""
    age = np.array([50, 60, np.nan, 90, np.nan], dtype=np.float32)
    sex = np.array(["M", "F", "", "M", "F"])
    expected = [[50, 0, 1, 0], [60, 0, 0, 0], [55, 1, 0.5, 1], [90, 0, 1, 0], [55, 1, 0, 0]]
    np.testing.assert_array_equal(demographics(age, sex, np.arange(3)), expected)
