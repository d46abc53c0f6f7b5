"""From what hospitals hold, a table of ECGs and a table of studies, to a cohort table: joined by patient and date."""

import csv
import io
import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path

from stence_dist.config.pair import PairConfig
from stence_dist.data.cohort_table import COLUMNS, SEGMENT_COLUMNS, found_columns, read_lines, without_na
from stence_dist.errors import DataError
from stence_dist.files import write_text

log = logging.getLogger("stence_dist")

_DAY = 86400.0  # seconds
# What the join itself fills or uses: a table's other column of such a name must not take its place.
_NOT_COPIED = ("patient_id", "date", "study_path", "ecg_path", "days_between", "after_procedure")
# Fixed widths, so that a text has one reading. No year before 1900: ten digits may count seconds since 1970.
_DATE = re.compile(
    r"(?P<date>(?!0|1[0-8])\d{4}(?P<dash>-?)\d\d(?P=dash)\d\d)"
    r"(?:(?:[T ]|(?<=\d{8}))(?P<clock>\d\d(?:(?P<colon>:?)\d\d(?P<second>(?P=colon)\d\d(?:[.,]\d{1,9})?)?)?)"
    r"(?P<offset>Z|[+-]\d\d(?(second)(?::?[0-5]\d)?|:?[0-5]\d))?)?",  # PostgreSQL writes +02, always after seconds
    re.ASCII,
)
_UNDERSTOOD = (
    "2024-05-31 or 20240531, alone or with a time (2024-05-31 10:30, 20240531103000, 2024-05-31T10:30:00+02:00)"
)


@dataclass(frozen=True)
class _Entry:
    """One row of either table, counted from 1."""

    row: int
    patient: str
    path: str
    date: datetime  # with an offset from UTC where the table states one
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

    def log(self) -> Counter[tuple[str, str]]:
        """Say how many rows of which table have which reason, and return it."""
        reasons = Counter((table, reason) for table, _, reason in self.rows)
        for (table, reason), count in reasons.most_common():
            log.info("%6d  %s: %s", count, table, reason)
        return reasons

    def csv(self) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["table", "row", "reason"])
        writer.writerows(sorted(self.rows))
        return text.getvalue()


def parse_date(text: str) -> tuple[datetime, bool] | None:
    """The date in `text`, and whether it states a time; None for anything but YYYY-MM-DD or YYYYMMDD, alone or with
    HH[:MM[:SS[.f]]] after T, a space or (where there are no dashes) nothing. After a time, Z or ±HH:MM is kept.

    This is how DICOM, HL7, aECG, ISO 8601 and SQL write dates.
    """
    found = _DATE.fullmatch(text.strip())
    if found is None:
        return None
    date = found["date"].replace("-", "")
    clock, offset = ((found[name] or "").replace(":", "") for name in ("clock", "offset"))
    try:
        return datetime.fromisoformat(f"{date}T{clock}{offset}" if clock else date), bool(clock)
    except ValueError:  # the 31st of June, 25 o'clock
        return None


def _entries(path: Path, key: str, config: PairConfig, date: str, place: str, left_out: _LeftOut) -> list[_Entry]:
    """The usable rows of one table. Raises DataError for a table without the columns that are needed.

    Where no time is other than 00:00:00 there are none: it is how SQL and pandas print a column of dates.
    """
    header, lines = read_lines(path, key)
    missing = [name for name in (config.patient_id, date, place) if name not in header]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)} ({found_columns(header, COLUMNS)}). Add it, or name yours with "
            f"patient_id= and {'ecg_date' if key == 'ecg' else 'study_date'}=."
        )
    entries = []
    dates = [parse_date(line[header.index(date)]) for line in lines]
    clocks = {when[0].time() for when in dates if when is not None and when[1]}
    if clocks == {time()}:
        log.info("%s: every time in column %s is 00:00:00; read as dates without times", path, date)
    for row, (line, when) in enumerate(zip(lines, dates, strict=True), start=1):
        values = dict(zip(header, map(without_na, line), strict=True))
        patient, file = values.pop(config.patient_id), values[place]
        values.pop(date, None)
        if not patient:
            left_out.add(key, row, "no patient")
        elif not file:
            left_out.add(key, row, f"no {place}")
        elif when is None:
            left_out.add(key, row, "no date, or none like 2024-05-31 or 20240531")
        else:
            entries.append(_Entry(row, patient, file, when[0], when[1] and clocks != {time()}, values))
    return entries


