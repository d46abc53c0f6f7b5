"""Which rows of a shard set carry a label, and the baseline that needs nothing but age and sex."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.config.compare import CompareConfig
from stence_dist.config.finetune import FinetuneConfig
from stence_dist.data.cohort_table import LABEL_COLUMN
from stence_dist.data.exclusion import kept_rows
from stence_dist.data.shards import ShardSet
from stence_dist.data.sidecar import SampleTable
from stence_dist.errors import DataError
from stence_dist.evaluate.label_efficiency import draw_labels, patients_for
from stence_dist.evaluate.probe import demographics, fit_probe
from stence_dist.targets import label

logger = logging.getLogger("stence_dist")

PREDICTION_COLUMNS = ("patient_key", "sample", "split", "target", "label", "probability")
_FEW_OF_ALL = 0.1


@dataclass(frozen=True)
class LabelledRows:
    """Rows of one split whose target is known."""

    split: str
    target: str
    kind: str  # ecg_only | paired | all
    table: SampleTable
    rows: NDArray[np.int64]  # (n,) rows of the table
    labels: NDArray[np.float32]  # (n,) 0 or 1

    @property
    def patient(self) -> NDArray[np.int64]:
        """(n,) patient of each row."""
        return self.table.patient[self.rows]

    @property
    def sample(self) -> NDArray[np.int64]:
        """(n,) sample number of each row."""
        return self.table.sample[self.rows]

    def take(self, chosen: NDArray[np.int64]) -> "LabelledRows":
        """The rows at places `chosen` (k,)."""
        return dataclasses.replace(self, rows=self.rows[chosen], labels=self.labels[chosen])

    def draw(self, labels: str, seed: int) -> "LabelledRows":
        """The rows of `labels` = all | N | P% patients; see `draw_labels`. Raises ConfigError for too many."""
        count = patients_for(labels, len(np.unique(self.patient)))
        return self.take(draw_labels(self.labels, self.patient, count, seed))

    def counts(self) -> dict[str, int]:
        """Rows, patients and positive rows."""
        return {
            "rows": len(self.rows),
            "patients": len(np.unique(self.patient)),
            "positive": int((self.labels == 1).sum()),
        }

    def predictions(self, probabilities: NDArray[np.float64]) -> Iterator[list[Any]]:
        """A line of PREDICTION_COLUMNS per row; probabilities (n,)."""
        keys = self.table.patient_key[self.rows]
        for key, sample, truth, value in zip(keys, self.sample, self.labels, probabilities, strict=True):
            yield [key, int(sample), self.split, self.target, int(truth), repr(float(value))]

    def require_both_classes(self, drawn_by: str = "") -> "LabelledRows":
        """Self. Raises DataError where every label is the same; `drawn_by` is the setting that drew these rows."""
        positive = int((self.labels == 1).sum())
        if 0 < positive < len(self.labels):
            return self
        found = "positive" if positive else "negative"
        if drawn_by:
            advice = "Use more labels, or another draw."
        elif LABEL_COLUMN.fullmatch(self.target):
            advice = (
                "Check that column of the cohort (targets.unreported does not touch it); else use other rows= or "
                "another task.target."
            )
        else:
            advice = (
                "If unreported segments mean 'normal' in this cohort, set targets.unreported=normal; else use other "
                "rows=, another task.target or threshold."
            )
        raise DataError(
            f"All {len(self.labels)} labelled {self.split} rows {f'of {drawn_by} ' if drawn_by else ''}"
            f"(rows={self.kind}) are {found} for task.target={self.target}; both classes are needed. {advice}"
        )


def rows_to_learn_from(
    shards: ShardSet, config: FinetuneConfig | CompareConfig, splits: Sequence[str] = ("train", "val")
) -> str:
    """`rows=` with auto resolved: ecg_only where each of `splits`, train first, has such labelled rows, else paired."""
    if config.rows != "auto":
        return config.rows
    counts = {}
    for split in splits:
        known, kinds = _known(shards, split, config), _kinds(shards.table(split))
        counts[split] = [int((known & kinds[kind]).sum()) for kind in ("ecg_only", "all")]
    kind = "ecg_only" if all(ecg_only for ecg_only, _ in counts.values()) else "paired"
    ecg_only, labelled = counts["train"]
    logger.info("rows=auto is %s: %d of %d labelled training rows are ECG-only", kind, ecg_only, labelled)
    if kind == "ecg_only" and ecg_only < _FEW_OF_ALL * labelled:
        logger.warning("%d of %d labelled training rows are used; rows=all takes all", ecg_only, labelled)
    if kind == "paired" and ecg_only:
        logger.warning(
            "%d labelled ECG-only training rows are left out, as val has none. Pretraining may have seen the patients "
            "of all others; rows=all takes every row",
            ecg_only,
        )
    return kind


def _kinds(table: SampleTable) -> dict[str, NDArray[np.bool_]]:
    """What `rows=` means in a split: masks (n,) by kind.

    A patient who has a pair is known to pretraining, so none of their rows is ECG-only in this sense.
    """
    paired = np.isin(table.patient, table.patient[table.has_study])
    return {"ecg_only": ~paired, "paired": table.has_study, "all": np.ones(len(table), dtype=bool)}


def _known(shards: ShardSet, split: str, config: FinetuneConfig | CompareConfig) -> NDArray[np.bool_]:
    """(n,) rows of a split whose label is known and that take part."""
    return ~np.isnan(_labels(shards, split, config)) & kept_rows(shards, split, config.cohort.exclude)


def _labels(shards: ShardSet, split: str, config: FinetuneConfig | CompareConfig) -> NDArray[np.float32]:
    """(n,) 0, 1 or NaN. Raises DataError for a label column that the set does not hold."""
    table, target = shards.table(split), config.task.target
    if LABEL_COLUMN.fullmatch(target):
        if target in shards.columns:
            return table.column(target)
        held = ", ".join(name for name in shards.columns if LABEL_COLUMN.fullmatch(name)) or "none"
        raise DataError(f"{shards.folder} holds no {target} (label columns there: {held}). Choose another task.target.")
    return label(table.segments, target, config.targets, table.has_study)


def labelled_rows(shards: ShardSet, split: str, config: FinetuneConfig | CompareConfig, kind: str) -> LabelledRows:
    """The labelled rows of a split that take part, of one kind: ecg_only | paired | all.

    The config says which target and which rows are excluded. Raises DataError where none is left.
    """
    table = shards.table(split)
    of_kind = _kinds(table)[kind]
    chosen = np.flatnonzero(_known(shards, split, config) & of_kind)
    if len(chosen) == 0:
        raise DataError(
            f"{shards.folder}: none of the {int(of_kind.sum())} {split} rows (rows={kind}) has a known label for "
            f"task.target={config.task.target} and takes part. Check the cohort's columns, rows=, cohort.exclude="
            + ("." if LABEL_COLUMN.fullmatch(config.task.target) else ", or targets.unreported=normal.")
        )
    return LabelledRows(split, config.task.target, kind, table, chosen, _labels(shards, split, config)[chosen])


def age_sex_probabilities(fit: LabelledRows, asked: LabelledRows, *, seed: int) -> NDArray[np.float64] | None:
    """Probabilities (n,) for `asked` of a logistic regression on age and sex, fitted on the rows of `fit`.

    None where none of these has an age or a sex: a constant is no baseline to be better than.
    """
    if np.isnan(fit.table.age[fit.rows]).all() and not np.isin(fit.table.sex[fit.rows], ("M", "F")).any():
        return None
    age = np.concatenate([part.table.age[part.rows] for part in (fit, asked)])
    sex = np.concatenate([part.table.sex[part.rows] for part in (fit, asked)])
    features = demographics(age, sex, np.arange(len(fit.rows)))
    probe = fit_probe(features[: len(fit.rows)], fit.labels, fit.patient, seed=seed)
    return probe.predict(features[len(fit.rows) :])
