"""The cohort table as text: a CSV or Parquet file, its columns found by name."""

import csv
import importlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stence_dist.config.build import ColumnsConfig
from stence_dist.data.sidecar import CONFOUNDERS
from stence_dist.errors import DataError, MissingExtraError
from stence_dist.files import refuse_pipe
from stence_dist.targets import SEGMENTS

log = logging.getLogger("stence_dist")

REQUIRED = ("patient_id", "ecg_path", "study_path")
EXPECTED = ("days_between", "age", "sex", "site")  # a table without one is warned about
OPTIONAL = ("split", *CONFOUNDERS)
_LOOKS_KNOWN = re.compile(r"\s*(label|seg)_", re.IGNORECASE)
LABEL_COLUMN = re.compile(r"label_[A-Za-z0-9_.-]{1,60}")  # 0 / 1 labels of any task; they keep their names
SEGMENT_COLUMNS = tuple(f"seg_{segment}" for segment in SEGMENTS)
# What programs write for a cell without a value, small letters.
UNKNOWN = frozenset(("", "na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "none", "-"))
COLUMNS = (*REQUIRED, *EXPECTED, *OPTIONAL, *SEGMENT_COLUMNS)  # all that are known, by their own names


def _refuse_other_formats(path: Path) -> None:
    """Name what spreadsheet programs save besides CSV with commas: workbooks, UTF-16, other separators."""
    with open(path, "rb") as file:
        start = file.read(4096)
    found = None
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        found = "a workbook of a spreadsheet program"
    elif start.startswith((b"\xff\xfe", b"\xfe\xff")):
        found = "text in UTF-16"
    else:
        first = start.partition(b"\n")[0]
        names = {b";": "semicolons", b"\t": "tabs", b"|": "bars"}
        separators = [name for mark, name in names.items() if mark in first and b"," not in first]
        found = f"a table with {separators[0]} between its columns" if separators else None
    if found:
        raise DataError(f"{path} is {found}. Save it as CSV (UTF-8, commas), or as Parquet.")


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    _refuse_other_formats(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file, strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8 ({error}). Save it as CSV (UTF-8, comma), or as Parquet.") from None
    if not lines:
        raise DataError(f"{path} is empty. A cohort table has a header and a row per recording.")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(lines[0]):
            raise DataError(
                f"{path}, row {number} has {len(line)} fields, the header {len(lines[0])}. Correct the row."
            )
    return lines[0], lines[1:]


def _read_parquet(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError(f'{path} is Parquet: pip install "stence_dist[parquet]", or save it as CSV.') from None
    try:
        table = parquet.read_table(path)
    except Exception as error:  # pyarrow's errors share no public base class
        raise DataError(f"{path} is no readable Parquet file ({type(error).__name__}). Export it again.") from None
    columns = [["" if _is_empty(value) else str(value) for value in column.to_pylist()] for column in table.columns]
    return list(table.column_names), [list(line) for line in zip(*columns, strict=True)]


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def found_columns(header: Sequence[str], known: Iterable[str]) -> str:
    """What a message says of a table's header: its headings, unless none is `known`; it may be a patient's row then."""
    if not set(header) & set(known):
        return f"none of the usual ones among the {len(header)} of its first line; is that a header?"
    return f"found {', '.join(header)}"


def _look_for_misnamed(path: Path, header: list[str], places: Mapping[str, int], stated: Mapping[str, str]) -> None:
    """Raise DataError for a column that differs from an absent known one in blanks and letters' size; tell of others
    that look like labels or segments. `places`, `stated`: of the known columns that are there, and what all are called.
    """
    absent = {stated[name].casefold(): name for name in COLUMNS if name not in places}
    for name in header:
        if mine := absent.get(name.strip().casefold()):
            raise DataError(
                f"{path} has a column {name!r}, which is not read, and none {stated[mine]!r}. Rename it, or give "
                f"columns.{mine}={name}; where it is something else, give it another name."
            )
    alike = [name for name in header if _LOOKS_KNOWN.match(name) and name not in set(stated.values())]
    odd = [name for name in alike if not LABEL_COLUMN.fullmatch(name)]
    if odd:
        text = "columns not read, for their names: %s; labels are label_ and letters, digits, . _ -"
        log.warning(text, ", ".join(odd))


def _find_columns(path: Path, header: list[str], columns: ColumnsConfig) -> dict[str, int]:
    """Place in the header of every known column, and of every `label_*`, that is there. Raises DataError for one that
    is needed and is not.
    """
    stated = {name: str(getattr(columns, name)) for name in COLUMNS}
    places = {name: header.index(stated[name]) for name in COLUMNS if stated[name] in header}
    renamed = [name for name in COLUMNS if name not in places and stated[name] != name]
    if renamed:
        raise DataError(
            f"{path} has no column {stated[renamed[0]]!r}, which columns.{renamed[0]} names "
            f"({found_columns(header, stated.values())})."
        )
    needed = [*REQUIRED, *(SEGMENT_COLUMNS if any(name in places for name in SEGMENT_COLUMNS) else ())]
    absent = [name for name in needed if name not in places]
    if absent:
        raise DataError(
            f"{path} has no column {', '.join(absent)} ({found_columns(header, stated.values())}). "
            f"Add it, or name yours: columns.{absent[0]}=…  "
            "An empty study_path means ECG only, an empty segment unknown."
        )
    _look_for_misnamed(path, header, places, stated)
    unknown = [name for name in (*EXPECTED, "seg_1 ... seg_16") if name.split()[0] not in places]
    if unknown:
        unused = ", ".join(name for name in header if name not in stated.values()) or "none"
        log.warning("no column %s: unknown in every row (columns not used: %s)", ", ".join(unknown), unused)
    return places | {name: place for place, name in enumerate(header) if LABEL_COLUMN.fullmatch(name)}


def read_lines(path: Path, key: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV or Parquet table as text, which the user named with `key`. Raises DataError."""
    refuse_pipe(path, key)
    if not path.is_file():
        raise DataError(f"{key}={path} is not a file. Expected a CSV or Parquet table.")
    with open(path, "rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    header, lines = (_read_parquet if is_parquet else _read_csv)(path)
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        places = [str(place) for place, name in enumerate(header, start=1) if name == twice[0]]
        raise DataError(f"{path}: the columns {' and '.join(places)} have one name. Keep one of them.")
    if not lines:
        raise DataError(f"{path} has a header and no row.")
    return header, lines


def without_na(cell: str) -> str:
    """A cell's text; empty where it is what R, pandas, SQL or Excel write for the unknown: NA, nan, NULL, #N/A."""
    text = cell.strip()
    return "" if text.casefold() in UNKNOWN else text


def read_table(path: Path, columns: ColumnsConfig) -> list[dict[str, str]]:
    """The table's rows as text by canonical column name; unknown columns are left out. Raises DataError.

    `NA` and its like are empty, but in the two columns that every row needs, where a message is to say so.
    """
    header, lines = read_lines(path, "cohort")
    places = _find_columns(path, header, columns)
    texts = {name: str.strip if name in ("patient_id", "ecg_path") else without_na for name in places}
    return [{name: texts[name](line[place]) for name, place in places.items()} for line in lines]