def days_between(ecg: _Entry, study: _Entry) -> float:
    """Study minus ECG in days; whole days where either states no time.

    An offset from UTC counts where both state one; else the hospital's clock is compared as both wrote it.
    """
    if ecg.has_time and study.has_time:
        if ecg.date.tzinfo and study.date.tzinfo:
            return (study.date - ecg.date).total_seconds() / _DAY
        return (study.date.replace(tzinfo=None) - ecg.date.replace(tzinfo=None)).total_seconds() / _DAY
    return float((study.date.date() - ecg.date.date()).days)


def _is_unclear(ecg: _Entry, study: _Entry, days: float) -> bool:
    """Whether both are of one day and nobody knows which was first."""
    return days == 0 and not (ecg.has_time and study.has_time)


def _pairs(
    ecgs: list[_Entry], studies: list[_Entry], config: PairConfig, left_out: _LeftOut
) -> list[tuple[_Entry, _Entry]]:
    """The pairs of one patient. Under `nearest` and `before` a study and an ECG are in one pair at most.

    Of two that are equally near, the ECG before the procedure wins, then the table's order. Under `before` an ECG of
    the same day, of which nobody knows whether it was before, counts as a day away: one that was goes first.
    """

    def distance(ecg: _Entry, study: _Entry, days: float) -> float:
        unclear = config.policy == "before" and _is_unclear(ecg, study, days)
        return 1.0 if unclear else abs(days)

    close = [
        (distance(ecg, study, days), days < 0, ecg.row, study.row, ecg, study)
        for ecg in ecgs
        for study in studies
        if abs(days := days_between(ecg, study)) <= config.window_days and (config.policy != "before" or days >= 0)
    ]
    close.sort(key=lambda found: found[:4])
    chosen: list[tuple[_Entry, _Entry]] = []
    used_ecgs: set[int] = set()
    used_studies: set[int] = set()
    for *_, ecg, study in close:
        if ecg.row in used_ecgs or (config.policy != "all" and study.row in used_studies):
            continue
        used_ecgs.add(ecg.row)
        used_studies.add(study.row)
        chosen.append((ecg, study))
    near_ecgs, near_studies = {ecg.row for *_, ecg, _ in close}, {study.row for *_, study in close}
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
    """One row of the cohort table.

    A column that both tables have is the ECG's, or the study's where that is empty; stenosis is the study's.
    """
    line = {"patient_id": ecg.patient, "ecg_path": _moved(ecg.path, sources[0], out), "study_path": ""}
    line |= {name: value for name, value in ecg.values.items() if name not in _NOT_COPIED}
    if study is None:
        return line
    for name, value in study.values.items():
        if name not in _NOT_COPIED and (not line.get(name) or (value and name in SEGMENT_COLUMNS)):
            line[name] = value
    days = days_between(ecg, study)
    same_day = _is_unclear(ecg, study, days)
    line |= {"study_path": _moved(study.path, sources[1], out), "days_between": f"{days:.6g}"}
    return line | {"after_procedure": "" if same_day else str(int(days < 0))}


def _names(lines: Iterable[Mapping[str, str]]) -> list[str]:
    """The columns of the cohort table. With one segment it has all, as a build wants them; empty = not reported."""
    first = ["patient_id", "ecg_path", "study_path", "days_between", "after_procedure"]
    found = dict.fromkeys(name for line in lines for name in line)
    segments = SEGMENT_COLUMNS if found.keys() & set(SEGMENT_COLUMNS) else ()
    return list(dict.fromkeys([*first, *found, *segments]))


def _warn_of_contradictions(pairs: Iterable[tuple[_Entry, _Entry]]) -> None:
    """Say for which columns the two tables differ, and how often: a wrong label, or a wrong person."""
    differ: dict[str, list[int]] = defaultdict(list)
    for ecg, study in pairs:
        for name in ecg.values.keys() & study.values.keys() - set(_NOT_COPIED):
            if "" not in (ecg.values[name], study.values[name]) and ecg.values[name] != study.values[name]:
                differ[name].append(ecg.row)
    for name, rows in sorted(differ.items()):
        kept = "studies'" if name in SEGMENT_COLUMNS else "ECGs'"
        some = ", ".join(map(str, sorted(rows)[:5])) + (", …" if len(rows) > 5 else "")
        log.warning("%d pairs differ in column %s; the %s is kept (ECG row %s)", len(rows), name, kept, some)


def _plain(patient: str) -> str:
    """An identifier without what spreadsheets add or take: blanks, letters' size, `.0`, leading zeros."""
    text = unicodedata.normalize("NFKC", patient).casefold().strip()
    return re.sub(r"\.0+$", "", text).lstrip("0")


