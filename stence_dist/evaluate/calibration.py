"""Do probabilities mean what they say? Slope, intercept and groups. numpy only."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stence_dist.evaluate.statistics import Floats, interval, replicates, sigmoid

GROUPS = 10
_STEPS, _ENOUGH = 50, 1e-10  # Newton's; it needs all of them only where nothing converges
_CONVERGED, _FLAT = 1e-6, 1e-12  # a last step below it; a curvature above it
_BOUND = 1e-6  # probabilities of 0 and 1 have no logit
_Z = 1.959964  # of a 95 % interval


def _logits(probabilities: NDArray[Any]) -> Floats:
    bounded = np.clip(probabilities.astype(np.float64), _BOUND, 1 - _BOUND)
    return np.asarray(np.log(bounded / (1 - bounded)))


def calibration_intercepts(labels: NDArray[Any], probabilities: NDArray[Any], weights: Floats) -> Floats:
    """(R,) a of logit P(label) = a + logit p by maximum likelihood, under weights (R, n).

    0 where predictions are right on average, negative where they are too high; "calibration in the large" (Van Calster
    et al. 2019, doi:10.1186/s12916-019-1466-7). NaN where one class is missing.
    """
    logits, truth = _logits(probabilities), labels.astype(np.float64)
    shift = np.zeros(len(weights))
    for _ in range(_STEPS):
        expected = sigmoid(shift[:, None] + logits)
        slope = (weights * expected * (1 - expected)).sum(axis=1)
        step = np.clip((weights * (truth - expected)).sum(axis=1) / np.maximum(slope, 1e-12), -2, 2)
        shift += step
        if np.abs(step).max() < _ENOUGH:
            break
    return np.where(_both_classes(truth, weights), shift, np.nan)


def calibration_slopes(labels: NDArray[Any], probabilities: NDArray[Any], weights: Floats) -> Floats:
    """(R,) b of logit P(label) = a + b logit p by maximum likelihood, under weights (R, n).

    1 is right; below 1 predictions are too extreme, above 1 too timid (same source). NaN where there is no such b: one
    class is missing, the probabilities are all alike, or they separate the classes.
    """
    logits, truth = _logits(probabilities), labels.astype(np.float64)
    center, scale = logits.mean(), logits.std()
    if scale < 1e-9:
        return np.full(len(weights), np.nan)
    x = (logits - center) / scale  # so that both steps below are of one size
    a, b = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_STEPS):
        expected = sigmoid(a[:, None] + b[:, None] * x)
        spread, missed = weights * expected * (1 - expected), weights * (truth - expected)
        h_aa, h_ab, h_bb = spread.sum(axis=1), (spread * x).sum(axis=1), (spread * x * x).sum(axis=1)
        g_a, g_b = missed.sum(axis=1), (missed * x).sum(axis=1)
        determinant = h_aa * h_bb - h_ab**2
        bounded = np.maximum(determinant, _FLAT)
        step_a = np.clip((h_bb * g_a - h_ab * g_b) / bounded, -2, 2)
        step_b = np.clip((h_aa * g_b - h_ab * g_a) / bounded, -2, 2)
        a, b = a + step_a, b + step_b
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < _ENOUGH:
            break
    found = (determinant > _FLAT) & (np.abs(step_b) < _CONVERGED)
    return np.where(_both_classes(truth, weights) & found, b / scale, np.nan)


def _both_classes(truth: Floats, weights: Floats) -> NDArray[np.bool_]:
    return np.asarray((weights @ truth > 0) & (weights @ (1 - truth) > 0))


def measure_calibration(
    labels: NDArray[Any], probabilities: NDArray[Any], counts: NDArray[np.uint8], *, level: float
) -> dict[str, float | None]:
    """`intercept` and `slope`, each with `_low` and `_high` under bootstrap weights `counts`; None where undefined."""
    result: dict[str, float | None] = {}
    ones = np.ones((1, len(labels)))
    for name, figure in (("intercept", calibration_intercepts), ("slope", calibration_slopes)):
        value = float(figure(labels, probabilities, ones)[0])
        drawn = replicates(lambda weights, figure=figure: figure(labels, probabilities, weights), counts)  # type: ignore[misc]
        known = np.isfinite(value)
        result[name] = value if known else None
        result[f"{name}_low"], result[f"{name}_high"] = interval(drawn, level) if known else (None, None)
    return result


class CalibrationGroups(NamedTuple):
    """Groups of rows of like probability, each an array (g,)."""

    predicted: Floats  # mean probability
    observed: Floats  # share of positives
    low: Floats  # 95 % Wilson interval of that share
    high: Floats
    size: NDArray[np.int64]


def calibration_groups(labels: NDArray[Any], probabilities: NDArray[Any]) -> CalibrationGroups:
    """At most ten groups of equal size by probability; rows of one probability stay together."""
    n = len(labels)
    edges = np.quantile(probabilities, np.arange(1, GROUPS) / GROUPS)
    _, group = np.unique(np.searchsorted(edges, probabilities, side="left"), return_inverse=True)
    count = np.bincount(group) if n else np.zeros(0, dtype=np.int64)
    predicted = np.bincount(group, weights=probabilities) / count
    share = np.bincount(group, weights=labels) / count
    center = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    return CalibrationGroups(predicted, share, center - half, center + half, count)
