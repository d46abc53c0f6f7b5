"""A linear probe: standardized logistic regression whose strength is chosen by patient-grouped cross-validation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.evaluate.statistics import auroc, sigmoid
from stence_dist.seeds import derive

STRENGTHS = tuple(float(value) for value in np.logspace(-4, -1, 7))  # C, from the strongest regularization on
FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """A fitted probe on features (n, D)."""

    center: NDArray[np.float64]  # (D,)
    scale: NDArray[np.float64]  # (D,)
    weights: NDArray[np.float64]  # (D,)
    bias: float
    strength: float  # the chosen C

    def predict(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities (n,) of the target."""
        return sigmoid(((features - self.center) / self.scale) @ self.weights + self.bias)


def fit_probe(
    features: NDArray[np.floating], labels: NDArray[np.float32], patient: NDArray[np.int64], *, seed: int
) -> Probe:
    """A probe of labels (n,) 0/1, both there, on features (n, D). Deterministic in its arguments.

    C is the smallest of `STRENGTHS` with the largest mean AUROC over 5 stratified folds that keep a patient's rows
    together; fewer folds where a class has fewer patients, and the middle C where it has only one.
    """
    wide = features.astype(np.float64)
    strength = _choose_strength(wide, labels, patient, seed)
    center, scale = standardization(wide)
    model = _fit((wide - center) / scale, labels, strength)
    return Probe(center, scale, model.coef_[0].astype(np.float64), float(model.intercept_[0]), strength)


def _choose_strength(
    features: NDArray[np.float64], labels: NDArray[np.float32], patient: NDArray[np.int64], seed: int
) -> float:
    folds = min(FOLDS, *(len(np.unique(patient[labels == value])) for value in (0, 1)))
    if folds < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    from sklearn.model_selection import StratifiedGroupKFold  # here, so that ranks start a second sooner

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=derive(seed, "folds") % 2**32)
    totals, counts = np.zeros(len(STRENGTHS)), np.zeros(len(STRENGTHS))
    for fit, held in splitter.split(features, labels, patient):
        if len(np.unique(labels[fit])) < 2:
            continue
        center, scale = standardization(features[fit])
        standard = (features - center) / scale
        for index, strength in enumerate(STRENGTHS):
            value = auroc(labels[held], _fit(standard[fit], labels[fit], strength).decision_function(standard[held]))
            if value is not None:
                totals[index] += value
                counts[index] += 1
    if not counts.any():
        return STRENGTHS[len(STRENGTHS) // 2]
    return STRENGTHS[int(np.argmax(np.round(totals / counts, 9)))]


def standardization(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What features (n, D) are centered at and divided by, both (D,); 1 for a feature that does not vary."""
    center, scale = features.mean(axis=0), features.std(axis=0)
    return center, np.where(scale > 1e-12 * np.maximum(1, np.abs(center)), scale, 1.0)


def _fit(features: NDArray[np.float64], labels: NDArray[np.float32], strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=2000).fit(features, labels.astype(np.int64))


def probe_scores(
    reference: NDArray[np.floating],
    reference_labels: NDArray[np.float32],
    queries: NDArray[np.floating],
    query_labels: NDArray[np.float32],
    *,
    patient: NDArray[np.int64],
    seed: int,
) -> NDArray[np.float64]:
    """Probabilities (n,) on queries (n, D) of a probe fitted on reference rows (m, D); patient (m,) of those.

    Reference rows of unknown label (NaN) are left out. NaN where a query's label is unknown, and everywhere where the
    reference has one class only.
    """
    known, asked = ~np.isnan(reference_labels), ~np.isnan(query_labels)
    scores = np.full(len(queries), np.nan)
    if len(np.unique(reference_labels[known])) == 2:
        probe = fit_probe(reference[known], reference_labels[known], patient[known], seed=seed)
        scores[asked] = probe.predict(queries[asked])
    return scores


def demographics(age: NDArray[np.float32], sex: NDArray[np.str_], fit: NDArray[np.intp]) -> NDArray[np.float64]:
    """Features (n, 4) of the age + sex baseline: age, age missing, sex (M = 1, F = 0, else 0.5), sex missing.

    A missing age is the median over the rows `fit` that the baseline is fitted on.
    """
    age_missing = np.isnan(age)
    known = age[fit][~age_missing[fit]]
    filled = np.where(age_missing, np.median(known) if len(known) else 0.0, age)
    male, female = sex == "M", sex == "F"
    return np.stack([filled, age_missing, np.where(male, 1.0, np.where(female, 0.0, 0.5)), ~(male | female)], axis=1)
