"""How much a label is worth: nested draws of labelled patients, and arms compared over draws and test patients.

An arm is one way to get a model (probe, finetune, scratch, ...) from one number of labels, repeated over label draws
(or, with all labels, over training seeds). Its AUROC is the mean over repeats on the same test rows. Intervals come
from one bootstrap that every arm shares: each replicate draws test patients with replacement and, independently,
repeats. Differences between arms are therefore paired in both. numpy only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.errors import ConfigError
from stence_dist.evaluate.statistics import Floats, interval, patient_counts, replicates, weighted_auroc
from stence_dist.seeds import generator

ALL = "all"
# Written where pretraining does not matter, so that rows can be joined on it.
REFERENCE_WEIGHT = 0.3
# Arms without pretraining: one row each, at REFERENCE_WEIGHT.
FIXED_ARMS = ("scratch", "random", "hand", "age_sex")
# name -> (first arm, second arm); the value is first minus second.
DIFFERENCES = {
    "probe-scratch": ("probe", "scratch"),
    "finetune-scratch": ("finetune", "scratch"),
    "probe-shuffled": ("probe", "shuffled"),
    "shuffled-random": ("shuffled", "random"),
    "probe-hand": ("probe", "hand"),
    "scratch-hand": ("scratch", "hand"),
}
GAIN = "gain50-gainall"
FEW = 50


def patients_for(labels: str, available: int) -> int:
    """How many labelled patients `labels` = all | N | P% means out of `available`. Raises ConfigError otherwise."""
    try:
        if labels == ALL:
            count = available
        elif labels.endswith("%"):
            count = round(float(labels[:-1]) / 100 * available)
        else:
            count = int(labels)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"labels={labels} is not understood. Use all, a number like 50, or a share like 10%."
        ) from None
    if not 0 < count <= available:
        raise ConfigError(
            f"labels={labels} means {count} patients, but {available} training patients have a label. "
            f"Use 1 to {available}, a share up to 100%, or all."
        )
    return count


def draw_labels(labels: NDArray[np.float32], patient: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Rows, ascending, of `count` labelled patients: stratified, by patient, and nested within a seed.

    labels (n,) with NaN = unknown (never drawn), patient (n,). A patient is positive where any row is. Each class is
    put in a seeded order and the two are merged at a constant ratio; `count` takes the first ones, so a smaller
    draw of the same seed is part of a larger one. All labelled rows of a drawn patient are returned.
    """
    known = np.flatnonzero(~np.isnan(labels))
    patients, inverse = np.unique(patient[known], return_inverse=True)
    positive = np.zeros(len(patients), dtype=bool)
    np.logical_or.at(positive, inverse, labels[known] == 1)
    place = np.empty(len(patients))
    for value in (False, True):
        members = np.flatnonzero(positive == value)
        order = generator(seed, "labels", int(value)).permutation(len(members))
        place[members[order]] = (np.arange(len(members)) + 0.5) / max(1, len(members))
    # Equal places (classes of equal size) go to the positives, so that few labels hold both classes.
    chosen = np.lexsort((~positive, place))[:count]
    return np.asarray(known[np.isin(inverse, chosen)], dtype=np.int64)


@dataclass(frozen=True)
class ArmScores:
    """Test scores of one arm at one number of labels."""

    arm: str
    labels: int | str  # number of labelled patients, or "all"
    stenosis_weight: float  # of the pretraining; REFERENCE_WEIGHT where that does not matter
    scores: NDArray[np.float64]  # (repeats, n)


class Comparison:
    """The arms of one cohort on its n test rows, with the replicates that all of them share."""

    def __init__(
        self,
        arms: Sequence[ArmScores],
        labels: NDArray[np.float32],
        patient: NDArray[np.int64],
        *,
        draws: int,
        seed: int,
        level: float,
    ) -> None:
        self.level, self.seed, self.arms = level, seed, list(arms)
        counts = patient_counts(patient, draws, seed)
        ones = np.ones((1, len(labels)), dtype=np.uint8)
        self._means: dict[tuple[str, int | str, float], float] = {}
        self._replicates: dict[tuple[str, int | str, float], Floats] = {}
        for arm in arms:
            both = [
                np.stack([replicates(partial(weighted_auroc, labels, scores), table) for scores in arm.scores])
                for table in (ones, counts)
            ]  # (repeats, 1), (repeats, draws)
            where = (arm.arm, arm.labels, arm.stenosis_weight)
            self._means[where] = float(both[0].mean())
            self._replicates[where] = self._over_repeats(both[1])

    def _over_repeats(self, values: Floats) -> Floats:
        """Replicates (draws,) of the mean over repeats, from values (repeats, draws).

        One repeat fewer than there are is drawn, which makes the bootstrap variance of the mean unbiased (Rao and
        Wu 1988); with the plain bootstrap two repeats would show half of it.
        """
        repeats, draws = values.shape
        take = max(1, repeats - 1)
        chosen = generator(self.seed, "repeats", repeats).integers(repeats, size=(draws, take))
        return np.asarray(values[chosen, np.arange(draws)[:, None]].mean(axis=1))

    def arm_rows(self, cohort: str) -> list[dict[str, Any]]:
        """One row per arm: arm, cohort, labels, stenosis_weight, mean, low, high; 99 % bounds on a null cohort."""
        rows = []
        for (arm, labels, weight), mean in self._means.items():
            row: dict[str, Any] = {"arm": arm, "cohort": cohort, "labels": labels, "stenosis_weight": weight}
            row |= _summary(mean, self._replicates[arm, labels, weight], self.level)
            if cohort == "null":
                row["low99"], row["high99"] = interval(self._replicates[arm, labels, weight], 0.99)
            rows.append(row)
        return rows

    def difference_rows(self) -> list[dict[str, Any]]:
        """One row per difference that the arms allow: name, labels, stenosis_weight, mean, low, high.

        `gain50-gainall` is (probe - scratch) at 50 labels minus the same at all labels; its `labels` is 50.
        """
        rows: list[dict[str, Any]] = []
        weights = sorted({weight for _, _, weight in self._means}, reverse=True)
        for name, (first, second) in DIFFERENCES.items():
            for weight in weights:
                for labels in dict.fromkeys(arm.labels for arm in self.arms):
                    found = self._difference(first, second, labels, weight)
                    if found is not None:
                        rows.append({"name": name, "labels": labels, "stenosis_weight": weight} | self._row(*found))
        for weight in weights:
            few, every = (self._difference("probe", "scratch", labels, weight) for labels in (FEW, ALL))
            if few is not None and every is not None:
                found = few[0] - every[0], few[1] - every[1]
                rows.append({"name": GAIN, "labels": FEW, "stenosis_weight": weight} | self._row(*found))
        return rows

    def _difference(self, first: str, second: str, labels: int | str, weight: float) -> tuple[float, Floats] | None:
        """Mean and replicates of first minus second; None where an arm is missing or the weight plays no part.

        Two pretrained arms are compared at one weight: across weights it would be two things at once.
        """
        left = (first, labels, weight)
        right = (second, labels, REFERENCE_WEIGHT if second in FIXED_ARMS else weight)
        if left not in self._means or right not in self._means:
            return None
        return self._means[left] - self._means[right], self._replicates[left] - self._replicates[right]

    def _row(self, mean: float, values: Floats) -> dict[str, Any]:
        return _summary(mean, values, self.level)


def _summary(mean: float, values: Floats, level: float) -> dict[str, Any]:
    low, high = interval(values, level)
    return {"mean": mean if math.isfinite(mean) else None, "low": low, "high": high}
