"""`report.html`: what a run folder holds, as one page that needs nothing else.

Every figure is read from a file of the folder (or of a folder up to two levels below) and names that file. A section
appears where its file is there. Text goes through autoescaping templates; the page makes no request and runs no script.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stence_dist import files, page
from stence_dist.config.report import ReportConfig
from stence_dist.errors import DataError
from stence_dist.evaluate.report.cohort import cohort
from stence_dist.evaluate.report.joint_space import joint_space
from stence_dist.evaluate.report.place import Place, places
from stence_dist.evaluate.report.results import comparison, fine_tuning, target_table
from stence_dist.evaluate.report.training import training

logger = logging.getLogger("stence_dist")

TEMPLATE = Path(__file__).with_name("report.html")

Section = dict[str, Any]
NEEDED = {
    "summary.json": {"arms", "differences", "pool"},
    "metrics.json": {"mode", "target", "rows", "threshold", "counts", "interval", "test", "age_sex"},
}
# file -> what it contributes, in reading order
READERS: dict[str, Callable[[Place], Section | None]] = {
    "summary.json": comparison,
    "metrics.json": fine_tuning,
    "metrics.jsonl": training,
    "embeddings/val.npz": joint_space,
}


def report(config: ReportConfig) -> None:
    """Write `report.html` into config.run_dir. Raises DataError where the folder holds nothing to report."""
    folder = Path(config.run_dir)
    if not folder.is_dir():
        raise DataError(f"run_dir={folder} is not a folder. Give the folder of a pretraining or evaluation run.")
    found = places(folder)
    sections = [section for place in found for section in _sections(place)]
    if not sections:
        raise DataError(
            f"run_dir={folder} holds no metrics.jsonl, metrics.json or summary.json. Give the folder of a run."
        )
    text = page.render(
        TEMPLATE,
        {"number": _format, "interval": _format_interval},
        name=folder.resolve().name,
        sections=sections,
        targets=target_table(sections),
        cohort=cohort(found),
    )
    files.write_text(folder / "report.html", text)
    logger.info("%s", folder / "report.html")


def _sections(place: Place) -> Iterator[Section]:
    """What one folder contributes, in reading order."""
    for name, read in READERS.items():
        if place.has(name):
            if not _is_ours(place, name):
                logger.warning("%s is not what compare or finetune writes; it is left out.", place.source(name))
                continue
            section = read(place)
            if section is not None:
                yield section | {"place": place.title}


def _is_ours(place: Place, name: str) -> bool:
    """False for a file of a result's name that another program wrote."""
    needed = NEEDED.get(name)
    if needed is None:
        return True
    found = files.read_json(place.path / name)
    return isinstance(found, dict) and needed <= found.keys()


def _format(value: Any, digits: int = 3) -> str:
    """A number for a table cell; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:,d}" if isinstance(value, int) else f"{value:.{digits}f}".replace("-", "−")


def _format_interval(row: dict[str, Any], name: str = "mean", low: str = "low", high: str = "high") -> str:
    if row.get(name) is None:
        return "–"
    if row.get(low) is None:
        return _format(row[name])
    return f"{_format(row[name])} [{_format(row[low])}, {_format(row[high])}]"
