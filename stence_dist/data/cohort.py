"""The cohort table: one row per recording, checked, keyed and split by patient."""

import hmac
import logging
import math
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stence_dist.config.build import ColumnsConfig
from stence_dist.data.cohort_table import LABEL_COLUMN, SEGMENT_COLUMNS, UNKNOWN, read_table
from stence_dist.data.index import SPLITS
from stence_dist.errors import DataError
from stence_dist.files import write_text
from stence_dist.seeds import derive, generator

log = logging.getLogger("stence_dist")

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
SEVERE = 70.0  # percent; the split's strata, whatever threshold a run uses later
_RANGES = {
    "days_between": (-36500.0, 36500.0),
    "age": (0.0, 130.0),
    "lvef": (0.0, 100.0),
    "high_pass_hz": (0.0, 10.0),
    "low_pass_hz": (10.0, 10_000.0),
}
_FLAG_COLUMNS = ("acute", "prior_revascularization", "after_procedure")
_FLAGS = {"0": 0, "false": 0, "no": 0, "0.0": 0, "1": 1, "true": 1, "yes": 1, "1.0": 1}
_SEXES = {"": None, "M": "M", "MALE": "M", "F": "F", "FEMALE": "F"}
_LONGEST_TEXT = 64
PUBLIC_COLUMNS = ("site", "device")
_FEWEST_SUSPECTS = 20  # different sites or devices


@dataclass(frozen=True)
class Reject:
    """A row that stays out of the set, and why. `path` goes to rejects.csv only."""

    row: int
    patient_key: str
    field: str
    reason: str
    path: str = ""

    def message(self) -> str:
        """The reason with the row and the beginning of the patient key; safe for logs."""
        return f"row {self.row}, {name_patient(self.patient_key)}: {self.reason}"


@dataclass(frozen=True)
class CohortRow:
    """One checked row. `row` counts the table's data rows from 1, and is the sample number."""

    row: int
    patient_key: str
    ecg_path: str
    study_path: str  # "" = ECG only
    segments: tuple[float | None, ...]  # 16 percents, None = not reported
    columns: dict[str, Any]  # age, sex, site, days_between, the optional known columns, label_*; None = unknown
    split: str = ""

    @property
    def severe(self) -> bool | None:
        """Whether any reported segment reaches 70 %; None where none is reported."""
        known = [percent for percent in self.segments if percent is not None]
        return max(known) >= SEVERE if known else None


@dataclass(frozen=True)
class Cohort:
    """A table's rows that can be built, in table order with their splits, and those that cannot."""

    folder: Path
    rows: list[CohortRow]
    rejects: list[Reject]
    split_source: str  # "column" | "drawn"


def name_patient(patient_key: str) -> str:
    """How messages name a patient."""
    return f"patient {patient_key[:8]}…" if patient_key else "no patient"


def read_key(cohort: Path, key_file: str | None) -> bytes:
    """The secret of the patient keys; made beside the table (0600) where no file was named and none is there."""
    path = Path(key_file) if key_file else cohort.parent / "patient_key.txt"
    if not path.exists():
        if key_file:
            raise DataError(f"key_file={path} does not exist. Leave key_file out to have one made beside the cohort.")
        try:
            write_text(path, secrets.token_hex(32) + "\n", mode=0o600)
        except OSError as error:
            raise DataError(
                f"the patient key file {path} cannot be made ({error.strerror}). Give one with key_file=."
            ) from None
        log.info("made the patient key file %s; keep it secret, and keep it: other keys give other patients", path)
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise DataError(f"the key file {path} cannot be read ({error.strerror}). Give a file with key_file=.") from None
    if len(secret) < 16:
        raise DataError(f"the key file {path} holds {len(secret)} characters; 16 or more are needed.")
    return secret


def patient_key(secret: bytes, patient_id: str) -> str:
    """The first 32 hex digits of HMAC-SHA256(secret, patient_id)."""
    return hmac.new(secret, patient_id.strip().encode(), "sha256").hexdigest()[:32]


class _FieldError(Exception):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


def _number(values: Mapping[str, str], field: str, low: float, high: float) -> float | None:
    text = values.get(field, "")
    if text.casefold() in UNKNOWN:
        return None
    try:
        number = float(text)
    except ValueError:
        raise _FieldError(field, f"{field} is not a number; expected {low:g} to {high:g}, or empty.") from None
    if not low <= number <= high:
        # A long number in the wrong column may be a patient's, or a date of birth.
        found = f"{number:g}" if abs(number) < 1000 or math.isinf(number) else "a number of another size"
        raise _FieldError(field, f"{field} is {found}; expected {low:g} to {high:g}, or empty.")
    return number


