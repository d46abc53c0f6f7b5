"""What a report says of fine-tuning and of comparisons, from metrics.json, summary.json and predictions.csv."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stence_dist import files
from stence_dist.errors import DataError
from stence_dist.evaluate.calibration import measure_calibration
from stence_dist.evaluate.figures.curves import (
    Prediction,
    calibration,
    label_efficiency,
    percent_against_probability,
    precision_recall,
    roc,
)
from stence_dist.evaluate.figures.drawing import ARM_NAMES, COLORS, arm_color
from stence_dist.evaluate.label_efficiency import FIXED_ARMS, patients_for
from stence_dist.evaluate.report.place import Place
from stence_dist.evaluate.statistics import auprc, auroc, patient_counts
from stence_dist.targets import TARGETS, largest_percent, members

Section = dict[str, Any]
_DRAWS = 200  # bootstrap draws of the calibration figures, each of which is fitted anew


def comparison(place: Place) -> Section | None:
    """summary.json: arms, differences, plot, and ROC curves of the first draw at the smallest number of labels."""
    summary = files.read_json(place.path / "summary.json")
    arms, differences = summary["arms"], summary["differences"]
    if not arms:
        return None
    counts = sorted({row["labels"] for row in arms}, key=lambda labels: _patients(labels, summary))
    few = counts[0]
    gain = next((row for row in differences if row["name"] == "probe-scratch" and row["labels"] == few), None)
    level = summary.get("interval", {}).get("level", 0.95)
    curves = []
    rows = [row for row in place.predictions() if row.get("labels") == str(few) and row["split"] == "test"]
    for arm, weight in dict.fromkeys((row["arm"], row["stenosis_weight"]) for row in rows):
        chosen = [row for row in rows if (row["arm"], row["stenosis_weight"]) == (arm, weight)]
        curves += _curves(ARM_NAMES[arm], arm_color(arm), chosen, auroc)
    return {
        "kind": "comparison",
        "source": place.source("summary.json"),
        "summary": summary,
        "counts": counts,
        "fixed_arms": FIXED_ARMS,
        "arm_table": _by_labels(arms, "arm"),
        "difference_table": _by_labels(differences, "name"),
        "arm_names": ARM_NAMES,
        "few": few,
        "gain": gain,
        "level": level,
        "plot": Markup(label_efficiency(arms, counts, level).svg()),
        "roc": Markup(roc(curves, f"ROC of {place.path.name}").svg()) if curves else None,
    }


def _patients(labels: int | str, summary: dict[str, Any]) -> int:
    """How many patients a number or a share of labels was."""
    return patients_for(str(labels), summary["pool"]["patients"])


def _by_labels(rows: Sequence[dict[str, Any]], name: str) -> dict[tuple[str, float], dict[int | str, dict[str, Any]]]:
    """(name, stenosis weight) -> number of labels -> row, in the order of `rows`."""
    found: dict[tuple[str, float], dict[int | str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row[name], row["stenosis_weight"]), {})[row["labels"]] = row
    return found


def fine_tuning(place: Place) -> Section:
    """metrics.json of a fine-tuning run, with the curves of its predictions."""
    metrics = files.read_json(place.path / "metrics.json")
    rows = list(place.predictions())
    parts = {split: [row for row in rows if row["split"] == split] for split in ("test", "val")}
    colors = {"test": COLORS[0], "val": COLORS[5]}
    name = place.path.name
    ranked = [curve for split, part in parts.items() for curve in _curves(split, colors[split], part, auroc)]
    found = [curve for split, part in parts.items() for curve in _curves(split, colors[split], part, auprc)]
    drawn = []
    if ranked:
        drawn.append(("ROC, with AUROC", roc(ranked, f"ROC of {name}")))
        drawn.append(
            ("Precision and recall, with AUPRC; dashed the prevalence", precision_recall(found, f"PR of {name}"))
        )
    section = {"kind": "test", "source": place.source("metrics.json"), "metrics": metrics, "calibration": None}
    on_test = _curves("test", colors["test"], parts["test"], auroc)
    if on_test:
        truth, probability = on_test[0].truth, on_test[0].probability
        level = metrics["interval"]["level"]
        counts = patient_counts(_numbered([row["patient_key"] for row in parts["test"]]), _DRAWS, seed=0)
        section["calibration"] = measure_calibration(truth, probability, counts, level=level)
        curve = on_test[0]._replace(label="test")
        caption = "Calibration in equal groups, with 95 % Wilson intervals; below, ECGs by probability"
        drawn.append((caption, calibration(curve, f"calibration of {name}")))
        drawn += _against_percent(place, metrics["target"], parts["test"])
    return section | {"figures": [(caption, Markup(drawing.svg())) for caption, drawing in drawn]}


def _numbered(names: Sequence[str]) -> NDArray[np.int64]:
    return np.asarray(np.unique(names, return_inverse=True)[1], dtype=np.int64)


def _curves(name: str, color: str, rows: Sequence[dict[str, str]], area: Any) -> list[Prediction]:
    """One curve, labelled with the area below it; none where a class is missing."""
    truth = np.array([int(row["label"]) for row in rows])
    probability = np.array([float(row["probability"]) for row in rows])
    value = area(truth, probability)
    return [] if value is None else [Prediction(f"{name}: {value:.3f}", color, truth, probability)]


def _against_percent(place: Place, target: str, rows: Sequence[dict[str, str]]) -> Iterator[tuple[str, Any]]:
    """Probability over the stenosis in percent that the shard set states of the same rows, where it is known."""
    if target not in TARGETS:
        return
    try:
        table = place.shards().table("test")
    except DataError:
        return
    percent_of = dict(
        zip(
            table.sample.tolist(),
            largest_percent(table.segments, target, place.targets, table.has_study).tolist(),
            strict=True,
        )
    )
    percent = np.array([percent_of.get(int(row["sample"]), np.nan) for row in rows])
    probability = np.array([float(row["probability"]) for row in rows])
    known = ~np.isnan(percent)
    if known.any():
        thresholds = {place.targets.threshold_of(segment) for segment in members(target, place.targets)}
        threshold = thresholds.pop() if len(thresholds) == 1 else None  # several have no place on one axis
        name = f"percent against probability of {place.path.name}"
        drawing = percent_against_probability(percent[known], probability[known], threshold, name)
        dashed = "" if threshold is None else f"; dashed the threshold, {threshold:g} %"
        yield f"Largest stenosis against probability, {int(known.sum()):,d} test ECGs{dashed}", drawing


def target_table(sections: Sequence[Section]) -> list[Section]:
    """One row per fine-tuning result: its metrics.json and its calibration, in the order of targets."""
    rows = [section for section in sections if section["kind"] == "test"]
    order = {name: place for place, name in enumerate(TARGETS)}
    return sorted(rows, key=lambda row: (order.get(row["metrics"]["target"], len(order)), row["metrics"]["target"]))
