"""Supervised training of an ECG encoder with one linear head, and the scoring of many models in one pass.

Both `finetune` and `scratch` are `train_classifier`; they differ only in the weights that the encoder starts from.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stence_dist.config.finetune import SupervisedConfig
from stence_dist.data.loader import PairReader, evaluation_batches, training_batches
from stence_dist.data.shards import ShardSet
from stence_dist.ecg import EcgSpec
from stence_dist.errors import DataError
from stence_dist.models.ecg import EcgEncoder
from stence_dist.models.ecg_tower import EcgTower, embed_windows

# (labels, updates): the budget where supervised.steps is null, linear in the logarithm of the labels between these.
BUDGET = ((50, 60), (200, 150), (1000, 500))

# A model as scoring sees it: windows (B, windows, L, T) -> values (B, K).
Scorer = Callable[[Tensor], Tensor]


class EcgClassifier(nn.Module):
    """An encoder and one linear head, which starts at zero so that the features' scale does not matter."""

    def __init__(self, encoder: EcgEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ecg: Tensor, keep_path: Tensor | None = None) -> Tensor:
        """Logits (B,) of ecg (B, L, T)."""
        logits: Tensor = self.head(self.encoder(ecg, keep_path))
        return logits.squeeze(1)


def updates_for(labels: int, config: SupervisedConfig) -> int:
    """Updates that `labels` labelled recordings are trained for; flat below the first and above the last of BUDGET."""
    if config.steps is not None:
        return config.steps
    counts, updates = zip(*BUDGET, strict=True)
    return round(float(np.interp(math.log(labels), np.log(counts), updates)))


def rate_at(step: int, total: int, config: SupervisedConfig) -> float:
    """Learning rate of one update: linear warm-up, then half a cosine to zero."""
    warm = config.warmup * total
    if step < warm:
        return config.lr * (step + 1) / (warm + 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, total - warm)))


def training_reader(
    shards: ShardSet, rows: NDArray[np.int64], tower: EcgTower, config: SupervisedConfig, *, seed: int, verify: str
) -> PairReader:
    """Random augmented crops of training rows (n,); every draw depends on (seed, position, sample) only."""
    return PairReader(
        shards,
        "train",
        rows,
        tower.spec,
        seed=seed,
        augment=config.augment,
        views=False,
        drop_rates=tower.encoder.drop_rates,
        verify=verify,
    )


def train_classifier(
    classifier: EcgClassifier,
    reader: PairReader,
    labels: Mapping[int, float],
    config: SupervisedConfig,
    *,
    workers: int,
    on_update: Callable[[int, float], None] | None = None,
) -> None:
    """Train the whole network in place with AdamW on binary cross-entropy.

    labels: 0 or 1 by sample number, for every row of the reader. Matrices decay, vectors do not. on_update gets the
    number of updates done and the loss. Raises DataError at a loss that is not finite.
    """
    device = next(classifier.parameters()).device
    total = updates_for(len(labels), config)
    for name in classifier.encoder.fixed_with_labels:
        classifier.encoder.get_parameter(name).requires_grad_(False)
    parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
    )
    steps = training_batches(
        reader,
        start=0,
        stop=total,
        g=min(config.batch_size, len(labels)),
        accumulation=1,
        rank=0,
        world_size=1,
        workers=workers,
    )
    classifier.train()
    for step, (batch,) in enumerate(steps):
        batch = batch.to(device)
        truth = torch.tensor([labels[int(sample)] for sample in batch.sample], device=device)
        loss = functional.binary_cross_entropy_with_logits(classifier(batch.ecg, batch.keep_path), truth)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DataError(
                f"Training on {len(labels)} labelled ECGs: the loss of update {step + 1} of {total} is {value}. "
                f"Lower supervised.lr={config.lr:g}."
            )
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, total, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if on_update is not None:
            on_update(step + 1, value)
    classifier.eval()


def classifier_scorer(classifier: EcgClassifier) -> Scorer:
    """Logits (B, 1), averaged over a record's windows."""

    def score(ecg: Tensor) -> Tensor:
        records, windows = ecg.shape[:2]
        logits: Tensor = classifier(ecg.flatten(0, 1))
        return logits.reshape(records, windows).mean(dim=1, keepdim=True)

    return score


def feature_scorer(tower: EcgTower) -> Scorer:
    """What a probe sees: the projector's output before normalization (B, E), or encoder features (B, D) without one."""

    def score(ecg: Tensor) -> Tensor:
        features, projected = embed_windows(tower, ecg)
        return features if projected is None else projected

    return score


def score_rows(
    shards: ShardSet,
    split: str,
    rows: NDArray[np.int64],
    spec: EcgSpec,
    scorers: Mapping[str, Scorer],
    *,
    batch_size: int,
    workers: int,
    verify: str,
    device: torch.device,
) -> dict[str, NDArray[np.float32]]:
    """Values (n, K) of every scorer on the evaluation windows of `rows` (n,), in their order, in one pass."""
    reader = PairReader(shards, split, rows, spec, seed=0, augment=None, views=False, verify=verify)
    parts: dict[str, list[Tensor]] = {name: [] for name in scorers}
    with torch.inference_mode():
        for batch in evaluation_batches(reader, rows, batch_size, workers):
            ecg = batch.ecg.to(device)
            for name, scorer in scorers.items():
                parts[name].append(scorer(ecg).float().cpu())
    return {name: torch.cat(values).numpy() for name, values in parts.items()}
