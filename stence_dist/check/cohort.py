"""A cohort table: its rows as a build would take them, and the files that they name."""

import math
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from stence_dist.check import identifiers
from stence_dist.check.findings import NOTE, PROBLEM, WARNING, Result, Section, Table, Tally
from stence_dist.check.labels import Labelled, label_section
from stence_dist.check.pictures import drawn_file, ecg_pictures, run_pictures
from stence_dist.check.recordings import Place, Recordings, read_all
from stence_dist.check.studies import TOKENS, Views, look_at_study
from stence_dist.config.check import CheckConfig
from stence_dist.data.cohort import (
    PUBLIC_COLUMNS,
    CohortRow,
    Reject,
    by_field,
    check_splits_filled,
    limit_rows,
    patient_key,
    public_names,
    read_cohort,
    read_key,
    same_file,
)
from stence_dist.data.cohort_table import LABEL_COLUMN, SEGMENT_COLUMNS, read_lines, read_table
from stence_dist.data.index import SPLITS
from stence_dist.errors import DataError

HINT = "Row 12 is the twelfth below the table's header."
_SPLIT_SEED = 0  # the build's default; another seed gives other splits of the same shares
_ANOTHER = "the ECG or the study is that of an earlier row, of another patient; rejected"
_OUTER = "the study folder holds the studies of other patients; rejected"
_FILES = ("ecg_path", "study_path", "patient_id")


def check_cohort(path: Path, config: CheckConfig) -> Result:
    """What a cohort table and its files hold. Raises DataError for a table that cannot be read at all."""
    table = read_table(path, config.columns)
    section = Section("table", "Table")
    rows, rejects = _rows(path, table, config, section)
    fields = identifiers.Fields()
    _look_at_names(path, table, config, fields)
    _report_rejects(section, rejects)
    chosen = limit_rows(rows, config.limit, _SPLIT_SEED)
    if len(chosen) < len(rows):
        section.add(NOTE, f"limit={config.limit}: the files of {len(chosen)} rows were looked at, drawn by split")
    recordings, views = Recordings(fields), Views(fields)
    lost = _look_at_files(path.parent, chosen, recordings, views, config.workers)
    without = [row for row in chosen if row.row not in lost]
    if len(chosen) == len(rows) and all(row.split for row in rows):
        _report_empty_splits(section, without, {**by_field(rejects), "unusable files": len(lost)})
    section.tables = [_split_table(rows, lost), _column_table(table, rows)]
    labels = label_section(_labelled(rows), config.targets)
    sections = [section, recordings.section(), views.section(), labels, fields.section()]
    if config.out is not None:
        sections[1].pictures += ecg_pictures(recordings.examples, drawn_file)
        sections[2].pictures += run_pictures(views.shown)
    totals = {
        "rows": len(table),
        "patients": len({row.patient_key for row in rows}),
        "pairs": sum(bool(row.study_path) for row in rows),
        "ECGs read": recordings.usable + len(recordings.unusable),
        "views": views.count,
    }
    return Result("cohort table", totals, sections, HINT)


def _rows(
    path: Path, table: Sequence[Mapping[str, str]], config: CheckConfig, section: Section
) -> tuple[list[CohortRow], list[Reject]]:
    """The rows that a build would take and those that it would reject.

    Where the splits stop a build, `section` says so, and the rows come as they are, their fields not yet checked.
    """
    beside = path.parent / "patient_key.txt"
    # A check writes nothing beside the table; a secret of the moment gives the same patients.
    stated = config.key_file is not None or beside.exists()
    secret = read_key(path, config.key_file) if stated else secrets.token_bytes(32)
    try:
        cohort = read_cohort(path, config.columns, secret, _SPLIT_SEED)
    except DataError:
        rows = _unchecked_rows(table, secret)
        _report_splits(section, rows)
        if not section.findings:
            section.add(PROBLEM, "the table's splits cannot be used")
        section.add(NOTE, "fields of the rows are not checked before the splits are right")
        return [row for row in rows if row.ecg_path], []
    try:
        check_splits_filled(Counter(row.split for row in cohort.rows), by_field(cohort.rejects))
    except DataError as error:
        section.add(PROBLEM, str(error))
    for column in PUBLIC_COLUMNS:
        try:
            public_names(cohort.rows, column)
        except DataError as error:
            section.add(PROBLEM, str(error))
    if cohort.split_source == "drawn":
        section.add(NOTE, "the table has no splits; patients are drawn 70/10/20, as a build with split_seed=0 does")
    return cohort.rows, cohort.rejects


