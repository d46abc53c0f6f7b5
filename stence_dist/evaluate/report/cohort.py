"""What a report says of the data: where rows went, who the patients are, and a few recordings."""

import csv
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from stence_dist import files
from stence_dist.config.targets import TargetsConfig
from stence_dist.data.frames import key_frame_place
from stence_dist.data.index import SPLITS, read_index
from stence_dist.data.shards import ShardSet
from stence_dist.data.sidecar import SampleTable
from stence_dist.errors import DataError
from stence_dist.evaluate.figures.recordings import angles_text, ecg_png, frame_png
from stence_dist.evaluate.report.place import Place
from stence_dist.targets import label

EXAMPLES = 3

Section = dict[str, Any]


def cohort(found: Sequence[Place]) -> Section | None:
    """Data flow, cohort table and examples of the first shard set that the folders name; None where none is named."""
    place = next((place for place in found if place.data.get("shards")), None)
    if place is None:
        return None
    source = place.source("data.json")
    try:
        shards = place.shards()
    except DataError as error:
        return {"source": source, "problem": str(error)}
    targets = place.targets
    return {
        "source": source,
        "problem": None,
        "flow": _flow(shards, place),
        "labelled_flow": _labelled(shards, found),
        "rows": [_split_row(split, shards.table(split), targets) for split in SPLITS],
        "severe": _severe(targets),
        "excluded": place.data.get("excluded", {}),
        **_examples(shards, targets),
    }


def _flow(shards: ShardSet, place: Place) -> list[Section]:
    """From the cohort's rows to what was used: `text`, `count`, counts per split, and who was `lost` before."""
    index = read_index(shards.folder)
    samples, pairs, rejected = index["samples"], index["pairs"], index["rejected"]
    built = sum(samples.values())
    limit = index["build"].get("limit")
    steps = [
        _step("rows of the cohort table" + (f", limited to {limit:,d}" if limit else ""), built + rejected),
        _step(
            "recordings in the shard set",
            built,
            samples,
            _lost("rejected", rejected, _rejected_fields(shards, rejected)),
        ),
        _step("of them with an angiogram", sum(pairs.values()), pairs),
    ]
    used = place.data.get("pairs")
    if used:
        left_out = sum(pairs[split] - used[split] for split in used)
        rules = {name: sum(counts.values()) for name, counts in place.data.get("excluded", {}).items() if name != "all"}
        lost = _lost("left out", left_out, rules, "recordings named by each rule")
        steps.append(_step("pairs of pretraining", sum(used.values()), used, lost))
    return steps


def _labelled(shards: ShardSet, found: Sequence[Place]) -> list[Section]:
    """A step for each fine-tuning result on the same set: its rows are drawn from all recordings, not from pairs."""
    steps = []
    for other in found:
        if other.has("metrics.json") and other.data.get("fingerprint") == shards.fingerprint:
            metrics = files.read_json(other.path / "metrics.json")
            rows = {split: metrics["counts"][split]["rows"] for split in SPLITS}
            name = f"ECGs of {metrics['mode']}, target {metrics['target']}"
            left_out = {rule: sum(counts.values()) for rule, counts in other.data.get("excluded", {}).items()}
            lost = _lost("left out before", left_out.pop("all", 0), left_out, "recordings named by each rule")
            steps.append(_step(name + (f" ({other.title})" if other.title else ""), sum(rows.values()), rows, lost))
    return steps


def _severe(targets: TargetsConfig) -> str:
    """What makes a recording severe, in words."""
    others = [f"segment {segment} at {percent:g} %" for segment, percent in targets.segment_thresholds.items()]
    counted = "any of StenCE's eight segments" if targets.segments == "major" else "any segment"
    unknown = "; a segment that is not reported counts as normal" if targets.unreported == "normal" else ""
    return f"{counted} at {targets.threshold:g} % diameter stenosis or more{''.join(f', {o}' for o in others)}{unknown}"


def _step(text: str, count: int, splits: dict[str, int] | None = None, lost: str = "") -> Section:
    ordered = {split: splits[split] for split in SPLITS if splits and split in splits}
    return {"text": text, "count": count, "splits": ordered, "lost": lost}


def _lost(what: str, count: int, reasons: dict[str, int], of: str = "") -> str:
    """One line about rows that do not go on; empty where all do."""
    if not count:
        return ""
    listed = ", ".join(f"{name} {number:,d}" for name, number in reasons.items())
    note = f" ({of}: {listed})" if of and listed else f" ({listed})" if listed else ""
    return f"{count:,d} {what}{note}"


def _rejected_fields(shards: ShardSet, rejected: int) -> dict[str, int]:
    """Rejects by the cohort's column at fault, from rejects.csv where it is the set's own; its paths stay there."""
    path = shards.folder / "rejects.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            fields = [row["field"] for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError):
        return {}
    return dict(Counter(fields).most_common()) if len(fields) == rejected else {}


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
            key = key_frame_place(stored.views[0].shape[0])
            angles = angles_text(stored.angulation[0])
            frames.append({"image": frame_png(stored.views[0][key]), "caption": f"{caption}; {angles}"})
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