def _check_row(number: int, values: Mapping[str, str], key: str) -> CohortRow:
    """One row with its fields checked. Raises _FieldError at the first bad one."""
    if values["patient_id"].casefold() in UNKNOWN:  # nan, NULL: all such rows would be one patient
        raise _FieldError("patient_id", "patient_id is empty, or a word for it; splits by patient need it.")
    for field in ("ecg_path", "study_path"):
        if "pipe:" in values[field] or "\0" in values[field]:
            raise _FieldError(field, f"{field} holds 'pipe:'; expected a local path.")
    if not values["ecg_path"]:
        raise _FieldError("ecg_path", "ecg_path is empty; every row needs an ECG.")
    segments = tuple(_number(values, name, 0.0, 100.0) for name in SEGMENT_COLUMNS)
    columns: dict[str, Any] = {field: _number(values, field, *_RANGES[field]) for field in _RANGES}
    sex = values.get("sex", "").upper()
    if sex not in _SEXES:
        raise _FieldError("sex", f"sex holds {len(sex)} characters; expected M, F or empty.")
    columns["sex"] = _SEXES[sex]
    for field in (*_FLAG_COLUMNS, *(name for name in values if LABEL_COLUMN.fullmatch(name))):
        text = values.get(field, "").casefold()
        if text not in UNKNOWN and text not in _FLAGS:
            raise _FieldError(field, f"{field} is neither 0 nor 1; expected one of them, or empty.")
        columns[field] = _FLAGS.get(text)
    for field in PUBLIC_COLUMNS:
        text = values.get(field, "")
        if len(text) > _LONGEST_TEXT or not text.isprintable():
            raise _FieldError(field, f"{field} is {len(text)} characters or not printable; at most {_LONGEST_TEXT}.")
        columns[field] = text or None
    return CohortRow(number, key, values["ecg_path"], values["study_path"], segments, columns)


def _given_splits(table: Sequence[Mapping[str, str]], path: Path) -> bool:
    """Whether the table brings its own splits. Raises DataError where it does so for some rows only."""
    given = [values.get("split", "") for values in table]
    if not any(given):
        return False
    for number, split in enumerate(given, start=1):
        if split not in SPLITS:
            raise DataError(
                f"{path}, row {number}: split is {'something else' if split else 'empty'}; expected train, val or "
                "test in every row, or an empty column to have patients split."
            )
    return True


def _check_splits(rows: Sequence[CohortRow]) -> None:
    """Raise DataError that names the rows of a patient who is in two splits."""
    members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        members[row.patient_key][row.split].append(row.row)
    torn = [(key, splits) for key, splits in members.items() if len(splits) > 1]
    if torn:
        key, splits = torn[0]
        where = " and ".join(
            f"{split} (row {', '.join(map(str, numbers[:3]))}{', …' if len(numbers) > 3 else ''})"
            for split, numbers in splits.items()
        )
        raise DataError(
            f"{name_patient(key)} is in {where}; {len(torn)} such in all. A patient belongs to one split: "
            "correct the column split, or empty it to have patients split."
        )


def drawn_splits(patients: Mapping[str, list[CohortRow]], seed: int) -> dict[str, str]:
    """Split by patient identifier: 70/10/20, alike within every stratum (pairs or not; severe, not, not reported).

    Each patient has a number that depends on the seed and the identifier alone (not on the key: another key file must
    not change who is tested), and a stratum's lowest ones are test, the next validation: when a cohort grows or a label
    is corrected, hardly anyone moves. Shares are kept over all strata together, so small ones have their part, and with
    three patients or more no split stays empty.
    """
    strata: dict[tuple[bool, int], list[str]] = defaultdict(list)
    for name in sorted(patients, key=lambda name: (derive(seed, "split", name), name)):
        severities = {row.severe for row in patients[name]}
        severe = 2 if True in severities else 1 if False in severities else 0
        strata[any(row.study_path for row in patients[name]), severe].append(name)
    wanted = {split: max(1, round(SHARES[split] * len(patients))) for split in ("test", "val")}
    given = dict.fromkeys(wanted, 0)
    splits: dict[str, str] = {}
    for _, names in sorted(strata.items()):
        splits |= dict.fromkeys(names, "train")
        place = 0
        for split, count in wanted.items():
            due = round(count * len(splits) / len(patients)) - given[split]
            taken = names[place : place + due]
            splits |= dict.fromkeys(taken, split)
            place += len(taken)
            given[split] += len(taken)
    return splits


def _with_splits(rows: Sequence[CohortRow], splits: Sequence[str]) -> list[CohortRow]:
    return [CohortRow(**{**vars(row), "split": split}) for row, split in zip(rows, splits, strict=True)]


def same_file(folder: Path, path: str) -> str:
    """One text for the spellings of a path in a table of `folder` that mean one recording; links are not followed.

    A WFDB record may be named by its header. Empty for an empty path.
    """
    return os.path.abspath(folder / path).removesuffix(".hea") if path else ""


def _nested_studies(folder: Path, table: Sequence[Mapping[str, str]], secret: bytes) -> dict[str, dict[str, int]]:
    """Study folder -> whose studies a table of `folder` has inside it: patient key -> row."""
    stated = {same_file(folder, values["study_path"]) for values in table} - {""}
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for number, values in enumerate(table, start=1):
        place = same_file(folder, values["study_path"])
        outer = os.path.dirname(place)
        while outer and outer != place:
            if outer in stated:
                found[outer].setdefault(patient_key(secret, values["patient_id"]), number)
            place, outer = outer, os.path.dirname(outer)
    return found