def _unchecked_rows(table: Sequence[Mapping[str, str]], secret: bytes) -> list[CohortRow]:
    """Every row, what is no number unknown."""
    rows = []
    for number, values in enumerate(table, start=1):
        segments = tuple(_number(values.get(name, "")) for name in SEGMENT_COLUMNS)
        columns = {name: _number(text) for name, text in values.items() if LABEL_COLUMN.fullmatch(name)}
        columns = {name: value if value in (0.0, 1.0) else None for name, value in columns.items()}
        key = patient_key(secret, values["patient_id"]) if values["patient_id"] else ""
        split = values.get("split", "")
        rows.append(CohortRow(number, key, values["ecg_path"], values["study_path"], segments, columns, split))
    return rows


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _report_splits(section: Section, rows: Sequence[CohortRow]) -> None:
    odd = [f"row {row.row}" for row in rows if row.split not in SPLITS]
    if odd:
        text = "split is not train, val or test; fill it in every row, or empty the column to have patients split"
        section.add(PROBLEM, text, len(odd), odd)
    splits: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        if row.patient_key and row.split in SPLITS:
            splits[row.patient_key].setdefault(row.split, row.row)
    torn = [" and ".join(f"row {row} ({split})" for split, row in first.items()) for first in splits.values()]
    torn = [text for text in torn if " and " in text]
    if torn:
        text = "patients are in more than one split: correct the column split, or empty it to have patients split"
        section.add(PROBLEM, text, len(torn), torn)


def _report_rejects(section: Section, rejects: Sequence[Reject]) -> None:
    tally = Tally()
    for reject in rejects:
        tally.add(_reject_reason(reject), f"row {reject.row}")
    for reason, count in tally.ordered():
        section.add(PROBLEM if reason in (_ANOTHER, _OUTER) else WARNING, reason, count, tally.places(reason))


def _reject_reason(reject: Reject) -> str:
    """Why rows are rejected, without what stands in them."""
    if re.match(r"the (ECG|study) of row \d+", reject.reason):
        return _ANOTHER
    if reject.reason.startswith("a folder that holds the study of row"):
        return _OUTER
    if reject.reason.startswith("duplicate of row"):
        return "ECG and study are those of an earlier row; rejected"
    if reject.field in _FILES:
        return f"{reject.reason.rstrip('.')}; rejected"
    return f"{reject.field} holds what the column does not take; rejected (a build's rejects.csv has each reason)"


def _report_empty_splits(section: Section, rows: Sequence[CohortRow], lost: Mapping[str, int]) -> None:
    if any(finding.level == PROBLEM for finding in section.findings):
        return
    try:
        check_splits_filled(Counter(row.split for row in rows), lost)
    except DataError as error:
        section.add(PROBLEM, f"once rows with unusable files are left out, {error}")


def _look_at_names(
    path: Path, table: Sequence[Mapping[str, str]], config: CheckConfig, fields: identifiers.Fields
) -> None:
    header, _ = read_lines(path, "path")
    used = {str(value) for value in vars(config.columns).values()}
    fields.add(
        identifiers.of_columns([name for name in header if name not in used]), identifiers.COLUMNS, "the table's header"
    )
    for number, values in enumerate(table, start=1):
        parts = tuple(part for name in ("ecg_path", "study_path") for part in Path(values[name]).parts)
        fields.add(identifiers.of_names(parts), identifiers.NAMES, f"row {number}")