def _warn_of_spellings(by_patient: Mapping[str, tuple[list[_Entry], list[_Entry]]]) -> None:
    """Say how many patients of either table alone would meet if identifiers were written alike."""
    alone = [{_plain(name) for name, sides in by_patient.items() if not sides[other]} for other in (1, 0)]
    if more := len(alone[0] & alone[1]):
        log.warning(
            "%d patients would be in both tables but for how these write identifiers: leading zeros, .0, capital "
            "letters, blanks; write them alike",
            more,
        )


def _no_pair(config: PairConfig, usable: Mapping[str, int], reasons: Mapping[tuple[str, str], int], to: Path) -> str:
    """What is said of tables without a pair; `to` lists their rows. `usable`: how many of each table could be in one,
    `reasons`: why others could not.
    """
    unusable = []
    for table in [table for table, count in usable.items() if not count]:
        why = ", ".join(f"{count}: {reason}" for (name, reason), count in reasons.items() if name == table)
        unusable.append(f"no row of {getattr(config, table)} can be used ({why})")
    if unusable:
        text = " and ".join(unusable)
        return (
            f"{text[0].upper()}{text[1:]}. Dates are read as {_UNDERSTOOD}. Correct the rows, or name other columns "
            f"with patient_id=, ecg_date= or study_date=. {to} has every row's reason."
        )
    return (
        f"No ECG of {usable['ecg']} and no study of {usable['studies']} belong together within window_days="
        f"{config.window_days:g} under policy={config.policy}. Widen the window, or compare how the tables write "
        f"patient identifiers (leading zeros, prefixes). {to} has every row's reason."
    )


def pair(config: PairConfig) -> None:
    """Write the cohort table and what fell out. Raises DataError for tables that cannot be used, or without a pair.

    All rows of a patient keep its identifier, so that they share a split and are never each other's negatives.
    """
    out = Path(config.out).absolute()
    tables = Path(config.ecg).absolute(), Path(config.studies).absolute()
    listed = out.with_name(f"{out.name}.left_out.csv")
    if not config.out or out.is_dir() or out.suffix.lower() not in ("", ".csv", ".txt"):
        raise DataError(f"out={config.out} cannot be the cohort table, which is CSV. Name a file, e.g. out=cohort.csv.")
    if {out, listed} & set(tables):
        raise DataError(f"out={out}, or {listed.name} beside it, is one of the tables to join. Choose another file.")
    left_out = _LeftOut()
    ecgs = _entries(tables[0], "ecg", config, config.ecg_date, "ecg_path", left_out)
    studies = _entries(tables[1], "studies", config, config.study_date, "study_path", left_out)
    if len({entry.date.tzinfo is None for entry in (*ecgs, *studies) if entry.has_time}) == 2:
        log.warning("some times state their offset from UTC and some do not: with the latter, all are local times")
    by_patient: dict[str, tuple[list[_Entry], list[_Entry]]] = defaultdict(lambda: ([], []))
    for side, entries in enumerate((ecgs, studies)):
        for entry in entries:
            by_patient[entry.patient][side].append(entry)
    pairs = [found for mine in by_patient.values() for found in _pairs(*mine, config, left_out)]
    _warn_of_spellings(by_patient)
    if not pairs:
        # The list is what shows why, so it is written although there is no cohort table beside it.
        write_text(listed, left_out.csv(), mode=0o600)
        reasons = left_out.log()
        usable = {"ecg": len(ecgs), "studies": len(studies)}
        earlier = f" {out} is of an earlier call." if out.exists() else ""
        raise DataError(_no_pair(config, usable, reasons, listed) + earlier)
    _warn_of_contradictions(pairs)
    folders = tables[0].parent, tables[1].parent
    lines = {ecg.row: _line(ecg, study, folders, out.parent) for ecg, study in pairs}
    alone = [ecg for ecg in ecgs if ecg.row not in lines] if config.keep_unpaired else []
    lines |= {ecg.row: _line(ecg, None, folders, out.parent) for ecg in alone}
    left_out.keep("ecg", set(lines))
    left_out.log()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _names(lines.values()), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines[row] for row in sorted(lines))
    write_text(listed, left_out.csv(), mode=0o600)
    write_text(out, text.getvalue(), mode=0o600)
    log.info(
        "%d pairs of %d patients, %d ECGs without a study kept: %s",
        len(pairs),
        len({ecg.patient for ecg, _ in pairs}),
        len(alone),
        out,
    )
