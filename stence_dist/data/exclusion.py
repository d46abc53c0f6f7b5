"""Rows that a run leaves out by what its cohort says of them, and how many."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stence_dist.config.cohort import FLAG_COLUMNS, TEXT_COLUMNS, Rule, parse_rule
from stence_dist.data.index import SPLITS
from stence_dist.data.shards import ShardSet
from stence_dist.data.sidecar import SampleTable
from stence_dist.errors import DataError

_SHOWN = 10


def _matches(table: SampleTable, rule: Rule) -> NDArray[np.bool_]:
    """Rows (n,) that a rule names; where a value is unknown it names none."""
    if rule.column in TEXT_COLUMNS:
        texts: NDArray[np.str_] = getattr(table, rule.column)
        return np.asarray(texts == rule.value)
    values = getattr(table, rule.column) if rule.column in ("age", "days_between") else table.column(rule.column)
    if rule.column in FLAG_COLUMNS:
        return np.asarray(values == 1)
    compare = {"=": np.equal, "<": np.less, ">": np.greater}[rule.relation]
    return np.asarray(compare(values, np.float32(rule.value)))  # NaN compares False


def kept_rows(shards: ShardSet, split: str, exclude: Sequence[str]) -> NDArray[np.bool_]:
    """Rows (n,) of a split that no entry of `cohort.exclude` names.

    Raises DataError for a column, or a text, that the set does not hold: nothing would be left out, and nobody would
    know.
    """
    table = shards.table(split)
    kept = np.ones(len(table), dtype=bool)
    for text in exclude:
        rule = parse_rule(text)
        if rule.column not in ("age", "days_between", "sex", "site", *shards.columns):
            raise DataError(
                f"{shards.folder} does not hold {rule.column}, which cohort.exclude names: no row of its cohort states "
                "it. Add the column and build the set again, or leave the entry out."
            )
        if rule.column in TEXT_COLUMNS:
            texts = np.concatenate([getattr(shards.table(name), rule.column) for name in SPLITS])
            held = [str(value) for value in np.unique(texts) if value]
            if rule.value not in held:
                shown = ", ".join(held[:_SHOWN]) + (", …" if len(held) > _SHOWN else "")
                raise DataError(
                    f"{shards.folder} has no row with {text}, which cohort.exclude names ({rule.column} there: "
                    f"{shown or 'unknown'}). Write one of these, or leave the entry out."
                )
        kept &= ~_matches(table, rule)
    return kept


def exclusion_counts(shards: ShardSet, exclude: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rows of each split that each entry names, and `all` entries together; empty without any."""
    if not exclude:
        return {}
    counts = {}
    for name, entries in [*((text, [text]) for text in exclude), ("all", list(exclude))]:
        counts[name] = {split: int((~kept_rows(shards, split, entries)).sum()) for split in SPLITS}
    return counts
