"""Label draws are what they claim, and the comparison's rows follow from scores."""

import numpy as np
import pytest

from stence_dist.errors import ConfigError
from stence_dist.evaluate.label_efficiency import (
    REFERENCE_WEIGHT,
    ArmScores,
    Comparison,
    draw_labels,
    patients_for,
)
from stence_dist.evaluate.statistics import auroc


def pool(n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Labels with unknown ones, and patients of whom every third has two rows."""
    rng = np.random.default_rng(0)
    patient = rng.permutation(np.concatenate([np.arange(n), np.arange(0, n, 3)])) * 17 + 5
    positive = {p: rng.random() < 0.3 for p in np.unique(patient)}
    labels = np.array([float(positive[p]) for p in patient], dtype=np.float32)
    labels[rng.random(len(labels)) < 0.1] = np.nan
    return labels, patient


@pytest.mark.parametrize("seed", range(3))
def test_draws_are_nested_stratified_and_by_patient(seed: int) -> None:
    """Smaller draws lie within larger ones; prevalence is kept to one patient; all known rows of a patient come."""
    labels, patient = pool()
    known = ~np.isnan(labels)
    everyone = np.unique(patient[known])
    share = np.mean([labels[known & (patient == p)].max() for p in everyone])
    before: set[int] = set()
    for count in (10, 50, 200, len(everyone)):
        rows = draw_labels(labels, patient, count, seed)
        drawn = np.unique(patient[rows])
        assert len(drawn) == count
        assert before <= set(rows.tolist())
        assert not np.isnan(labels[rows]).any()
        assert set(np.flatnonzero(known & np.isin(patient, drawn))) == set(rows.tolist())
        positives = sum(labels[known & (patient == p)].max() for p in drawn)
        assert abs(positives - share * count) <= 1
        before = set(rows.tolist())


def test_draws_differ_by_seed_and_not_by_the_order_of_rows() -> None:
    """Another seed draws others; the patients drawn do not depend on how the rows are sorted."""
    labels, patient = pool()
    first, second = (set(patient[draw_labels(labels, patient, 50, seed)]) for seed in (0, 1))
    assert len(first & second) < 25
    order = np.random.default_rng(1).permutation(len(labels))
    assert set(patient[order][draw_labels(labels[order], patient[order], 50, 0)]) == first


def test_every_patient_is_drawn_equally_often() -> None:
    """Over many seeds each patient of a class has the same chance."""
    labels = np.array([1.0] * 10 + [0.0] * 30, dtype=np.float32)
    counts = np.zeros(40)
    for seed in range(400):
        counts[draw_labels(labels, np.arange(40), 8, seed)] += 1
    assert np.abs(counts / 400 - 0.2).max() < 0.08


@pytest.mark.parametrize(("text", "count"), [("all", 80), ("50", 50), ("10%", 8), ("100%", 80)])
def test_labels_mean_a_number_of_patients(text: str, count: int) -> None:
    """all, N and P% of 80 patients."""
    assert patients_for(text, 80) == count


@pytest.mark.parametrize("text", ["81", "0", "-3", "0%", "120%", "many", "5.5", "nan%"])
def test_impossible_labels_are_refused(text: str) -> None:
    """The message says how many there are, or how to write it."""
    with pytest.raises(ConfigError, match=r"80|like 50"):
        patients_for(text, 80)


def comparison(*, repeats: int = 6, spread: float = 0.0, n: int = 400) -> tuple[Comparison, np.ndarray, dict]:
    """Arms with planted strengths: probe > finetune = scratch at 50 labels, all alike at all labels."""
    rng = np.random.default_rng(2)
    labels = (rng.random(n) < 0.4).astype(np.float32)
    scores = {}
    for arm, few, every in (("probe", 1.5, 1.5), ("finetune", 0.6, 1.5), ("scratch", 0.6, 1.5), ("hand", 1.5, 1.5)):
        for count, strength, number in ((50, few, repeats), ("all", every, 2)):
            shifts = strength + spread * rng.normal(size=(number, 1))
            scores[arm, count] = shifts * labels + rng.normal(size=(number, n))
    arms = [ArmScores(arm, count, REFERENCE_WEIGHT, values) for (arm, count), values in scores.items()]
    arms.append(ArmScores("probe", 50, 0.0, scores["probe", 50] + 0.1 * rng.normal(size=(repeats, n))))
    return Comparison(arms, labels, np.arange(n), draws=300, seed=0, level=0.95), labels, scores


def test_rows_have_the_schema_and_the_plain_means() -> None:
    """Keys as documented; means equal AUROCs averaged by hand; intervals hold them; 99 % bounds are wider."""
    made, labels, scores = comparison()
    rows = made.arm_rows("null")
    assert len(rows) == 9
    for row in rows:
        assert set(row) == {"arm", "cohort", "labels", "stenosis_weight", "mean", "low", "high", "low99", "high99"}
        assert row["low99"] <= row["low"] <= row["mean"] <= row["high"] <= row["high99"]
    assert set(made.arm_rows("main")[0]) == {"arm", "cohort", "labels", "stenosis_weight", "mean", "low", "high"}
    row = next(row for row in rows if (row["arm"], row["labels"]) == ("scratch", 50))
    assert row["mean"] == pytest.approx(np.mean([auroc(labels, values) for values in scores["scratch", 50]]))


def test_differences_find_what_was_planted() -> None:
    """probe beats scratch at 50 labels only, so the gain shrinks; λ = 0 is set against the same scratch."""
    made, _, _ = comparison()
    rows = {(row["name"], row["labels"], row["stenosis_weight"]): row for row in made.difference_rows()}
    means = {(row["arm"], row["labels"], row["stenosis_weight"]): row["mean"] for row in made.arm_rows("main")}
    for row in rows.values():
        assert set(row) == {"name", "labels", "stenosis_weight", "mean", "low", "high"}
        assert row["low"] <= row["mean"] <= row["high"]
    few = rows["probe-scratch", 50, REFERENCE_WEIGHT]
    assert few["mean"] == pytest.approx(means["probe", 50, 0.3] - means["scratch", 50, 0.3])
    assert few["low"] > 0.05
    every = rows["probe-scratch", "all", REFERENCE_WEIGHT]
    assert every["low"] < 0 < every["high"]
    gain = rows["gain50-gainall", 50, REFERENCE_WEIGHT]
    assert gain["mean"] == pytest.approx(few["mean"] - every["mean"])
    assert gain["low"] > 0
    assert rows["probe-scratch", 50, 0.0]["mean"] == pytest.approx(means["probe", 50, 0.0] - means["scratch", 50, 0.3])
    assert ("scratch-hand", 50, 0.0) not in rows
    assert ("probe-shuffled", 50, REFERENCE_WEIGHT) not in rows


def test_intervals_see_the_spread_between_draws() -> None:
    """Draws that differ widen an arm's interval, although each draw has the same test rows."""
    narrow, wide = (comparison(spread=spread)[0].arm_rows("main")[0] for spread in (0.0, 1.0))
    assert wide["high"] - wide["low"] > 1.3 * (narrow["high"] - narrow["low"])


def test_few_repeats_are_not_taken_for_certain() -> None:
    """Two repeats whose AUROCs are exact (no noise between patients) show the unbiased sd of their mean."""
    labels = np.tile([0.0, 1.0], 500).astype(np.float32)
    values = np.where(labels == 1, 1.0, 0.0)
    worse = values.copy()
    worse[:100] = 0.5  # a known loss of AUROC
    made = Comparison([ArmScores("hand", "all", 0.3, np.stack([values, worse]))], labels, np.arange(1000),
                      draws=2000, seed=0, level=0.6)  # fmt: skip
    row = made.arm_rows("main")[0]
    gap = auroc(labels, values) - auroc(labels, worse)
    # Each replicate is one of the two repeats: mean ± gap/2, up to the patients' own noise.
    assert row["high"] - row["low"] == pytest.approx(gap, rel=0.2)