def _look_at_files(
    folder: Path, rows: Sequence[CohortRow], recordings: Recordings, views: Views, workers: int
) -> set[int]:
    """Look at every ECG once and at every study; the rows that a build would lose."""
    owners: dict[str, list[CohortRow]] = defaultdict(list)
    for row in rows:
        owners[same_file(folder, row.ecg_path)].append(row)
    items = []
    for first, *_ in owners.values():
        path = folder / first.ecg_path
        items.append((Place(f"row {first.row}", path, first.patient_key, first.split), path))
    read_all(items, recordings, workers)
    unusable = {place.source for place in recordings.unusable}
    lost = {row.row for mine in owners.values() if folder / mine[0].ecg_path in unusable for row in mine}
    return lost | _look_at_studies(folder, [row for row in rows if row.study_path], views, workers)


def _look_at_studies(folder: Path, rows: Sequence[CohortRow], views: Views, workers: int) -> set[int]:
    reasons, kinds = Tally(), Tally()
    lost = set()
    seen_before: set[str] = set()
    looks = Parallel(n_jobs=workers, return_as="generator")(
        delayed(look_at_study)(folder / row.study_path) for row in rows
    )
    with tqdm(total=len(rows), unit="study", disable=None) as bar:
        for row, (files, _, reason) in zip(rows, looks, strict=True):
            place = Place(f"row {row.row}", None, row.patient_key)
            if row.study_path not in seen_before:
                for path, view in files:
                    if view.reason is None:  # else the study's
                        views.add(place, view, path)
            seen_before.add(row.study_path)
            undecoded = any(not view.decodes for _, view in files)
            if reason is not None:
                reasons.add(reason, place.label)
            if reason is not None or undecoded:
                lost.add(row.row)
            else:
                tokens = any(view.kind in TOKENS for _, view in files)
                kinds.add("stored tokens" if tokens else "pixels", place.label)
            bar.update()
    for reason, count in reasons.ordered():
        views.result.add(WARNING, f"study cannot be used: {reason}", count, reasons.places(reason))
    if len(kinds.counts) > 1:
        rare, count = kinds.ordered()[-1]
        text = f"studies of {' and of '.join(sorted(kinds.counts))} do not mix in one set; build two sets"
        views.result.add(WARNING, text, count, kinds.places(rare))
    return lost


def _split_table(rows: Sequence[CohortRow], lost: set[int]) -> Table:
    lines = []
    for split in [name for name in SPLITS if any(row.split == name for row in rows)]:
        mine = [row for row in rows if row.split == split]
        patients = len({row.patient_key for row in mine})
        pairs = sum(bool(row.study_path) for row in mine)
        lines.append((split, len(mine), patients, pairs, sum(row.row in lost for row in mine)))
    return Table("Splits", ("split", "rows", "patients", "pairs", "unusable"), lines)


def _column_table(table: Sequence[Mapping[str, str]], rows: Sequence[CohortRow]) -> Table:
    """How many rows fill each column, the segments as one; how many sites and devices there are."""
    unknown = ("", "nan", "na", "null", "none")
    names = [name for name in table[0] if name not in SEGMENT_COLUMNS]
    counts = {name: sum(values[name].casefold() not in unknown for values in table) for name in names}
    if SEGMENT_COLUMNS[0] in table[0]:
        counts["any segment"] = sum(any(values[name] for name in SEGMENT_COLUMNS) for values in table)
        counts["all 16 segments"] = sum(all(values[name] for name in SEGMENT_COLUMNS) for values in table)
    lines: list[tuple[str, int, int | None]] = []
    for name, count in counts.items():
        values_of = {values.get(name, "") for values in table} - {""} if name in ("site", "device") else set()
        lines.append((name, count, len(values_of) or None))
    return Table("Columns", ("column", "filled", "distinct"), lines)


def _labelled(rows: Sequence[CohortRow]) -> Labelled:
    segments = np.array(
        [[math.nan if percent is None else percent for percent in row.segments] for row in rows], dtype=np.float32
    ).reshape(-1, len(SEGMENT_COLUMNS))
    names = sorted({name for row in rows for name in row.columns if LABEL_COLUMN.fullmatch(name)})
    others = {
        name: np.array([math.nan if row.columns[name] is None else row.columns[name] for row in rows], dtype=np.float32)
        for name in names
    }
    split = np.array([row.split for row in rows], dtype=np.str_)
    return Labelled(split, segments, np.array([bool(row.study_path) for row in rows]), others)
