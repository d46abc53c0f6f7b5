"""What a report says of the joint space of ECGs and angiograms, from the embeddings that a run stored at its end."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stence_dist.data.frames import key_frame_place
from stence_dist.data.shards import ShardSet
from stence_dist.data.sidecar import SampleTable
from stence_dist.errors import DataError
from stence_dist.evaluate.figures.embeddings import embedding_maps, similarity_map
from stence_dist.evaluate.figures.recordings import angles_text, ecg_png, frame_png
from stence_dist.evaluate.report.place import Place
from stence_dist.evaluate.retrieval import true_ranks
from stence_dist.evaluate.site_probe import probe_sites
from stence_dist.evaluate.stored_embeddings import NAME, StoredEmbeddings, load_embeddings
from stence_dist.targets import label, largest_percent

Section = dict[str, Any]

_HITS = 5  # angiograms shown for an ECG
_FRAME = 160  # pixels
_SHOWN = ((0.1, "an easy one"), (0.5, "a middling one"), (0.9, "a hard one"))  # by quantile of the true rank


def joint_space(place: Place) -> Section | None:
    """Maps, site probe and retrieval examples; None without embeddings or without the shard set they belong to."""
    stored = load_embeddings(place.path)
    if stored is None or len(stored.sample) < 2:
        return None
    try:
        shards = place.shards()
    except DataError:
        return None
    table = shards.table("val")
    row_of = {int(number): row for row, number in enumerate(table.sample)}
    if not all(int(number) in row_of for number in stored.sample):
        return None
    rows = np.array([row_of[int(number)] for number in stored.sample], dtype=np.int64)
    of_rows = table.segments[rows], "patient", place.targets, table.has_study[rows]
    percent, truth = largest_percent(*of_rows), label(*of_rows)
    figures = [
        ("Cosine of every ECG with every angiogram; pairs on the diagonal", similarity_map(*stored[1:], percent))
    ]
    if stored.ecg.shape[1] > 1:
        maps = embedding_maps(stored.ecg, percent, table.age[rows], table.site[rows])
        names = ("by largest stenosis", "by age", "by site")
        figures += [
            (f"ECG embeddings on their principal plane, {name}", one) for name, one in zip(names, maps, strict=True)
        ]
    return {
        "kind": "joint_space",
        "source": place.source(NAME),
        "pairs": len(rows),
        "of": place.data.get("pairs", {}).get("val", len(rows)),
        "figures": [(caption, Markup(drawing.svg())) for caption, drawing in figures],
        "site": _site(stored, table, rows, place),
        "examples": _examples(stored, shards, rows, [_extent(*each) for each in zip(percent, truth, strict=True)]),
    }


def _site(stored: StoredEmbeddings, table: SampleTable, rows: NDArray[np.int64], place: Place) -> Section:
    """The probe of site, and the prevalence at each: a site can only be a shortcut where they differ."""
    site = table.site[rows]
    probe = probe_sites(stored.ecg, site, table.patient[rows], seed=0)
    if probe is None:
        return {"probe": None, "known": len(np.unique(site[site != ""]))}
    truth = label(table.segments[rows], "patient", place.targets, table.has_study[rows])
    lines = []
    for name, (count, area) in probe.sites.items():
        here = truth[site == name]
        severe = float(np.nanmean(here)) if (~np.isnan(here)).any() else None
        lines.append({"name": name, "count": count, "auroc": area, "severe": severe})
    return {"probe": probe._asdict(), "lines": lines}


def _examples(
    stored: StoredEmbeddings, shards: ShardSet, rows: NDArray[np.int64], extents: Sequence[str]
) -> list[Section]:
    """ECGs whose own angiogram ranks at the quantiles of _SHOWN, with the angiograms nearest to each."""
    patient = shards.table("val").patient[rows]
    ranks = true_ranks(stored.ecg, stored.image, patient)
    order = np.argsort(ranks, kind="stable")
    examples = []
    for quantile, name in _SHOWN:
        query = int(order[round(quantile * (len(order) - 1))])
        cosine = stored.image @ stored.ecg[query]
        candidates = np.flatnonzero((patient != patient[query]) | (np.arange(len(rows)) == query))
        nearest = candidates[np.argsort(-cosine[candidates], kind="stable")]
        shown = [(place + 1, int(found)) for place, found in enumerate(nearest[:_HITS])]
        if query not in [found for _, found in shown]:
            shown.append((int(np.flatnonzero(nearest == query)[0]) + 1, query))
        recording = shards.read("val", int(rows[query]), views=False)
        examples.append(
            {
                "name": name,
                "sample": int(stored.sample[query]),
                "extent": extents[query],
                "ecg": ecg_png(recording.signal(), recording.sampling_rate),
                "candidates": len(candidates),
                "hits": [
                    {
                        "rank": rank,
                        "own": found == query,
                        "sample": int(stored.sample[found]),
                        "extent": extents[found],
                        "cosine": float(cosine[found]),
                        **_key_frame(shards, int(rows[found])),
                    }
                    for rank, found in shown
                ],
            }
        )
    return examples


def _extent(percent: np.floating, truth: np.floating) -> str:
    """The largest stenosis that is known; only the least that it can be where unknown segments leave the label open."""
    if np.isnan(percent):
        return "stenosis not known"
    return f"{'at least ' if np.isnan(truth) else ''}{percent:.0f} % stenosis"


def _key_frame(shards: ShardSet, row: int) -> Section:
    """The key frame of a study's first view; no image where features are stored."""
    stored = shards.read("val", row)
    if shards.dataset.kind != "pixels" or stored.views is None:
        return {"image": None, "angles": ""}
    first = stored.views[0]
    return {"image": frame_png(first[key_frame_place(len(first))], _FRAME), "angles": angles_text(stored.angulation[0])}
