"""What a report says of pretraining, from metrics.jsonl."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from stence_dist import files
from stence_dist.evaluate.figures.curves import lines
from stence_dist.evaluate.report.place import Place

Section = dict[str, Any]
Series = tuple[str, list[float], list[float]]

# Title, name for those who cannot see it, y axis, and (label, metric) of each line; over the validations.
_VALIDATION_PLOTS = (
    (
        "Validation retrieval, mean of both ways",
        "recall",
        "recall",
        [(f"recall@{k}", f"val/recall@{k}") for k in (1, 5, 10)],
    ),
    (
        "Severe stenosis from frozen ECG features",
        "auroc",
        "AUROC",
        [("linear probe", "val/probe_auroc"), ("nearest neighbors", "val/knn_auroc")],
    ),
    (
        "Alignment of pairs (0 = together) and uniformity of each tower (lower = more evenly spread)",
        "alignment and uniformity",
        "alignment, uniformity",
        [
            ("alignment", "val/alignment"),
            ("uniformity, ECG", "val/ecg_uniformity"),
            ("uniformity, angiogram", "val/image_uniformity"),
        ],
    ),
)


def training(place: Place) -> Section | None:
    """metrics.jsonl: loss, retrieval, linear probe and geometry over steps."""
    rows = list(files.read_json_lines(place.path / "metrics.jsonl"))
    steps = [row for row in rows if "loss" in row]
    validations = [row for row in rows if row.get("split") == "val"]
    plots = []
    if series := _series(steps, [("loss", "loss"), ("contrastive", "contrastive")]):
        drawn = lines("loss", series, xlabel="step", ylabel="loss", reference=_chance_loss(place))
        plots.append(("Training loss", drawn))
    if series := _series(steps, [("stenosis", "stenosis")]):
        plots.append(("Stenosis loss on the angiograms", lines("stenosis loss", series, xlabel="step", ylabel="loss")))
    recall = validations[-1].get("val/chance/recall@5") if validations else None
    references = {"auroc": ("chance", 0.5)}
    if recall is not None:
        references["recall"] = ("chance, recall@5", float(recall))
    for title, name, ylabel, named in _VALIDATION_PLOTS:
        if series := _series(validations, named):
            reference = references.get(name)
            plots.append((title, lines(name, series, xlabel="step", ylabel=ylabel, reference=reference)))
    if not plots:
        return None
    return {
        "kind": "training",
        "source": place.source("metrics.jsonl"),
        "plots": [(title, Markup(drawing.svg())) for title, drawing in plots],
        "validation": validations[-1] if validations else None,
    }


def _chance_loss(place: Place) -> tuple[str, float] | None:
    """The contrastive loss of a tower that knows nothing: the logarithm of the pool."""
    engine = place.config.get("engine")
    if not engine or place.config["loss"].get("contrastive", "infonce") != "infonce":
        return None
    pool = engine["global_batch_size"]
    if engine.get("negatives", "micro") == "micro":
        pool //= engine["accumulation"]
    return f"chance, ln {pool}", math.log(pool)


def _series(rows: Sequence[dict[str, Any]], named: Sequence[tuple[str, str]]) -> list[Series]:
    """(label, steps, values) of each metric that any row has."""
    found = []
    for label, name in named:
        known = [(float(row["step"]), float(row[name])) for row in rows if row.get(name) is not None]
        if known:
            found.append((label, [step for step, _ in known], [value for _, value in known]))
    return found
