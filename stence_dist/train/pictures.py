"""What TensorBoard shows of a validation beside numbers. Nothing here trains, draws lots or waits for other ranks."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from stence_dist.config.pretrain import PretrainConfig
from stence_dist.data.loader import PairReader, evaluation_batches
from stence_dist.data.shards import ShardSet
from stence_dist.data.sidecar import SampleTable
from stence_dist.evaluate.figures.curves import Prediction, roc
from stence_dist.evaluate.figures.drawing import COLORS, Drawing
from stence_dist.evaluate.figures.embeddings import embedding_maps, similarity_map
from stence_dist.evaluate.figures.recordings import AttendedView, angles_text, attended_studies, ecg
from stence_dist.evaluate.retrieval import true_ranks
from stence_dist.evaluate.statistics import known_auroc
from stence_dist.models.pair_model import PairModel
from stence_dist.targets import largest_percent
from stence_dist.train.validate import Embedded, Validation

_STUDIES, _VIEWS = 3, 6  # shown; views of each study


def pictures(
    embedded: Embedded, validation: Validation, model: PairModel, shards: ShardSet, config: PretrainConfig
) -> Iterator[tuple[str, Drawing]]:
    """(tag, drawing) of the validation pairs that `model`, in eval mode and with whole weights, sees as `embedded`.

    No collectives: one rank may call it alone. Texts name sample numbers, never patients.
    """
    table, rows = shards.table("val"), validation.rows
    percent = largest_percent(table.segments[rows], "patient", config.targets, table.has_study[rows])
    ranks = true_ranks(embedded.ecg, embedded.image, validation.patient)
    yield "pairs/similarity", similarity_map(embedded.ecg, embedded.image, percent)
    if min(embedded.ecg.shape) > 1:
        maps = embedding_maps(embedded.ecg, percent, table.age[rows], table.site[rows])
        yield from zip(("embeddings/stenosis", "embeddings/age", "embeddings/site"), maps, strict=True)
    curves = list(_curves(embedded, validation.labels))
    if curves:
        yield "stenosis/roc", roc(curves, "ROC of severe stenosis from frozen ECG features")
    shown = _spread_over(percent)
    for number, at in enumerate(dict.fromkeys(shown[[0, -1]].tolist()), 1):
        stored = shards.read("val", int(rows[at]), views=False)
        title = (
            f"{_of(table, rows[at], percent[at])}; its angiogram is number {ranks[at]:g} of {len(rows)} by similarity"
        )
        yield f"pairs/ecg_{number}", ecg(stored.signal(), stored.sampling_rate, title)
    studies = list(_attended(rows[shown], percent[shown], model, shards, config))
    if studies:
        yield "pairs/attention", attended_studies(studies)


def _spread_over(percent: NDArray[np.float32]) -> NDArray[np.int64]:
    """At most _STUDIES places (k,): from the least to the most stenosis."""
    order = np.argsort(percent, kind="stable")
    known = order[: max(1, int((~np.isnan(percent)).sum()))]
    return known[np.unique(np.linspace(0, len(known) - 1, _STUDIES).round().astype(np.int64))]


def _of(table: SampleTable, row: np.int64, percent: np.float32) -> str:
    extent = "stenosis not known" if np.isnan(percent) else f"largest stenosis {percent:.0f} %"
    return f"val sample {int(table.sample[row])}, {extent}"


def _curves(embedded: Embedded, labels: NDArray[np.float32]) -> Iterator[Prediction]:
    for (name, title), color in zip((("probe", "linear probe"), ("knn", "nearest neighbors")), COLORS, strict=False):
        scores = embedded.scores[name]
        value = known_auroc(labels, scores)
        if not np.isnan(value):
            scored = ~np.isnan(scores)
            yield Prediction(f"{title}: {value:.3f}", color, labels[scored], scores[scored])


def _attended(
    rows: NDArray[np.int64],
    percent: NDArray[np.float32],
    model: PairModel,
    shards: ShardSet,
    config: PretrainConfig,
) -> Iterator[tuple[str, Sequence[AttendedView]]]:
    """Each study of `rows` with what the contrastive query reads of its views; none where nothing chooses."""
    table = shards.table("val")
    device = next(model.parameters()).device
    reader = PairReader(
        shards, "val", rows, model.ecg_tower.spec, seed=config.seed, augment=None, views=True, verify="off"
    )
    for row, extent, batch in zip(rows, percent, evaluation_batches(reader, rows, 1, workers=0), strict=True):
        assert batch.views is not None, "rows of pairs"
        moved = batch.to(device)
        assert moved.views is not None
        with torch.no_grad():
            shares = model.image_tower.attention(moved.views, moved.view_mask, moved.angulation)
        if shares is None:
            return
        each = shares[0].float().cpu().numpy()
        frames = batch.views[0, :, :, 0].numpy() if batch.views.dtype == torch.uint8 else None
        strongest = np.sort(np.argsort(-each.sum(axis=(1, 2)), kind="stable")[:_VIEWS])
        title = f"{_of(table, row, extent)}, {len(each)} views"
        yield (
            title,
            [
                AttendedView(
                    angles_text(batch.angulation[0, view].numpy()), None if frames is None else frames[view], each[view]
                )
                for view in strongest.tolist()
            ],
        )
