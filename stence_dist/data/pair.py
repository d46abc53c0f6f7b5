"""From what hospitals hold, a table of ECGs and a table of studies, to a cohort table: joined by patient and date."""

import csv
import io
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from stence_dist.config.pair import PairConfig
from stence_dist.data.cohort_table import COLUMNS, found_columns, read_lines
from stence_dist.errors import DataError
from stence_dist.files import write_text

log = logging.getLogger("stence_dist")

_DAY = 86400.0  # seconds
_NOT_COPIED = ("study_path", "ecg_path", "days_between", "after_procedure")


@dataclass(frozen=True)
class _Entry:
    """One row of either table, counted from 1."""

    row: int
    patient: str
    path: str
    date: datetime
    has_time: bool
    values: Mapping[str, str]


class _LeftOut:
    """Rows that are not in the cohort table, and why. Names tables and row numbers only."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, str]] = []

    def add(self, table: str, row: int, reason: str) -> None:
        self.rows.append((table, row, reason))

    def keep(self, table: str, rows: set[int]) -> None:
        """Forget what was said of `rows` of `table`: they are in the cohort table after all."""
        self.rows = [entry for entry in self.rows if entry[0] != table or entry[1] not in rows]

    def csv(self) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["table", "row", "reason"])
        writer.writerows(sorted(self.rows))
        return text.getvalue()


def parse_date(text: str) -> tuple[datetime, bool] | None:
    """The date in `text`, and whether it states a time; None for anything but YYYY-MM-DD or YYYYMMDD [time]."""
    text = text.strip()
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        try:
            found = datetime.strptime(text.partition(".")[0], "%Y%m%d%H%M%S")  # DICOM's date and time
        except ValueError:
            return None
    return found.replace(tzinfo=None), len(text) > 10


def _entries(path: Path, key: str, config: PairConfig, date: str, place: str, left_out: _LeftOut) -> list[_Entry]:
    """The usable rows of one table. Raises DataError for a table without the columns that are needed."""
    header, lines = read_lines(path, key)
    missing = [name for name in (config.patient_id, date, place) if name not in header]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)} ({found_columns(header, COLUMNS)}). Add it, or name yours with "
            f"patient_id= and {'ecg_date' if key == 'ecg' else 'study_date'}=."
        )
    entries = []
    for row, line in enumerate(lines, start=1):
        values = dict(zip(header, (field.strip() for field in line), strict=True))
        patient, file, when = values.pop(config.patient_id), values[place], parse_date(values.pop(date))
        if not patient:
            left_out.add(key, row, "no patient")
        elif not file:
            left_out.add(key, row, f"no {place}")
        elif when is None:
            left_out.add(key, row, "no date, or none like 2024-05-31 or 20240531")
        else:
            entries.append(_Entry(row, patient, file, *when, values))
    return entries


def days_between(ecg: _Entry, study: _Entry) -> float:
    """Study minus ECG in days; whole days where either states no time."""
    if ecg.has_time and study.has_time:
        return (study.date - ecg.date).total_seconds() / _DAY
    return float((study.date.date() - ecg.date.date()).days)


def _pairs(
    ecgs: list[_Entry], studies: list[_Entry], config: PairConfig, left_out: _LeftOut
) -> list[tuple[_Entry, _Entry]]:
    """The pairs of one patient. Under `nearest` and `before` a study and an ECG are in one pair at most."""
    close = [
        (abs(days), ecg.row, study.row, ecg, study)
        for ecg in ecgs
        for study in studies
        if abs(days := days_between(ecg, study)) <= config.window_days and (config.policy != "before" or days >= 0)
    ]
    close.sort(key=lambda found: found[:3])
    chosen: list[tuple[_Entry, _Entry]] = []
    used_ecgs: set[int] = set()
    used_studies: set[int] = set()
    for _, _, _, ecg, study in close:
        if ecg.row in used_ecgs or (config.policy != "all" and study.row in used_studies):
            continue
        used_ecgs.add(ecg.row)
        used_studies.add(study.row)
        chosen.append((ecg, study))
    near_ecgs, near_studies = {found[1] for found in close}, {found[2] for found in close}
    limit = f"within {config.window_days:g} days" + (" after it" if config.policy == "before" else "")
    for ecg in ecgs:
        if ecg.row not in used_ecgs:
            reason = "another ECG is nearer" if ecg.row in near_ecgs else f"no study {limit}"
            left_out.add("ecg", ecg.row, reason if studies else "the patient has no study")
    limit = f"within {config.window_days:g} days" + (" before it" if config.policy == "before" else "")
    for study in studies:
        if study.row not in used_studies:
            reason = "its ECG belongs to a nearer study" if study.row in near_studies else f"no ECG {limit}"
            left_out.add("studies", study.row, reason if ecgs else "the patient has no ECG")
    return sorted(chosen, key=lambda found: found[0].row)


def _moved(path: str, source: Path, out: Path) -> str:
    """A path of a table in `source` as a table in `out` names it."""
    return path if os.path.isabs(path) else Path(os.path.relpath(source / path, out)).as_posix()


def _line(ecg: _Entry, study: _Entry | None, sources: tuple[Path, Path], out: Path) -> dict[str, str]:
    """One row of the cohort table. A column that both tables have is the ECG's, or the study's where that is empty."""
    line = {"patient_id": ecg.patient, "ecg_path": _moved(ecg.path, sources[0], out), "study_path": ""}
    line |= {name: value for name, value in ecg.values.items() if name not in _NOT_COPIED}
    if study is None:
        return line
    for name, value in study.values.items():
        if name not in _NOT_COPIED and not line.get(name):
            line[name] = value
    days = days_between(ecg, study)
    same_day = days == 0 and not (ecg.has_time and study.has_time)
    line |= {"study_path": _moved(study.path, sources[1], out), "days_between": f"{days:.6g}"}
    return line | {"after_procedure": "" if same_day else str(int(days < 0))}


def _names(lines: Iterable[Mapping[str, str]]) -> list[str]:
    first = ["patient_id", "ecg_path", "study_path", "days_between", "after_procedure"]
    return list(dict.fromkeys([*first, *(name for line in lines for name in line)]))


def pair(config: PairConfig) -> None:
    """Write the cohort table and what fell out. Raises DataError for tables that cannot be used, or without a pair.

    All rows of a patient keep its identifier, so that they share a split and are never each other's negatives.
    """
    out = Path(config.out).absolute()
    tables = Path(config.ecg).absolute(), Path(config.studies).absolute()
    if out in tables:
        raise DataError(f"out={out} is one of the tables to join. Choose another file.")
    left_out = _LeftOut()
    ecgs = _entries(tables[0], "ecg", config, config.ecg_date, "ecg_path", left_out)
    studies = _entries(tables[1], "studies", config, config.study_date, "study_path", left_out)
    by_patient: dict[str, tuple[list[_Entry], list[_Entry]]] = defaultdict(lambda: ([], []))
    for side, entries in enumerate((ecgs, studies)):
        for entry in entries:
            by_patient[entry.patient][side].append(entry)
    pairs = [found for mine in by_patient.values() for found in _pairs(*mine, config, left_out)]
    folders = tables[0].parent, tables[1].parent
    lines = {ecg.row: _line(ecg, study, folders, out.parent) for ecg, study in pairs}
    alone = [ecg for ecg in ecgs if ecg.row not in lines] if config.keep_unpaired else []
    lines |= {ecg.row: _line(ecg, None, folders, out.parent) for ecg in alone}
    left_out.keep("ecg", set(lines))
    reasons = Counter(f"{table}: {reason}" for table, _, reason in left_out.rows)
    for reason, count in reasons.most_common():
        log.info("%6d  %s", count, reason)
    if not pairs:
        raise DataError(
            f"No ECG of {len(ecgs)} and no study of {len(studies)} belong together within window_days="
            f"{config.window_days:g} under policy={config.policy}. Widen the window, or compare how the tables write "
            "patient identifiers (leading zeros, prefixes)."
        )
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _names(lines.values()), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines[row] for row in sorted(lines))
    write_text(out.with_name(f"{out.name}.left_out.csv"), left_out.csv(), mode=0o600)
    write_text(out, text.getvalue(), mode=0o600)
    log.info(
        "%d pairs of %d patients, %d ECGs without a study kept: %s",
        len(pairs),
        len({ecg.patient for ecg, _ in pairs}),
        len(alone),
        out,
    )
