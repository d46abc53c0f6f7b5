"""A shard set: whether it is whole, and what its samples hold."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stence_dist.check import identifiers
from stence_dist.check.findings import NOTE, PROBLEM, Picture, Result, Section, Table
from stence_dist.check.labels import Labelled, label_section
from stence_dist.check.pictures import ecg_pictures
from stence_dist.check.recordings import Place, Recordings, Seen, describe
from stence_dist.check.studies import Views, meta_view
from stence_dist.config.check import CheckConfig
from stence_dist.data.cohort_table import LABEL_COLUMN
from stence_dist.data.frames import key_frame_place
from stence_dist.data.index import SHARD_NAME, SPLITS
from stence_dist.data.readers.record import EcgRecord
from stence_dist.data.sample import StoredSample
from stence_dist.data.shards import ShardSet
from stence_dist.data.sidecar import SampleTable
from stence_dist.data.verify import verify
from stence_dist.ecg import LEADS
from stence_dist.errors import CheckFailedError, DataError

HINT = "A sample's number is the row of the cohort table that it came from."
_FORMAT = "shards"
_FRAMES = 3  # drawn
_MEMBER = re.compile(r"(train|val|test)-\d{9}\.(ecg\.npy|views\.safetensors|meta\.json)")
_SIDECAR = re.compile(SHARD_NAME.pattern.replace("tar", "npy"))


def check_shards(path: Path, config: CheckConfig) -> Result:
    """What a shard set holds. A set that is not whole is looked at no further."""
    section = Section("set", "Shard set")
    try:
        verify(path)
        shards = ShardSet.open(path)
    except (CheckFailedError, DataError) as error:
        for problem in _problems(str(error), path):
            section.add(PROBLEM, problem)
        return Result("shard set", {}, [section])
    tables = {split: shards.table(split) for split in SPLITS}
    section.tables = [_split_table(tables), _column_table(tables), _dataset_table(shards)]
    _report_patients(section, tables)
    fields = identifiers.Fields()
    fields.add(identifiers.of_texts((*shards.sites, *shards.devices)), identifiers.INDEX_NAMES, "index.json")
    recordings, views = Recordings(fields), Views(fields)
    places = _places(tables, config.limit)
    if len(places) < sum(map(len, tables.values())):
        section.add(NOTE, f"limit={config.limit}: {len(places)} samples were looked at, drawn evenly from the splits")
    _read(shards, tables, places, recordings, views)
    labels = label_section(_labelled(tables), config.targets)
    sections = [section, recordings.section(), views.section(), labels, fields.section()]
    if config.out is not None:
        sections[1].pictures += ecg_pictures(recordings.examples, lambda source: _signal(shards, source))
        sections[2].pictures += _frame_pictures(shards, tables, places)
    totals = {
        "samples": sum(map(len, tables.values())),
        "patients": len(set().union(*(set(table.patient_key.tolist()) for table in tables.values()))),
        "pairs": sum(int(table.has_study.sum()) for table in tables.values()),
        "samples read": len(places),
        "views": views.count,
    }
    return Result("shard set", totals, sections, HINT)


def _problems(message: str, folder: Path) -> list[str]:
    """The lines of an error about a set, without the folder and without names that no shard set gives."""
    lines = message.splitlines()
    found = [line.strip() for line in lines if line.startswith("  ")] or [lines[0]]
    texts = []
    for line in found:
        text = line.replace(str(folder.absolute()) + "/", "").replace(str(folder.absolute()), "the folder")
        text = re.sub(r"'[^']*'|\"[^\"]*\"", "…", text)
        words = [word if _may_be_named(word) else "a file of another name" for word in text.split(" ")]
        texts.append(" ".join(words))
    return texts


def _may_be_named(word: str) -> bool:
    """Whether a word is no name of a file, or one that shard sets give."""
    bare = word.strip(":,;()…")
    if not re.search(r"\.(tar|npy|json|safetensors)$|[/\\]", bare):
        return True
    return bare == "index.json" or any(pattern.fullmatch(bare) for pattern in (SHARD_NAME, _SIDECAR, _MEMBER))


def _split_table(tables: dict[str, SampleTable]) -> Table:
    rows = [
        (split, len(table), len(np.unique(table.patient_key)), int(table.has_study.sum()), int(table.view_count.sum()))
        for split, table in tables.items()
    ]
    return Table("Splits", ("split", "samples", "patients", "pairs", "views"), rows)


def _column_table(tables: dict[str, SampleTable]) -> Table:
    """How many samples know each column; how many sites and devices there are."""
    entries = list(tables.values())
    counts: dict[str, tuple[int, int | None]] = {}
    for name in ("age", "days_between"):
        counts[name] = sum(int((~np.isnan(getattr(table, name))).sum()) for table in entries), None
    for name in ("sex", "site", "device"):
        texts = np.concatenate([getattr(table, name) for table in entries])
        counts[name] = int((texts != "").sum()), len(set(texts.tolist()) - {""}) or None
    for name in (name for name in entries[0].columns if name != "device"):
        counts[name] = sum(int((~np.isnan(table.column(name))).sum()) for table in entries), None
    counts["any segment"] = sum(int((~np.isnan(table.segments)).any(axis=1).sum()) for table in entries), None
    rows = [(name, *values) for name, values in counts.items()]
    return Table("Columns", ("column", "known", "distinct"), rows)


def _dataset_table(shards: ShardSet) -> Table:
    spec = shards.dataset
    shape = {
        "pixels": f"{spec.frames} of {spec.image_size} x {spec.image_size} pixels",
        "tokens": f"{spec.frames} of {spec.tokens} tokens of width {spec.width}",
    }
    rows = [("kind", spec.kind), ("frames per view", shape.get(spec.kind, "none")), ("most views", str(spec.max_views))]
    return Table("What every study is stored as", ("", "stored"), rows)


def _report_patients(section: Section, tables: dict[str, SampleTable]) -> None:
    first: dict[str, dict[str, int]] = defaultdict(dict)
    for split, table in tables.items():
        for key, sample in zip(table.patient_key.tolist(), table.sample.tolist(), strict=True):
            first[key].setdefault(split, sample)
    torn = [splits for splits in first.values() if len(splits) > 1]
    if torn:
        places = [" and ".join(f"{split} sample {sample}" for split, sample in splits.items()) for splits in torn]
        section.add(PROBLEM, "patients are in more than one split", len(torn), places)
    for split, table in tables.items():
        if not len(table):
            section.add(PROBLEM, f"the split {split} holds no sample")


def _places(tables: dict[str, SampleTable], limit: int | None) -> list[tuple[str, int]]:
    """(split, row) of the samples to read: all, or about `limit`, evenly spread over each split in proportion."""
    total = sum(map(len, tables.values()))
    share = 1.0 if limit is None else min(1.0, limit / max(1, total))
    chosen = []
    for split, table in tables.items():
        count = min(len(table), max(1, round(share * len(table))))
        chosen += [(split, place * len(table) // count) for place in range(count)]
    return chosen


def _read(
    shards: ShardSet,
    tables: dict[str, SampleTable],
    places: list[tuple[str, int]],
    recordings: Recordings,
    views: Views,
) -> None:
    for split, row in tqdm(places, unit="sample", disable=None):
        table = tables[split]
        label = f"{split} sample {int(table.sample[row])}"
        place = Place(label, (split, row), str(table.patient_key[row]), split)
        try:
            stored = shards.read(split, row)
            facts = describe(_record(stored))
        except (DataError, TypeError, ValueError, KeyError) as error:
            recordings.add(place, Seen(_FORMAT, reason=f"a sample cannot be read ({type(error).__name__})"))
            continue
        leads = tuple(lead for lead in LEADS if lead in stored.leads and lead not in facts.derived)
        recordings.add(place, Seen(_FORMAT, ("mV",), leads=leads, facts=facts))
        for angulation, meta in zip(stored.angulation, stored.meta.get("views", ()), strict=False):
            views.add(place, meta_view(meta, angulation, shards.dataset.kind))


def _record(stored: StoredSample) -> EcgRecord:
    medians = np.zeros(len(stored.values), dtype=np.float32)
    flags = stored.meta.get("flags", {})
    return EcgRecord(stored.values, stored.scale, medians, stored.sampling_rate, stored.leads, flags)


def _signal(shards: ShardSet, source: Any) -> tuple[NDArray[np.float32], float]:
    stored = shards.read(*source, views=False)
    return stored.signal(), stored.sampling_rate


def _frame_pictures(shards: ShardSet, tables: dict[str, SampleTable], places: list[tuple[str, int]]) -> list[Picture]:
    from stence_dist.evaluate.figures.recordings import frame_png  # imports matplotlib

    if shards.dataset.kind != "pixels":
        return []
    pictures = []
    for split, row in [place for place in places if tables[place[0]].has_study[place[1]]][:_FRAMES]:
        stored = shards.read(split, row)
        if stored.views is not None:
            frames = stored.views[0]
            caption = f"{split} sample {int(tables[split].sample[row])}: the first view, as stored"
            pictures.append(Picture("frame", caption, frame_png(frames[key_frame_place(len(frames))])))
    return pictures


def _labelled(tables: dict[str, SampleTable]) -> Labelled:
    entries = list(tables.values())
    names = [name for name in entries[0].columns if LABEL_COLUMN.fullmatch(name)]
    return Labelled(
        np.array([split for split, table in tables.items() for _ in range(len(table))], dtype=np.str_),
        np.concatenate([table.segments for table in entries]),
        np.concatenate([table.has_study for table in entries]),
        {name: np.concatenate([table.column(name) for table in entries]) for name in names},
    )
