"""Validation of a pretraining run: the whole split, by all ranks, outside ZeRO.

Every rank embeds its share of the rows with an evaluation copy of the model that holds gathered float32 weights;
the embeddings are gathered and measured alike on every rank.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stence_dist import distributed, seeds
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.data.loader import PairReader, evaluation_batches
from stence_dist.data.shards import ShardSet
from stence_dist.evaluate.knn import labelled_knn_scores
from stence_dist.evaluate.probe import probe_scores
from stence_dist.evaluate.retrieval import retrieval_metrics
from stence_dist.evaluate.statistics import known_auroc
from stence_dist.models.ecg_tower import embed_windows
from stence_dist.models.pair_model import PairModel, unit_norm
from stence_dist.targets import label

Floats = NDArray[np.float32]

# What can choose the best weights: measured at every validation, larger is better.
BEST_METRICS = (
    *(f"val/{way}recall@{k}" for way in ("", "ecg_to_image/", "image_to_ecg/") for k in (1, 5, 10)),
    "val/knn_auroc",
    "val/probe_auroc",
)


class Embedded(NamedTuple):
    """What a model makes of the n validation pairs, in the order of their rows, and who it takes for severe."""

    ecg: Floats  # (n, E) unit norm
    image: Floats  # (n, E) unit norm
    scores: dict[str, NDArray[np.float64]]  # "probe" and "knn": (n,), NaN where the label is unknown or nothing fits


class Validation:
    """The validation pairs and a fixed set of training pairs as reference for kNN and linear probe.

    Built once per run; `run` measures a model. rows that a rank lacks are padded, so that all gather equal shapes.
    """

    def __init__(
        self, shards: ShardSet, config: PretrainConfig, train_rows: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> None:
        self.config = config
        table = shards.table("val")
        self.rows = rows
        self.patient = table.patient[self.rows]
        self.labels = label(table.segments[self.rows], "patient", config.targets, table.has_study[self.rows])
        train = shards.table("train")
        chosen = seeds.generator(config.seed, "reference").permutation(train_rows)[: config.reference_samples]
        self.reference_rows = np.sort(chosen)
        self.reference_labels = label(
            train.segments[self.reference_rows], "patient", config.targets, train.has_study[self.reference_rows]
        )
        self.reference_patient = train.patient[self.reference_rows]
        self._shards = shards

    def run(self, model: PairModel, device: torch.device) -> tuple[dict[str, float], Embedded]:
        """Named metrics `val/...` and what they are taken from, both alike on every rank.

        Retrieval with chance levels, kNN and probe AUROC, effective rank, alignment and uniformity. A metric that is
        undefined (one class only) is NaN. Collective: every rank calls it.
        """
        model.eval()
        features, ecg, image = self._embed(model, "val", self.rows, device, with_views=True)
        reference, _, _ = self._embed(model, "train", self.reference_rows, device, with_views=False)
        metrics = retrieval_metrics(ecg, image, self.patient)
        labelled = (reference, self.reference_labels, features, self.labels)
        scores = {
            "knn": labelled_knn_scores(*labelled, k=self.config.knn_neighbors, distance=self.config.knn_distance),
            "probe": probe_scores(*labelled, patient=self.reference_patient, seed=self.config.seed),
        }
        metrics |= {f"{name}_auroc": known_auroc(self.labels, values) for name, values in scores.items()}
        return {f"val/{name}": value for name, value in metrics.items()}, Embedded(ecg, image, scores)

    def _embed(
        self, model: PairModel, split: str, rows: NDArray[np.int64], device: torch.device, *, with_views: bool
    ) -> tuple[Floats, Floats, Floats]:
        """(projected (n,E), unit-norm ecg (n,E), unit-norm image (n,E)) of `rows`, in their order, on every rank."""
        ranks, rank = distributed.world_size(), distributed.rank()
        share = -(-len(rows) // ranks)
        mine = np.resize(rows, share * ranks).reshape(share, ranks)[:, rank]
        reader = PairReader(
            self._shards,
            split,
            mine,
            model.ecg_tower.spec,
            seed=self.config.seed,
            augment=None,
            views=with_views,
            verify="off" if self.config.data.verify == "off" else "always",
        )
        batch_size = max(1, min(64, self.config.engine.pool // ranks))
        parts: list[Tensor] = []
        with torch.no_grad():
            for batch in evaluation_batches(reader, mine, batch_size, workers=0):
                moved = batch.to(device)
                _, projected = embed_windows(model.ecg_tower, moved.ecg)
                assert projected is not None, "a pair model's ECG tower has a projector"
                image = torch.zeros_like(projected)
                if moved.views is not None:
                    pooled = model.image_tower(moved.views, moved.view_mask, moved.angulation).pooled
                    image = unit_norm(model.image_projector(pooled))
                parts.append(torch.stack([projected, unit_norm(projected), image], dim=1))
        gathered = distributed.all_gather(torch.cat(parts)).reshape(ranks, share, 3, -1).transpose(0, 1)
        stacked = gathered.reshape(share * ranks, 3, -1)[: len(rows)].cpu().numpy()
        return stacked[:, 0], stacked[:, 1], stacked[:, 2]
