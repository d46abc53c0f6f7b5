"""How often each target is positive, and how often it cannot be known."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stence_dist.check.findings import NOTE, WARNING, Section, Table
from stence_dist.config.targets import TargetsConfig
from stence_dist.data.index import SPLITS
from stence_dist.targets import TARGETS, label


@dataclass(frozen=True)
class Labelled:
    """What labels are made of, over rows (n,): splits, percent stenosis (n, 16), studies, labels of other tasks."""

    split: NDArray[np.str_]
    segments: NDArray[np.float32]
    has_study: NDArray[np.bool_]
    others: Mapping[str, NDArray[np.float32]]  # 1, 0 or NaN


def label_section(rows: Labelled, config: TargetsConfig) -> Section:
    """Known and positive rows of every target that any row has, with the positive share of each split."""
    section = Section("labels", "Labels")
    found = {target: label(rows.segments, target, config, rows.has_study) for target in TARGETS}
    found |= rows.others
    lines = [(name, *_line(values, rows.split)) for name, values in found.items() if not np.isnan(values).all()]
    columns = ("target", "known", "not known", "positive", "share", *(f"share in {split}" for split in SPLITS))
    if lines:
        title = f"Positive from {config.threshold:g} % diameter stenosis; unreported segments: {config.unreported}"
        section.tables.append(Table(title, columns, lines))
    else:
        section.add(WARNING, "no label is known; such a set serves pretraining alone")
    _report_segments(section, rows, config)
    for name in ("patient", *rows.others):
        _report_classes(section, name, found[name], rows.split)
    return section


def _line(values: NDArray[np.float32], split: NDArray[np.str_]) -> tuple[int | float | None, ...]:
    known = ~np.isnan(values)
    shares = [_share(values[known & (split == name)]) for name in SPLITS]
    return int(known.sum()), int((~known).sum()), int(np.nansum(values)), _share(values[known]), *shares


def _share(values: NDArray[np.float32]) -> float | None:
    return float(values.mean()) if len(values) else None


def _report_segments(section: Section, rows: Labelled, config: TargetsConfig) -> None:
    reported = rows.segments[~np.isnan(rows.segments)]
    if not len(reported):
        return
    if reported.max() <= 1.0 and reported.max() > 0:
        section.add(WARNING, "no segment exceeds 1: percent diameter stenosis is expected, are these fractions?")
    studied = rows.segments[rows.has_study]
    unread = int(np.isnan(studied).all(axis=1).sum())
    if unread:
        section.add(NOTE, "angiograms without any segment reported", unread)
    partly = int((np.isnan(studied).any(axis=1) & ~np.isnan(studied).all(axis=1)).sum())
    if partly:
        section.add(NOTE, "angiograms with some segments not reported", partly)
    if partly and not (reported == 0).any() and config.unreported == "unknown":
        text = "no segment is reported as 0 %: if only lesions are written down, set targets.unreported=normal"
        section.add(WARNING, text)


def _report_classes(section: Section, name: str, values: NDArray[np.float32], split: NDArray[np.str_]) -> None:
    """A split with one class cannot be measured on."""
    for part in SPLITS:
        known = values[(split == part) & ~np.isnan(values)]
        if len(known) and len(np.unique(known)) == 1:
            section.add(WARNING, f"{name}: all known labels of the split {part} are {known[0]:.0f}", len(known))
