"""How embeddings lie on the sphere, against torch's published one-liners and closed forms."""

import numpy as np
import pytest
import torch

from stence_dist.evaluate.geometry import alignment, effective_rank, spread, uniformity


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows at unit length, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_alignment_and_uniformity_equal_the_published_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two functions of Wang and Isola's paper in float64, and the same in blocks of a few rows."""
    rng = np.random.default_rng(0)
    ecg, image = (unit(rng.normal(size=(60, 8)) + 0.5) for _ in range(2))
    x, y = torch.from_numpy(ecg).double(), torch.from_numpy(image).double()
    assert alignment(ecg, image) == pytest.approx((x - y).norm(p=2, dim=1).pow(2).mean().item(), rel=1e-6)
    expected = torch.pdist(x, p=2).pow(2).mul(-2).exp().mean().log().item()
    assert uniformity(ecg) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("stence_dist.evaluate.geometry._BLOCK", 7 * 60)
    assert uniformity(ecg) == pytest.approx(expected, rel=1e-5)


def test_alignment_and_uniformity_in_closed_form() -> None:
    """Partners that coincide, are orthogonal, are opposite; rows that are one point, two poles, a cross; one row."""
    cross = np.eye(4, dtype=np.float32)
    assert [alignment(cross, other) for other in (cross, np.roll(cross, 1, axis=0), -cross)] == [0, 2, 4]
    assert uniformity(np.ones((5, 1), dtype=np.float32)) == pytest.approx(0, abs=1e-6)
    assert uniformity(np.array([[1.0], [-1.0]], dtype=np.float32)) == pytest.approx(-8)
    assert uniformity(cross) == pytest.approx(-4)
    assert np.isnan(uniformity(cross[:1]))


def test_effective_rank_counts_directions() -> None:
    """k orthogonal directions of equal strength have rank k; spread is about 1 on a sphere."""
    assert effective_rank(np.eye(6, 10, dtype=np.float32)) == pytest.approx(6)
    assert effective_rank(np.zeros((3, 4), dtype=np.float32)) == 1
    assert spread(unit(np.random.default_rng(2).normal(size=(4000, 32)))) == pytest.approx(1, abs=0.02)
