"""`check.html`: a result as one page that needs nothing else. It makes no request and runs no script."""

from collections.abc import Callable
from pathlib import Path

from stence_dist import page
from stence_dist.check.findings import LEVELS, Cell, Result, Table, cell_text

TEMPLATE = Path(__file__).with_name("check.html")


def render(result: Result) -> str:
    """The page as text."""
    filters: dict[str, Callable[..., object]] = {"cell": cell_text, "share": _share, "is_counts": _is_counts}
    sections = [section for section in result.sections if not section.is_empty]
    return page.render(TEMPLATE, filters, result=result, sections=sections, levels=LEVELS)


def _is_counts(table: Table) -> bool:
    """Whether a table is a list of counts, which bars show."""
    return len(table.columns) == 2 and all(isinstance(row[1], int) for row in table.rows)


def _share(cell: Cell, table: Table) -> str:
    """A count in percent of the largest of its table."""
    largest = max((row[1] for row in table.rows if isinstance(row[1], int)), default=0)
    return f"{100 * cell / largest:.1f}" if isinstance(cell, int) and largest else "0"
