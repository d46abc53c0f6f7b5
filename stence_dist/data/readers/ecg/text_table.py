"""ECGs as text: `FILE.csv` of one sample per line and one lead per column, with a sidecar `FILE.json`.

The sidecar declares {"sampling_rate": 500, "unit": "mV"} and "leads" where the table's first line does not name them.
Columns are separated by comma, semicolon, tab or spaces; columns that are no lead (time, say) are left out.
"""

import re
from pathlib import Path

import numpy as np

from stence_dist.data.readers.ecg.declared import Declared, read_sidecar
from stence_dist.data.readers.ecg.waveform import Waveform, check_size
from stence_dist.data.readers.record import ReaderError

_LARGEST = 200_000_000  # bytes
_SEPARATORS = (",", ";", "\t", r"\s+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|", re.IGNORECASE)


def _fields(line: str, separator: str) -> list[str]:
    return [field.strip().strip('"') for field in re.split(separator, line.strip())]


def _separator(start: bytes) -> str | None:
    """What separates the columns of a table whose second line is all numbers; None where it is none."""
    try:
        # The last line of what was read may end within a character.
        lines = start.decode("utf-8-sig", errors="ignore").splitlines()
    except UnicodeDecodeError:
        return None
    if len(lines) < 3 or "\0" in lines[0]:
        return None
    for separator in _SEPARATORS:
        fields = _fields(lines[1], separator)
        if len(fields) > 1 and all(_NUMBER.fullmatch(field) for field in fields) and any(fields):
            return separator
    return None


def is_text_table(path: Path, start: bytes) -> bool:
    """Whether a file is a table of numbers, by its second line."""
    return _separator(start) is not None


def read_text_table(path: Path) -> Waveform:
    """The leads of a table and its sidecar. Raises ReaderError."""
    import pandas

    if path.stat().st_size > _LARGEST:
        raise ReaderError(f"the table has {path.stat().st_size} bytes; at most {_LARGEST} are read.")
    with open(path, "rb") as file:
        start = file.read(65536)
    separator = _separator(start)
    assert separator is not None, "recognized before it is read"
    first = _fields(start.decode("utf-8-sig", errors="ignore").splitlines()[0], separator)
    named = not all(_NUMBER.fullmatch(field) for field in first)
    declared = read_sidecar(path)
    if named:
        declared.setdefault("leads", first)
    settings = Declared.parse({**declared, "axes": "samples_leads"}, "the sidecar .json")
    try:
        table = pandas.read_csv(
            path, sep=separator, header=0 if named else None, dtype=np.float64, encoding="utf-8-sig", engine="c"
        ).to_numpy()
    except (ValueError, UnicodeDecodeError):
        raise ReaderError("the table holds something that is no number; expected one sample per line.") from None
    check_size(*table.shape[::-1])
    return settings.waveform(table)
