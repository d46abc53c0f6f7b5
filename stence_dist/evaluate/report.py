"""`report.html`: what a run folder holds, as one page that needs nothing else.

Every figure is read from a file of the folder (or of a folder directly in it) and names that file. A section appears
where its file is there. Text goes through an autoescaping template; the page makes no request and runs no script.
"""

import csv
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stence_dist import files
from stence_dist.config.report import ReportConfig
from stence_dist.config.targets import TargetsConfig
from stence_dist.data.shards import SampleTable, ShardSet
from stence_dist.errors import DataError
from stence_dist.evaluate.figures import (
    ARM_NAMES,
    curves_svg,
    ecg_png,
    frame_png,
    label_efficiency_svg,
    roc_svg,
)
from stence_dist.evaluate.statistics import auroc
from stence_dist.targets import label

logger = logging.getLogger("stence_dist")

EXAMPLES = 3
SPLITS = ("train", "val", "test")
TEMPLATE = "report.html"

Section = dict[str, Any]


def report(config: ReportConfig) -> None:
    """Write `report.html` into config.run_dir. Raises DataError where the folder holds nothing to report."""
    folder = Path(config.run_dir)
    if not folder.is_dir():
        raise DataError(f"run_dir={folder} is not a folder. Give the folder of a pretraining or evaluation run.")
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    sections = [section for place in places for section in _sections(place, folder)]
    if not sections:
        raise DataError(
            f"run_dir={folder} holds no metrics.jsonl, metrics.json or summary.json. Give the folder of a run."
        )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _format, "interval": _format_interval}
    cohort, examples = _cohort(places, folder)
    page = environment.get_template(TEMPLATE).render(
        name=folder.resolve().name, sections=sections, cohort=cohort, examples=examples
    )
    files.write_text(folder / "report.html", page)
    logger.info("%s", folder / "report.html")


def _sections(place: Path, root: Path) -> Iterator[Section]:
    """What one folder contributes, in reading order."""
    readers = (("summary.json", _comparison), ("metrics.json", _test_metrics), ("metrics.jsonl", _training))
    for name, read in readers:
        if (place / name).is_file():
            section = read(place)
            if section is not None:
                yield section | {"source": str((place / name).relative_to(root)), "place": _title_of(place, root)}


def _title_of(place: Path, root: Path) -> str:
    return "" if place == root else place.name


def _comparison(place: Path) -> Section | None:
    """summary.json: arms, differences, plot, and ROC curves of the first draw at the smallest number of labels."""
    summary = files.read_json(place / "summary.json")
    arms, differences = summary["arms"], summary["differences"]
    if not arms:
        return None
    few = min((row["labels"] for row in arms), key=lambda labels: labels if isinstance(labels, int) else float("inf"))
    gain = next((row for row in differences if row["name"] == "probe-scratch" and row["labels"] == few), None)
    level = summary.get("interval", {}).get("level", 0.95)
    curves = []
    if (place / "predictions.csv").is_file():
        rows = [row for row in _predictions(place) if row.get("labels") == str(few) and row["split"] == "test"]
        for arm, weight in dict.fromkeys((row["arm"], row["stenosis_weight"]) for row in rows):
            chosen = [row for row in rows if (row["arm"], row["stenosis_weight"]) == (arm, weight)]
            curves += _roc_curve(arm, ARM_NAMES[arm], chosen)
    counts = list(dict.fromkeys(row["labels"] for row in arms))
    return {
        "kind": "comparison",
        "summary": summary,
        "counts": counts,
        "arm_table": _by_labels(arms, "arm"),
        "difference_table": _by_labels(differences, "name"),
        "arm_names": ARM_NAMES,
        "few": few,
        "gain": gain,
        "level": level,
        "plot": Markup(label_efficiency_svg(arms, level)),
        "roc": Markup(roc_svg(curves, f"ROC of {place.name}")) if curves else None,
    }


def _by_labels(rows: Sequence[dict[str, Any]], name: str) -> dict[tuple[str, float], dict[int | str, dict[str, Any]]]:
    """(name, stenosis weight) -> number of labels -> row, in the order of `rows`."""
    found: dict[tuple[str, float], dict[int | str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row[name], row["stenosis_weight"]), {})[row["labels"]] = row
    return found


