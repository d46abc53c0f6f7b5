"""Nearest neighbors on frozen features: a measure of a representation that trains nothing."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.evaluate.probe import standardization

NEIGHBORS = 5
_BLOCK = 20_000_000  # similarities held at once


def knn_scores(
    reference: NDArray[np.float32],
    labels: NDArray[np.float32],
    queries: NDArray[np.float32],
    *,
    k: int = NEIGHBORS,
    distance: str = "cosine",
) -> NDArray[np.float64]:
    """Share (n,) of positives among the k nearest reference rows.

    reference (m, D) with labels (m,) 0/1, queries (n, D). distance: cosine, of rows standardized by the reference's
    mean and deviation, or euclidean, of the rows as they are (StenCE's).
    """
    known: NDArray[Any]
    asked: NDArray[Any]
    offset: NDArray[Any]
    if distance == "cosine":
        center, scale = standardization(reference.astype(np.float64))
        known, asked = (_unit((rows - center) / scale) for rows in (reference, queries))
        offset = np.zeros(1, dtype=np.float32)
    else:
        # |a - b|^2 less |a|^2, which is alike for all of a's neighbors; double, as the difference may be small.
        known, asked = reference.astype(np.float64), queries.astype(np.float64)
        offset = (known**2).sum(axis=1) / 2
    k = min(k, len(reference))
    step = max(1, _BLOCK // max(1, len(reference)))
    scores = [
        labels[np.argpartition(offset - asked[start : start + step] @ known.T, k - 1, axis=1)[:, :k]].mean(axis=1)
        for start in range(0, len(asked), step)
    ]
    return np.asarray(np.concatenate(scores), dtype=np.float64)


def labelled_knn_scores(
    reference: NDArray[np.float32],
    reference_labels: NDArray[np.float32],
    queries: NDArray[np.float32],
    query_labels: NDArray[np.float32],
    *,
    k: int = NEIGHBORS,
    distance: str = "cosine",
) -> NDArray[np.float64]:
    """`knn_scores` (n,) among the reference rows whose label is known (not NaN).

    NaN where a query's label is unknown, and everywhere where the reference has one class only.
    """
    known, asked = ~np.isnan(reference_labels), ~np.isnan(query_labels)
    scores = np.full(len(queries), np.nan)
    if asked.any() and len(np.unique(reference_labels[known])) == 2:
        scores[asked] = knn_scores(reference[known], reference_labels[known], queries[asked], k=k, distance=distance)
    return scores


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norm > 0, norm, 1), dtype=np.float32)