def read_cohort(path: Path, columns: ColumnsConfig, secret: bytes, seed: int) -> Cohort:
    """The table's good rows with patient keys and splits, and the rejected ones.

    A row with a bad field is rejected, and so is one that repeats the ECG and the study of an earlier row, or has the
    ECG or the study of another patient's. Splits come from the column where it is filled, and are then checked; else
    patients are drawn 70/10/20, stratified on severe stenosis. Raises DataError for a table that cannot be used, a
    patient in two splits, or a split without a row.
    """
    table = read_table(path, columns)
    given = _given_splits(table, path)
    rows: list[CohortRow] = []
    rejects: list[Reject] = []
    ids: dict[str, str] = {}
    first: dict[tuple[str, str], int] = {}
    inside = _nested_studies(path.parent, table, secret)
    owners: dict[str, dict[str, tuple[str, int]]] = {"ECG": {}, "study": {}}  # what -> its path -> patient key, row
    for number, values in enumerate(table, start=1):
        key = patient_key(secret, values["patient_id"]) if values["patient_id"] else ""
        try:
            row = _check_row(number, values, key)
            recording = (same_file(path.parent, row.ecg_path), same_file(path.parent, row.study_path))
            for (what, mine), place in zip(owners.items(), recording, strict=True):
                owner = mine.get(place, (key, number))
                if place and owner[0] != key:
                    field = f"{what.lower()}_path"
                    raise _FieldError(field, f"the {what} of row {owner[1]}, which is another patient's.")
            if recording in first:
                raise _FieldError("ecg_path", f"duplicate of row {first[recording]} (same ecg_path and study_path).")
            if inner := inside.get(recording[1], {}).keys() - {key}:
                other = inside[recording[1]][min(inner)]
                raise _FieldError("study_path", f"a folder that holds the study of row {other}, another patient's.")
        except _FieldError as error:
            place = values["study_path"] if error.field == "study_path" else values["ecg_path"]
            rejects.append(Reject(number, key, error.field, str(error), place))
            continue
        first[recording] = number
        for mine, place in zip(owners.values(), recording, strict=True):
            mine.setdefault(place, (key, number))
        ids[values["patient_id"]] = key
        rows.append(row)
    if given:
        rows = _with_splits(rows, [table[row.row - 1]["split"] for row in rows])
        _check_splits(rows)
    else:
        by_key = defaultdict(list)
        for row in rows:
            by_key[row.patient_key].append(row)
        drawn = drawn_splits({name: by_key[key] for name, key in ids.items()}, seed)
        split_of = {ids[name]: split for name, split in drawn.items()}
        rows = _with_splits(rows, [split_of[row.patient_key] for row in rows])
    return Cohort(path.parent, rows, rejects, "column" if given else "drawn")


def public_names(rows: Sequence[CohortRow], column: str) -> tuple[str, ...]:
    """The sites or devices of a cohort, which a set's index has in clear. Raises DataError where they may be patients.

    column: one of `PUBLIC_COLUMNS`.
    """
    given = [row.columns[column] for row in rows if row.columns[column]]
    names = sorted(set(given))
    if len(names) >= _FEWEST_SUSPECTS and 2 * len(names) > len(given):
        raise DataError(
            f"the column {column} has {len(names)} different values in {len(given)} rows. They would stand in the set "
            f"in clear, and so many may identify patients: correct columns.{column}=, or empty the column."
        )
    return tuple(names)


def by_field(rejects: Sequence[Reject]) -> dict[str, int]:
    """How many rows were rejected for which field."""
    return dict(Counter(reject.field for reject in rejects))


def check_splits_filled(counts: Mapping[str, int], rejected: Mapping[str, int]) -> None:
    """Raise DataError where a split has no row at all. rejected: how many rows by field."""
    empty = [split for split in SPLITS if not counts.get(split)]
    if empty:
        found = ", ".join(f"{split} {counts.get(split, 0)}" for split in SPLITS)
        why = ", ".join(f"{count} for {field}" for field, count in rejected.items() if count)
        raise DataError(
            f"the split {' and '.join(empty)} has no row ({found}; rows rejected: {why or 'none'}). "
            "Use three patients or more and, where the table has a column split, all three of its values."
        )


def limit_rows(rows: Sequence[CohortRow], limit: int | None, seed: int) -> list[CohortRow]:
    """About `limit` rows, drawn from each split in proportion (at least one of each), in table order."""
    if limit is None or limit >= len(rows):
        return list(rows)
    chosen: list[CohortRow] = []
    for split in SPLITS:
        members = [row for row in rows if row.split == split]
        count = min(len(members), max(1, round(limit * len(members) / len(rows))))
        picked = generator(seed, "limit", split).permutation(len(members))[:count]
        chosen += [members[int(number)] for number in np.sort(picked)]
    return sorted(chosen, key=lambda row: row.row)
