"""What a check found: tables of counts, and findings by level.

Nothing here is a value of a header, a path or a name: files are known by number, rows by row, kinds by fixed words.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

PROBLEM, WARNING, NOTE = "problem", "warning", "note"
LEVELS = {
    PROBLEM: "stops a build, or makes what it builds wrong",
    WARNING: "a build goes on, and loses rows or takes doubtful ones",
    NOTE: "worth knowing",
}
_FORMAT = 1  # of the JSON
_ROWS = 12  # of a table of counts
_PLACES = 8  # named per finding; the count says how many there are

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under `columns`; None = nothing to say. Floats between 0 and 1 under a share are shares."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing; `count` = how often (0: of the whole), `places` = the first of them."""

    level: str
    text: str
    count: int = 0
    places: tuple[str, ...] = ()

    def where(self) -> str:
        """The places in words."""
        return ", ".join(self.places) + (", …" if self.count > len(self.places) >= _PLACES else "")


@dataclass(frozen=True)
class Picture:
    """For the page alone. `kind` is ecg or frame (base64 PNG), or angles (degrees)."""

    kind: str
    caption: str
    image: str = ""
    points: tuple[tuple[float, float], ...] = ()


@dataclass
class Section:
    """One part of a result, in reading order."""

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to say."""
        return not (self.tables or self.findings or self.pictures)

    def add(self, level: str, text: str, count: int = 0, places: Sequence[str] = ()) -> None:
        """Add a finding."""
        self.findings.append(Finding(level, text, count, tuple(places[:_PLACES])))


class Tally:
    """How often each thing was seen, and the first places of it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._places: dict[str, list[str]] = {}

    def add(self, what: str, place: str = "") -> None:
        """Count `what` once."""
        self.counts[what] += 1
        places = self._places.setdefault(what, [])
        if place and len(places) < _PLACES and place not in places[-1:]:
            places.append(place)

    def places(self, what: str) -> list[str]:
        """The first places of `what`."""
        return self._places.get(what, [])

    def ordered(self) -> list[tuple[str, int]]:
        """What was seen, the most frequent first."""
        return sorted(self.counts.items(), key=lambda entry: (-entry[1], entry[0]))

    def table(self, title: str, column: str, counted: str) -> Table:
        """The counts; what is rare among very many is summed up."""
        ordered = self.ordered()
        rows: list[tuple[Cell, ...]] = [*ordered[:_ROWS]]
        if len(ordered) > _ROWS:
            rows.append((f"{len(ordered) - _ROWS} others", sum(count for _, count in ordered[_ROWS:])))
        return Table(title, (column, counted), rows)


@dataclass(frozen=True)
class Result:
    """All that a check found. `kind`: file, folder, cohort or shard set; `totals`: the few counts that matter most."""

    kind: str
    totals: dict[str, int]
    sections: list[Section]
    hint: str = ""  # how places are to be read

    def of_level(self, level: str) -> list[Finding]:
        """The findings of one level, in the order of the sections."""
        return [finding for section in self.sections for finding in section.findings if finding.level == level]

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values, without pictures."""
        return {
            "format": _FORMAT,
            "kind": self.kind,
            "usable": not self.of_level(PROBLEM),
            "totals": self.totals,
            "levels": {level: len(self.of_level(level)) for level in LEVELS},
            "sections": [
                {
                    "name": section.name,
                    "title": section.title,
                    "tables": [vars(table) for table in section.tables],
                    "findings": [vars(finding) for finding in section.findings],
                }
                for section in self.sections
                if not section.is_empty
            ],
            "places": self.hint,
        }

    def to_text(self) -> str:
        """The result as lines for a terminal."""
        lines = [f"{self.kind}: " + ", ".join(f"{name} {count:,d}" for name, count in self.totals.items())]
        for section in [section for section in self.sections if not section.is_empty]:
            lines += ["", section.title, *(line for table in section.tables for line in _table_lines(table))]
            for finding in sorted(section.findings, key=lambda finding: list(LEVELS).index(finding.level)):
                times = f"{finding.count:,d} × " if finding.count else ""
                where = f" ({finding.where()})" if finding.places else ""
                lines.append(f"  {finding.level.upper():8} {times}{finding.text}{where}")
        found = {level: len(self.of_level(level)) for level in LEVELS}
        counts = ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in found.items())
        return "\n".join([*lines, "", *([self.hint] if self.hint else []), counts, ""])


def cell_text(cell: Cell, column: str) -> str:
    """A cell as people read it; a dash where there is nothing."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,d}"
    if column.startswith("share"):
        return f"{100 * cell:.1f} %"
    return f"{cell:.3g}".replace("-", "−")


def _table_lines(table: Table) -> Iterator[str]:
    """A table in columns: the first to the left, the others to the right."""
    cells = [[cell_text(cell, name) for cell, name in zip(row, table.columns, strict=True)] for row in table.rows]
    heads = list(table.columns)
    widths = [max(len(row[place]) for row in [heads, *cells]) for place in range(len(heads))]
    yield f"  {table.title}"
    for row in [heads, *cells] if len(heads) > 2 else cells:
        first, *rest = row
        right = "  ".join(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        yield f"    {first.ljust(widths[0])}  {right}".rstrip()
