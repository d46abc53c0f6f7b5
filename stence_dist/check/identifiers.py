"""Kinds of identifying fields, by fixed words: what files, tables and names are counted by. Never a value.

That a field is filled says nothing of what it holds ("anonymous", perhaps), and a field that nobody knows may hold
anything: no file is free of identifiers because none was found. `headers` says which kinds a file fills.
"""

import re
from collections.abc import Iterable

from stence_dist.check.findings import NOTE, Cell, Section, Table, Tally

PATIENT_NAME = "patient's name"
PATIENT_NUMBER = "patient's number"
BIRTH = "date of birth"
AGE_SEX = "age or sex"
PATIENT_OTHER = "patient's address, telephone, race or occupation"
STAFF = "name or number of staff"
PLACE = "institution, department or room"
ORDER = "accession, order, visit or study number"
DATE = "date of the recording or of its report"
UNIQUE = "unique identifier (UID)"
DEVICE = "device's serial number or name"
TEXT = "free text"
DIAGNOSIS = "diagnosis, medication or history"
PRIVATE = "private element"
OVERLAY = "overlay or curve on the picture"
BURNED_IN = "burned-in annotation not stated as NO"
OTHER = "further entries beside the signal"
NOT_SEARCHED = "header could not be searched"
NAME_DATE = "date in a file or folder name"
NAME_DIGITS = "six digits or more in a file or folder name"
KINDS = (
    PATIENT_NAME,
    PATIENT_NUMBER,
    BIRTH,
    AGE_SEX,
    PATIENT_OTHER,
    STAFF,
    PLACE,
    ORDER,
    DATE,
    UNIQUE,
    DEVICE,
    TEXT,
    DIAGNOSIS,
    PRIVATE,
    OVERLAY,
    BURNED_IN,
    OTHER,
    NAME_DATE,
    NAME_DIGITS,
    NOT_SEARCHED,
)  # in the order of a result
NAMES, COLUMNS, INDEX_NAMES = "file names", "columns not used", "names of sites and devices"  # sources beside formats
_SOURCE_TEXTS = {
    NOT_SEARCHED: "the header was not searched: damaged, deflated or unknown",
    NAMES: "names of files or folders hold a date or a long number; a build writes paths to rejects.csv only",
    COLUMNS: "the table has identifying columns, by their headings; a build does not read them",
    INDEX_NAMES: "names of sites or devices hold a date or a long number; they are in the set's index",
}

_DAY, _MONTH = r"(0?[1-9]|[12]\d|3[01])", r"(0?[1-9]|1[0-2])"
DATES = re.compile(
    r"(?<!\d)(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?!\d)"
    rf"|(?<![\d.])(19|20)\d\d[-_./]{_MONTH}[-_./]{_DAY}(?!\.?\d)"
    rf"|(?<![\d.]){_DAY}[-_./]({_MONTH}|[A-Za-z]{{3}})[-_./](19|20)?\d\d(?!\.?\d)"
)
_DIGITS = re.compile(r"\d{6}")

# Headings of a cohort table's columns that the build does not use; words are parted by underscores.
_COLUMN_KINDS = [
    (BIRTH, r"birth|(^|_)dob(_|$)"),
    (STAFF, r"physician|doctor|operator|technician|radiologist|cardiologist"),
    (PATIENT_NAME, r"(^|_)(sur|last|first|given|family|patient|full)_?name|^name$|initials"),
    (PATIENT_NUMBER, r"(^|_)(mrn|ssn|pid)(_|$)|case_?(no|id|number)|insurance"),
    (PATIENT_OTHER, r"address|street|postal|phone|e_?mail|ethnic|occupation|(^|_)(zip|race)(_|$)"),
    (ORDER, r"accession|(order|visit)_?(no|id|number)"),
    (DATE, r"date|(^|_)time(_|$)"),
    (TEXT, r"comment|report|(^|_)(note|notes|text)(_|$)"),
]


class Fields:
    """How many files fill which kinds of identifying fields, by format."""

    def __init__(self) -> None:
        self._sources: dict[str, Tally] = {}
        self._files = Tally()

    def add(self, kinds: Iterable[str], source: str, place: str) -> None:
        """Count one file, or one recording of many in it, of a format or other `source`."""
        found = set(kinds)
        for kind in found:
            self._sources.setdefault(source, Tally()).add(kind)
        if found - {NOT_SEARCHED, BURNED_IN}:  # neither is a field that is filled
            self._files.add(source, place)
        if NOT_SEARCHED in found:
            self._files.add(NOT_SEARCHED, place)

    def section(self) -> Section:
        """Kinds by source. What is absent here may still be in a field that nobody looked for."""
        section = Section("identifiers", "Where identifiers may be")
        if not self._sources:
            section.add(NOTE, "no identifying field is filled, of those that are known here")
            return section
        kinds = [kind for kind in KINDS if any(tally.counts[kind] for tally in self._sources.values())]
        rows: list[list[Cell]] = [[kind, *(tally.counts[kind] for tally in self._sources.values())] for kind in kinds]
        section.tables.append(Table("Files that fill a field, by kind", ("field", *self._sources), rows))
        for source, count in self._files.ordered():
            text = _SOURCE_TEXTS.get(
                source, f"{source}: identifying fields are filled; none of them enters a shard set"
            )
            section.add(NOTE, text, count, self._files.places(source))
        return section


def of_names(parts: tuple[str, ...]) -> set[str]:
    """The kinds that names of files and folders give away."""
    kinds = {NAME_DATE for part in parts if DATES.search(part)}
    return kinds | {NAME_DIGITS for part in parts if _DIGITS.search(part)}


def of_columns(names: list[str]) -> set[str]:
    """The kinds that the headings of a table announce."""
    words = [re.sub(r"[\W_]+", "_", name.casefold()) for name in names]
    return {kind for kind, pattern in _COLUMN_KINDS for word in words if re.search(pattern, word)}


def of_texts(texts: tuple[str, ...]) -> set[str]:
    """The kinds that a shard set's names of sites and devices give away."""
    kinds = {DATE for text in texts if DATES.search(text)}
    return kinds | {DEVICE for text in texts if _DIGITS.search(text)}
