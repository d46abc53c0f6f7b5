"""Discrimination, calibration and intervals of a binary prediction. numpy only.

Everything takes weights (R, n) over the n rows and returns one value per row of weights: all ones gives the plain
figure, and the counts of `patient_counts` give its bootstrap replicates by patient. A figure that does not exist (one
class only) is NaN inside arrays and None in what leaves this module.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.seeds import generator

Floats = NDArray[np.float64]
Figure = Callable[[Floats], Floats]  # weights (R, n) -> values (R,)

_BLOCK = 4_000_000  # weights cast to float64 at once


def sigmoid(logits: NDArray[Any]) -> Floats:
    """Probabilities of logits, of their shape."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700))))


def patient_counts(patient: NDArray[np.int64], draws: int, seed: int) -> NDArray[np.uint8]:
    """Bootstrap weights (draws, n): how often each row's patient was drawn, with replacement, among all patients."""
    _, inverse = np.unique(patient, return_inverse=True)
    patients = int(inverse.max()) + 1
    rng = generator(seed, "bootstrap")
    counts = np.empty((draws, len(patient)), dtype=np.uint8)
    for draw in range(draws):
        counts[draw] = np.bincount(rng.integers(patients, size=patients), minlength=patients)[inverse]
    return counts


def replicates(figure: Figure, counts: NDArray[np.uint8]) -> Floats:
    """Values (draws,) of a figure under bootstrap weights (draws, n), in blocks that bound memory."""
    step = max(1, _BLOCK // max(1, counts.shape[1]))
    blocks = [figure(counts[start : start + step].astype(np.float64)) for start in range(0, len(counts), step)]
    return np.concatenate(blocks)


def interval(values: Floats, level: float = 0.95) -> tuple[float | None, float | None]:
    """Percentile interval of bootstrap replicates; (None, None) where fewer than half of them exist."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0 or 2 * len(finite) < len(values):
        return None, None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def weighted_auroc(labels: NDArray[Any], scores: NDArray[Any], weights: Floats) -> Floats:
    """Areas (R,) under the ROC curve: P(score of a positive > score of a negative), ties counting half."""
    positive, negative = _by_score(labels, scores, weights, descending=False)
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore"):
        return np.asarray((positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1)))


def weighted_auprc(labels: NDArray[Any], scores: NDArray[Any], weights: Floats) -> Floats:
    """Average precisions (R,): precision at every distinct score, weighted by the recall gained there."""
    positive, negative = _by_score(labels, scores, weights, descending=True)
    found = np.cumsum(positive, axis=1)
    called = found + np.cumsum(negative, axis=1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    with np.errstate(invalid="ignore"):
        values = (precision * positive).sum(axis=1) / positive.sum(axis=1)
    return np.where(negative.sum(axis=1) > 0, values, np.nan)


def _by_score(
    labels: NDArray[Any], scores: NDArray[Any], weights: Floats, *, descending: bool
) -> tuple[Floats, Floats]:
    """Weights of positives and of negatives (R, distinct scores) in order of score. Raises ValueError for a NaN."""
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN and have no order.")
    order = np.argsort(-scores if descending else scores, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) != 0]))
    sorted_weights, truth = weights[:, order], labels[order].astype(np.float64)
    positive, negative = sorted_weights * truth, sorted_weights * (1 - truth)
    if len(starts) < len(order):
        positive, negative = np.add.reduceat(positive, starts, axis=1), np.add.reduceat(negative, starts, axis=1)
    return positive, negative


def auroc(labels: NDArray[Any], scores: NDArray[Any]) -> float | None:
    """Area under the ROC curve of labels (n,) 0/1 and scores (n,); None where there is one class only."""
    return _number(weighted_auroc(labels, scores, np.ones((1, len(labels))))[0]) if len(labels) else None


def known_auroc(labels: NDArray[Any], scores: NDArray[Any]) -> float:
    """`auroc` over the rows that have a score (not NaN); NaN where there are none, or one class only."""
    scored = ~np.isnan(scores)
    value = auroc(labels[scored], scores[scored])
    return float("nan") if value is None else value


def auprc(labels: NDArray[Any], scores: NDArray[Any]) -> float | None:
    """Average precision of labels (n,) 0/1 and scores (n,); None where there is one class only."""
    return _number(weighted_auprc(labels, scores, np.ones((1, len(labels))))[0]) if len(labels) else None


def roc_curve(labels: NDArray[Any], scores: NDArray[Any]) -> tuple[Floats, Floats]:
    """False and true positive rates at every distinct score, from (0, 0) to (1, 1). Both classes must be there."""
    positive, negative = _by_score(labels, scores, np.ones((1, len(labels))), descending=True)
    rates = [np.concatenate([[0.0], np.cumsum(side[0]) / side.sum()]) for side in (negative, positive)]
    return rates[0], rates[1]


def precision_recall_curve(labels: NDArray[Any], scores: NDArray[Any]) -> tuple[Floats, Floats]:
    """Recall and precision (k,) at every distinct score that finds a positive, from the largest on; there must be one.

    The steps whose area is `auprc`: precision at a score holds for the recall gained there.
    """
    positive, negative = _by_score(labels, scores, np.ones((1, len(labels))), descending=True)
    found, called = np.cumsum(positive[0]), np.cumsum((positive + negative)[0])
    gained = positive[0] > 0
    return found[gained] / positive.sum(), found[gained] / called[gained]


def choose_threshold(labels: NDArray[Any], probabilities: NDArray[Any]) -> float:
    """The probability from which (>=) to call a row positive: the largest Youden index (Youden 1950).

    Of several that do equally well, the one with the most equal sensitivity and specificity.
    """
    candidates = np.unique(probabilities)[::-1]
    false_rate, true_rate = roc_curve(labels, probabilities)
    youden = (true_rate - false_rate)[1:]
    balance = -np.abs(true_rate + false_rate - 1)[1:]
    return float(candidates[np.lexsort((balance, np.round(youden, 12)))[-1]])


def weighted_calls(
    labels: NDArray[Any], probabilities: NDArray[Any], threshold: float, weights: Floats
) -> dict[str, Floats]:
    """Sensitivity, specificity, ppv and npv, each (R,), of calling `probability >= threshold` positive."""
    truth, called = labels.astype(bool), probabilities >= threshold

    def total(rows: NDArray[np.bool_]) -> Floats:
        return np.asarray(weights[:, rows].sum(axis=1))

    right, wrong, missed, spared = (
        total(truth & called), total(~truth & called), total(truth & ~called), total(~truth & ~called)
    )  # fmt: skip
    with np.errstate(invalid="ignore"):
        return {
            "sensitivity": right / (right + missed),
            "specificity": spared / (spared + wrong),
            "ppv": right / (right + wrong),
            "npv": spared / (spared + missed),
        }


def figures(labels: NDArray[Any], probabilities: NDArray[Any], threshold: float | None) -> dict[str, Figure]:
    """Every figure that is reported of a binary prediction, by name, as a function of weights (R, n)."""
    squares = (probabilities.astype(np.float64) - labels) ** 2

    def brier(weights: Floats) -> Floats:
        return np.asarray((weights * squares).sum(axis=1) / weights.sum(axis=1))

    def call(name: str, threshold: float) -> Figure:
        return lambda weights: weighted_calls(labels, probabilities, threshold, weights)[name]

    found: dict[str, Figure] = {
        "auroc": lambda weights: weighted_auroc(labels, probabilities, weights),
        "auprc": lambda weights: weighted_auprc(labels, probabilities, weights),
        "brier": brier,
    }
    if threshold is not None:
        for name in ("sensitivity", "specificity", "ppv", "npv"):
            found[name] = call(name, threshold)
    return found


def measure(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    counts: NDArray[np.uint8],
    *,
    threshold: float | None,
    level: float,
) -> dict[str, float | None]:
    """Each figure as `name`, `name_low`, `name_high`: the value and its interval under bootstrap weights `counts`."""
    result: dict[str, float | None] = {}
    ones = np.ones((1, len(labels)))
    for name, figure in figures(labels, probabilities, threshold).items():
        result[name] = _number(figure(ones)[0])
        low, high = interval(replicates(figure, counts), level)
        result[f"{name}_low"], result[f"{name}_high"] = (low, high) if result[name] is not None else (None, None)
    return result


def measure_difference(
    labels: NDArray[Any], first: NDArray[Any], second: NDArray[Any], counts: NDArray[np.uint8], *, level: float
) -> dict[str, float | None]:
    """AUROC, AUPRC and Brier of `first` minus those of `second` on the same rows, with paired intervals."""
    result: dict[str, float | None] = {}
    ones = np.ones((1, len(labels)))
    left, right = figures(labels, first, None), figures(labels, second, None)
    for name in left:
        result[name] = _number((left[name](ones) - right[name](ones))[0])
        low, high = interval(replicates(left[name], counts) - replicates(right[name], counts), level)
        result[f"{name}_low"], result[f"{name}_high"] = (low, high) if result[name] is not None else (None, None)
    return result


def interval_text(value: float | None, low: float | None, high: float | None) -> str:
    """A figure and its interval for a log line."""
    if value is None:
        return "undefined (one class)"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
