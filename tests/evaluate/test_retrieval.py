"""Ranks against a brute-force search; collapse shows."""

import numpy as np
import pytest

from stence_dist.evaluate.geometry import alignment, uniformity
from stence_dist.evaluate.retrieval import retrieval_metrics, true_ranks


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length one."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def cohort(n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Related embeddings of n pairs; some patients have two or three of them, some targets are exactly equal."""
    rng = np.random.default_rng(0)
    ecg = unit(rng.normal(size=(n, 8)))
    image = unit(ecg + 0.8 * rng.normal(size=(n, 8)))
    image[5], image[6] = image[4], image[4]
    patient = np.arange(n) // 2
    patient[:3] = 99
    return ecg, image, patient


def brute_force(queries: np.ndarray, targets: np.ndarray, patient: np.ndarray) -> list[float]:
    """Ranks by sorting each query's own candidates, one at a time."""
    ranks = []
    for query in range(len(patient)):
        own = float(queries[query] @ targets[query])
        others = [float(queries[query] @ targets[c]) for c in range(len(patient)) if patient[c] != patient[query]]
        equal = sum(abs(other - own) < 1e-7 for other in others)
        ranks.append(1 + sum(other > own + 1e-7 for other in others) + equal / 2)
    return ranks


def test_ranks_equal_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """With repeated patients and tied targets, in one block and in blocks of three rows."""
    ecg, image, patient = cohort()
    expected = brute_force(ecg, image, patient)
    np.testing.assert_allclose(true_ranks(ecg, image, patient), expected)
    monkeypatch.setattr("stence_dist.evaluate.retrieval._BLOCK", 3 * len(patient))
    np.testing.assert_allclose(true_ranks(ecg, image, patient), expected)


def test_metrics_follow_from_ranks() -> None:
    """recall@k and medians of both ways from brute-force ranks; chance from the number of candidates."""
    ecg, image, patient = cohort()
    metrics = retrieval_metrics(ecg, image, patient)
    there, back = np.array(brute_force(ecg, image, patient)), np.array(brute_force(image, ecg, patient))
    for k in (1, 5, 10):
        assert metrics[f"ecg_to_image/recall@{k}"] == pytest.approx((there <= k).mean())
        assert metrics[f"image_to_ecg/recall@{k}"] == pytest.approx((back <= k).mean())
        assert metrics[f"recall@{k}"] == pytest.approx(((there <= k).mean() + (back <= k).mean()) / 2)
    candidates = np.array([1 + (patient != own).sum() for own in patient])
    assert metrics["chance/recall@5"] == pytest.approx((5 / candidates).mean())
    assert metrics["image_to_ecg/median_rank"] == np.median(back)
    assert metrics["alignment"] == alignment(ecg, image)
    assert (metrics["ecg_uniformity"], metrics["image_uniformity"]) == (uniformity(ecg), uniformity(image))


def test_chance_is_what_unrelated_embeddings_reach() -> None:
    """Embeddings without relation have the recall and the median rank that chance/... announces."""
    rng = np.random.default_rng(1)
    metrics = retrieval_metrics(unit(rng.normal(size=(600, 16))), unit(rng.normal(size=(600, 16))), np.arange(600))
    assert metrics["recall@10"] == pytest.approx(metrics["chance/recall@10"], abs=0.012)
    assert metrics["ecg_to_image/median_rank"] == pytest.approx(metrics["chance/median_rank"], rel=0.1)


def test_a_constant_tower_does_not_look_good() -> None:
    """Where all embeddings are one point, ranks are those of chance, not 1; rank and spread collapse."""
    constant = np.tile(unit(np.ones((1, 4))), (50, 1))
    metrics = retrieval_metrics(constant, constant, np.arange(50))
    assert metrics["recall@1"] == 0
    assert metrics["ecg_to_image/median_rank"] == 25.5
    assert metrics["ecg_rank"] == pytest.approx(1, abs=1e-3)
    assert metrics["image_spread"] == pytest.approx(0, abs=1e-6)