def _test_metrics(place: Path) -> Section:
    """metrics.json of a fine-tuning run and the ROC curve of its predictions."""
    metrics = files.read_json(place / "metrics.json")
    curves = []
    if (place / "predictions.csv").is_file():
        rows = list(_predictions(place))
        for split, arm in (("test", "probe"), ("val", "hand")):
            curves += _roc_curve(arm, split, [row for row in rows if row["split"] == split])
    return {
        "kind": "test",
        "metrics": metrics,
        "roc": Markup(roc_svg(curves, f"ROC of {place.name}")) if curves else None,
    }


def _predictions(place: Path) -> Iterator[dict[str, str]]:
    with open(place / "predictions.csv", newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _roc_curve(arm: str, name: str, rows: Sequence[dict[str, str]]) -> list[tuple[str, str, Any, Any]]:
    """One entry for `roc_svg`; none where a class is missing."""
    truth = np.array([int(row["label"]) for row in rows])
    probability = np.array([float(row["probability"]) for row in rows])
    value = auroc(truth, probability)
    return [] if value is None else [(arm, f"{name}: {value:.3f}", truth, probability)]


def _training(place: Path) -> Section | None:
    """metrics.jsonl: loss, retrieval and linear-probe curves."""
    rows = list(files.read_json_lines(place / "metrics.jsonl"))
    steps = [row for row in rows if "loss" in row]
    validations = [row for row in rows if row.get("split") == "val"]
    plots = []
    if steps:
        series = [(name, *_column(steps, name)) for name in ("loss", "contrastive")]
        reference = _chance_loss(place)
        drawn = curves_svg("loss", _drawn(series), xlabel="step", ylabel="loss", reference=reference)
        plots.append(("Training loss", drawn))
        series = [("stenosis", *_column(steps, "stenosis"))]
        if _drawn(series):
            drawn = curves_svg("stenosis loss", series, xlabel="step", ylabel="loss")
            plots.append(("Stenosis loss on the angiograms", drawn))
    if validations:
        chance = validations[-1].get("val/chance/recall@5")
        series = [(f"recall@{k}", *_column(validations, f"val/recall@{k}")) for k in (1, 5, 10)]
        reference = None if chance is None else ("chance, recall@5", float(chance))
        if _drawn(series):
            drawn = curves_svg("recall", _drawn(series), xlabel="step", ylabel="recall", reference=reference)
            plots.append(("Validation retrieval, mean of both ways", drawn))
        series = [
            ("linear probe", *_column(validations, "val/probe_auroc")),
            ("nearest neighbors", *_column(validations, "val/knn_auroc")),
        ]
        if _drawn(series):
            drawn = curves_svg("auroc", _drawn(series), xlabel="step", ylabel="AUROC", reference=("chance", 0.5))
            plots.append(("Severe stenosis from frozen ECG features", drawn))
    if not plots:
        return None
    return {
        "kind": "training",
        "plots": [(title, Markup(svg)) for title, svg in plots],
        "first": steps[0] if steps else None,
        "last": steps[-1] if steps else None,
        "validation": validations[-1] if validations else None,
    }


def _chance_loss(place: Path) -> tuple[str, float] | None:
    """The contrastive loss of a tower that knows nothing: the logarithm of the pool."""
    engine = _config(place).get("engine")
    if not engine:
        return None
    if _config(place)["loss"].get("contrastive", "infonce") != "infonce":
        return None
    pool = engine["global_batch_size"]
    if engine.get("negatives", "micro") == "micro":
        pool //= engine["accumulation"]
    return f"chance, ln {pool}", math.log(pool)


def _column(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    known = [(float(row["step"]), float(row[name])) for row in rows if row.get(name) is not None]
    return [step for step, _ in known], [value for _, value in known]


def _drawn(series: Sequence[tuple[str, list[float], list[float]]]) -> list[tuple[str, list[float], list[float]]]:
    return [line for line in series if line[1]]


def _cohort(places: Sequence[Path], root: Path) -> tuple[Section | None, Section | None]:
    """The cohort table and example recordings of the first shard set that the folders name and that is still there."""
    for place in places:
        if not (place / "data.json").is_file():
            continue
        described = files.read_json(place / "data.json")
        named = described.get("shards")
        if not named:
            continue
        source = str((place / "data.json").relative_to(root))
        try:
            shards = ShardSet.open(named)
        except DataError as error:
            return {"source": source, "problem": str(error), "rows": []}, None
        targets = _targets(place)
        rows = [_split_row(split, shards.table(split), targets) for split in SPLITS]
        cohort = {"source": source, "problem": None, "rows": rows, "threshold": targets.threshold}
        cohort["excluded"] = described.get("excluded", {})
        return cohort, {"source": source, **_examples(shards, targets)}
    return None, None


def _targets(place: Path) -> TargetsConfig:
    """The targets that the run in `place` was configured with."""
    return TargetsConfig(**_config(place).get("targets", {}))


def _config(place: Path) -> dict[str, Any]:
    """The resolved config that a folder holds; empty where it holds none."""
    path = place / "config.yaml"
    values: dict[str, Any] = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
    return values


def _split_row(split: str, table: SampleTable, targets: TargetsConfig) -> Section:
    """One line of the cohort table; None where nothing is known."""
    labels = label(table.segments, "patient", targets, table.has_study) if len(table.sample) else np.zeros(0)
    known = ~np.isnan(labels)
    age = table.age[~np.isnan(table.age)]
    sexed = np.isin(table.sex, ("M", "F"))
    days = table.days_between[~np.isnan(table.days_between)]
    return {
        "split": split,
        "recordings": len(table.sample),
        "patients": len(np.unique(table.patient)),
        "pairs": int(table.has_study.sum()),
        "views": float(table.view_count[table.has_study].mean()) if table.has_study.any() else None,
        "age": [float(value) for value in np.quantile(age, [0.5, 0.25, 0.75])] if len(age) else None,
        "male": float((table.sex[sexed] == "M").mean()) if sexed.any() else None,
        "labelled": int(known.sum()),
        "severe": float(labels[known].mean()) if known.any() else None,
        "days": float(np.median(np.abs(days))) if len(days) else None,
        "sites": len({str(site) for site in table.site if site}),
    }


def _examples(shards: ShardSet, targets: TargetsConfig) -> Section:
    """Three ECGs and three key frames: of the same recordings where a split other than train has pairs."""
    split = next((s for s in ("test", "val", "train") if shards.table(s).has_study.any()), None)
    ecg_split = split or next((s for s in ("test", "val", "train") if len(shards.table(s).sample)), None)
    if ecg_split is None:
        return {"ecgs": [], "frames": []}
    table = shards.table(ecg_split)
    labels = label(table.segments, "patient", targets, table.has_study)
    rows = _chosen(labels, table.has_study if split else np.ones(len(labels), dtype=bool))
    ecgs, frames = [], []
    for row in rows:
        stored = shards.read(ecg_split, row, views=split is not None and shards.dataset.kind == "pixels")
        caption = _caption(ecg_split, table, row, float(labels[row]))
        ecgs.append({"image": ecg_png(stored.signal(), stored.sampling_rate), "caption": caption})
        if stored.views is not None and shards.dataset.kind == "pixels":
            middle = stored.views[0].shape[0] // 2
            angles = _angles(stored.angulation[0])
            frames.append({"image": frame_png(stored.views[0][middle]), "caption": f"{caption}; {angles}"})
    return {"ecgs": ecgs, "frames": frames}


def _chosen(labels: Any, usable: Any) -> list[int]:
    """The first usable rows, severe and not severe in turn where both are there."""
    by_class = [np.flatnonzero(usable & (labels == value)).tolist() for value in (1, 0)]
    by_class.append(np.flatnonzero(usable & np.isnan(labels)).tolist())
    turns = [rows[turn] for turn in range(EXAMPLES) for rows in by_class[:2] if turn < len(rows)]
    return (turns + by_class[2])[:EXAMPLES]


def _caption(split: str, table: SampleTable, row: int, truth: float) -> str:
    state = {0.0: "no severe stenosis", 1.0: "severe stenosis"}.get(truth, "stenosis not known")
    age = "" if np.isnan(table.age[row]) else f", {table.age[row]:.0f} years"
    sex = f", {table.sex[row]}" if table.sex[row] else ""
    return f"{split} sample {int(table.sample[row])}, patient {str(table.patient_key[row])[:8]}{age}{sex}: {state}"


def _angles(angulation: Any) -> str:
    if np.isnan(angulation).any():
        return "angles not known"
    primary, secondary = (float(value) for value in angulation)
    return (
        f"{'LAO' if primary >= 0 else 'RAO'} {abs(primary):.0f}°, {'CRA' if secondary >= 0 else 'CAU'} "
        f"{abs(secondary):.0f}°"
    )


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
