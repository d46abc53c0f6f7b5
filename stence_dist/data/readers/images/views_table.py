"""`views.csv` in a study folder: key frames and angles that the files themselves do not state."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.record import study_error

VIEWS_TABLE = "views.csv"


@dataclass(frozen=True)
class ViewNote:
    """What views.csv says of one file; None and NaN = nothing."""

    key_frame: int | None
    angulation: NDArray[np.float32]


def read_views_table(folder: Path) -> dict[str, ViewNote]:
    """The notes of a study folder's `views.csv` (file,key_frame,primary,secondary) by file name; {} without one.

    key_frame counts from 0; primary and secondary are degrees (RAO-/LAO+, CAU-/CRA+); empty = unknown. A file that
    holds several views is named once for each: FILE#0, FILE#1, ... Raises ReaderError.
    """
    table = folder / VIEWS_TABLE
    if not table.is_file():
        return {}
    notes = {}
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file, strict=True))
        for line in lines:
            key_frame = (line.get("key_frame") or "").strip()
            angles = [float(line.get(name) or "nan") for name in ("primary", "secondary")]
            notes[line["file"].strip()] = ViewNote(
                int(key_frame) if key_frame else None, np.array(angles, dtype=np.float32)
            )
    except (KeyError, ValueError, AttributeError, csv.Error):
        raise study_error("views.csv cannot be read; expected the columns file,key_frame,primary,secondary.") from None
    absent = sum(not (folder / name).is_file() and not (folder / name.rpartition("#")[0]).is_file() for name in notes)
    if absent:
        raise study_error(f"views.csv names {absent} files that are not in the study folder.")
    return notes
