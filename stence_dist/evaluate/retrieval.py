"""Finding the right partner: recall and ranks over a whole split. numpy only."""

import numpy as np
from numpy.typing import NDArray

from stence_dist.evaluate.geometry import alignment, effective_rank, spread, uniformity

RECALL_AT = (1, 5, 10)
_BLOCK = 20_000_000  # similarities held at once


def retrieval_metrics(
    ecg: NDArray[np.float32], image: NDArray[np.float32], patient: NDArray[np.int64]
) -> dict[str, float]:
    """Retrieval figures of n pairs, ecg (n, E) and image (n, E) unit norm, patient (n,).

    `ecg_to_image/...` and `image_to_ecg/...` hold recall@1, @5, @10 and median_rank; `recall@k` is the mean of both
    ways; `chance/...` is what a random order gives. The other pairs of a query's patient are no candidates.
    `*_rank` is the effective rank of a tower's embeddings, `*_spread` the spread of their dimensions: both collapse
    towards 1 and 0 where a tower maps everything to one point. `alignment` is between the two of a pair,
    `*_uniformity` within a tower.
    """
    candidates = len(patient) - _own_others(patient)
    metrics: dict[str, float] = {}
    for way, queries, targets in (("ecg_to_image", ecg, image), ("image_to_ecg", image, ecg)):
        ranks = true_ranks(queries, targets, patient)
        metrics |= {f"{way}/recall@{k}": float((ranks <= k).mean()) for k in RECALL_AT}
        metrics[f"{way}/median_rank"] = float(np.median(ranks))
    for k in RECALL_AT:
        metrics[f"recall@{k}"] = (metrics[f"ecg_to_image/recall@{k}"] + metrics[f"image_to_ecg/recall@{k}"]) / 2
        metrics[f"chance/recall@{k}"] = float(np.minimum(1, k / candidates).mean())
    metrics["chance/median_rank"] = float(np.median((candidates + 1) / 2))
    for tower, embeddings in (("ecg", ecg), ("image", image)):
        metrics[f"{tower}_rank"] = effective_rank(embeddings)
        metrics[f"{tower}_spread"] = spread(embeddings)
        metrics[f"{tower}_uniformity"] = uniformity(embeddings)
    metrics["alignment"] = alignment(ecg, image)
    return metrics


def true_ranks(
    queries: NDArray[np.float32], targets: NDArray[np.float32], patient: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Rank (n,) of each query's own target among its candidates, 1 = best; ties share their mean rank."""
    n = len(patient)
    ranks = np.empty(n)
    step = max(1, _BLOCK // max(1, n))
    for start in range(0, n, step):
        stop = min(n, start + step)
        similarity = queries[start:stop] @ targets.T  # (block, n)
        own = similarity[np.arange(stop - start), np.arange(start, stop)][:, None]
        other = patient[start:stop, None] != patient[None, :]
        better = ((similarity > own) & other).sum(axis=1)
        equal = ((similarity == own) & other).sum(axis=1)
        ranks[start:stop] = 1 + better + equal / 2
    return ranks


def _own_others(patient: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many other pairs (n,) each pair's patient has."""
    _, inverse, counts = np.unique(patient, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] - 1, dtype=np.int64)
