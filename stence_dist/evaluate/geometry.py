"""How embeddings lie on the sphere: near their partners, evenly spread, or collapsed. numpy only."""

import numpy as np
from numpy.typing import NDArray

_BLOCK = 20_000_000  # similarities held at once


def alignment(ecg: NDArray[np.float32], image: NDArray[np.float32]) -> float:
    """Mean squared distance of the two embeddings of a pair, ecg (n, E) and image (n, E) unit norm.

    Wang and Isola 2020 (arXiv:2005.10242), alpha = 2: 0 where partners coincide, 2 where they have nothing in common,
    4 where they are opposite.
    """
    return float(((ecg.astype(np.float64) - image) ** 2).sum(axis=1).mean())


def uniformity(embeddings: NDArray[np.float32]) -> float:
    """Logarithm of the mean of exp(-2 |x - y|^2) over all pairs of different rows, embeddings (n, E) unit norm.

    Wang and Isola 2020 (arXiv:2005.10242), t = 2: 0 where all rows are one point; towards -4 where rows are spread
    evenly over a sphere of many dimensions. NaN for fewer than two rows.
    """
    n = len(embeddings)
    if n < 2:
        return float("nan")
    step = max(1, _BLOCK // n)
    total = 0.0
    for start in range(0, n, step):
        near = np.exp(4 * (embeddings[start : start + step] @ embeddings.T - 1))  # |x - y|^2 = 2 - 2 x.y
        near[np.arange(len(near)), np.arange(start, start + len(near))] = 0
        total += float(near.sum(dtype=np.float64))
    return float(np.log(total / (n * (n - 1))))


def effective_rank(embeddings: NDArray[np.float32]) -> float:
    """exp of the entropy of the normalized singular values (Roy and Vetterli 2007): 1 to E, low where collapsed."""
    values = np.linalg.svd(embeddings.astype(np.float64), compute_uv=False)
    if values.sum() == 0:
        return 1.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def spread(embeddings: NDArray[np.float32]) -> float:
    """Mean deviation of the dimensions times sqrt(E): about 1 where unit vectors spread evenly, 0 at a point."""
    return float(embeddings.astype(np.float64).std(axis=0).mean() * np.sqrt(embeddings.shape[1]))
