"""Whether the site can be read from embeddings, on planted ones."""

import numpy as np
import pytest

from stence_dist.evaluate.site_probe import probe_sites


def planted(strength: float, width: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of 120 patients with two rows each at three sites; each site has its direction."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(120), 2)
    number = patient % 3
    own = rng.normal(size=(120, width))[patient]  # what a patient's rows share
    return own + strength * np.eye(3, width)[number], np.array(["A", "B", "C"])[number], patient


def test_a_planted_site_is_found_and_no_other() -> None:
    """Strong directions are read nearly always. Without any, chance lies in the interval although a patient's two rows
    are one point: folds that part them, here by giving each row a patient of its own, read patients and call it site.
    """
    embeddings, site, patient = planted(4.0)
    found = probe_sites(embeddings, site, patient, seed=0)
    assert found is not None
    assert found.auroc > 0.97
    assert (found.rows, found.patients) == (240, 120)
    assert {name: count for name, (count, _) in found.sites.items()} == {"A": 80, "B": 80, "C": 80}
    assert found.auroc == pytest.approx(np.mean([area for _, area in found.sites.values()]))
    embeddings, site, patient = planted(0.0, width=200)
    nothing = probe_sites(embeddings, site, patient, seed=0)
    parted = probe_sites(embeddings, site, np.arange(240), seed=0)
    assert nothing is not None
    assert parted is not None
    assert nothing.low is not None
    assert nothing.high is not None
    assert nothing.low < 0.5 < nothing.high
    assert parted.auroc > 0.8


def test_small_and_unknown_sites_are_left_out() -> None:
    """A site of four patients and rows without one do not take part; one site alone gives nothing."""
    embeddings, site, patient = planted(1.0)
    few = np.where((site == "C") & (patient >= 12), "", site)
    found = probe_sites(embeddings, few, patient, seed=0)
    assert found is not None
    assert set(found.sites) == {"A", "B"}
    assert found.rows == 160
    assert probe_sites(embeddings, np.where(site == "A", "A", ""), patient, seed=0) is None
