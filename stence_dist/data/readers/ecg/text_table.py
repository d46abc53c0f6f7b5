"""ECGs as text: `FILE.csv` of one sample per line and one lead per column, with a sidecar `FILE.json`.

The sidecar declares {"sampling_rate": 500, "unit": "mV"} and "leads" where the table's first line does not name them.
Columns are separated by comma, semicolon, tab or spaces, and decimals by a point or, where columns are not separated
by commas, by a comma; columns that are no lead (time, say) are left out.
"""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stence_dist.data.readers.ecg.declared import Declared, read_sidecar
from stence_dist.data.readers.ecg.waveform import Waveform, check_size
from stence_dist.data.readers.record import ReaderError

_LARGEST = 200_000_000  # bytes
_SEPARATORS = (",", ";", "\t", r"\s+")
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?|nan|", re.IGNORECASE)


def _fields(line: str, separator: str) -> list[str]:
    return [field.strip().strip('"') for field in re.split(separator, line.strip())]


@dataclass(frozen=True)
class _Layout:
    """How a table is written."""

    first: list[str]  # the fields of its first line
    separator: str
    decimal: str
    named: bool  # whether the first line names columns
    overhang: bool  # whether lines of numbers end in one more separator than the first


def _layout(start: bytes) -> _Layout | None:
    """The layout of a table whose second line is all numbers, from its first bytes; None where it is none."""
    # The last line of what was read may end within a character.
    lines = start.decode("utf-8-sig", errors="ignore").splitlines()
    if len(lines) < 3 or "\0" in lines[0]:
        return None
    for separator in _SEPARATORS:
        fields = _fields(lines[1], separator)
        if len(fields) > 1 and all(_NUMBER.fullmatch(field) for field in fields) and any(fields):
            first = _fields(lines[0], separator)
            return _Layout(
                first,
                separator,
                "," if separator != "," and any("," in line for line in lines[1:-1]) else ".",
                not all(_NUMBER.fullmatch(field) for field in first),
                len(fields) == len(first) + 1 and not fields[-1],
            )
    return None


def is_text_table(path: Path, start: bytes) -> bool:
    """Whether a file is a table of numbers, by its second line."""
    return _layout(start) is not None


def read_text_table(path: Path) -> Waveform:
    """The leads of a table and its sidecar. Raises ReaderError."""
    import pandas

    if path.stat().st_size > _LARGEST:
        raise ReaderError(f"the table has {path.stat().st_size} bytes; at most {_LARGEST} are read.")
    with open(path, "rb") as file:
        layout = _layout(file.read(65536))
    assert layout is not None, "recognized before it is read"
    declared = read_sidecar(path)
    if layout.named:
        declared.setdefault("leads", layout.first)
    settings = Declared.parse({**declared, "axes": "samples_leads"}, "the sidecar .json")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pandas.errors.ParserWarning)  # of the empty fields that hang over
            table = pandas.read_csv(
                path,
                sep=layout.separator,
                decimal=layout.decimal,
                header=0 if layout.named else None,
                index_col=False if layout.overhang else None,
                dtype=np.float64,
                encoding="utf-8-sig",
                engine="c",
            ).to_numpy()
    except (ValueError, UnicodeDecodeError):
        raise ReaderError("the table holds something that is no number; expected one sample per line.") from None
    check_size(*table.shape[::-1])
    return settings.waveform(table)
