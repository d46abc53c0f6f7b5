"""A stand-in for PairModel: the same names and output, odd sizes, a frozen layer and a buffer; its batches and the
plain float64 run that engine tests compare with.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid, normalize

from stence_dist.batch import PairBatch
from stence_dist.config.data import DataConfig
from stence_dist.config.engine import EngineConfig
from stence_dist.config.loss import LossConfig
from stence_dist.config.optimizer import AdamWConfig, OptimizerConfig, SgdConfig
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.engine import parameter_groups
from stence_dist.targets import STENOSIS_PARTS, stenosis_labels
from stence_dist.train_step import learning_rates

GLOBAL_BATCH, ACCUMULATION = 24, 2


class Output(NamedTuple):
    """PairOutput's fields."""

    ecg: Tensor
    image: Tensor
    stenosis_logits: Tensor
    logit_scale: Tensor
    logit_bias: Tensor


class LogScale(nn.Module):
    """PairModel's tiny submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([1.5]))

    def forward(self) -> Tensor:
        return self.log_scale.exp()


class Bias(nn.Module):
    """PairModel's other one."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([-2.0]))

    def forward(self) -> Tensor:
        return self.bias.clone()


class Tower(nn.Module):
    """Some layers, one of them frozen, and a buffer that scales the input."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.norm = nn.LayerNorm(width)
        self.fixed = nn.Linear(width, width).requires_grad_(False)
        self.leave = nn.Linear(width, outputs)
        self.register_buffer("gain", torch.ones(1))

    def forward(self, values: Tensor) -> Tensor:
        tokens = (values * self.gain).unsqueeze(1)  # (B, 1, inputs): three dimensions, as a decoder has
        hidden = torch.tanh(self.norm(self.enter(tokens)))
        return self.leave(hidden + self.fixed(hidden)).squeeze(1)


class SmallPairModel(nn.Module):
    """Towers over 5 leads x 7 samples and 2 x 3 pixels into 6 dimensions."""

    def __init__(self, seed: int = 0, *, sigmoid: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.logit_bias = Bias() if sigmoid else None
            self.ecg_tower = Tower(35, 37, 6)
            self.image_tower = Tower(6, 19, 7)
            self.image_projector = nn.Linear(7, 6)
            self.stenosis_head = nn.Linear(7, 11)
            self.logit_scale = LogScale()

    def forward(self, batch: PairBatch) -> Output:
        ecg = self.ecg_tower(batch.ecg.flatten(1) * batch.keep_path.repeat(1, 5) / 0.8)  # dropout by the batch's masks
        pooled = self.image_tower(batch.views.flatten(1).to(batch.ecg.dtype))
        return Output(
            normalize(ecg.to(torch.promote_types(ecg.dtype, torch.float32)), dim=1),
            normalize(self.image_projector(pooled).to(torch.promote_types(ecg.dtype, torch.float32)), dim=1),
            self.stenosis_head(pooled),
            self.logit_scale(),
            self.logit_scale().detach() * 0 if self.logit_bias is None else self.logit_bias(),
        )


def configuration(
    stage: int, optimizer: OptimizerConfig | None = None, precision: str = "fp32", negatives: str = "micro"
) -> PretrainConfig:
    """G = 24 in two micro-batches, clipping that always acts, a learned temperature."""
    return PretrainConfig(
        run_dir="unused",
        data=DataConfig(shards="unused"),
        loss=LossConfig(learnable=True),
        optimizer=optimizer or AdamWConfig(scale_lr=1e-3),
        engine=EngineConfig(
            GLOBAL_BATCH,
            ACCUMULATION,
            zero_stage=stage,
            precision=precision,
            gradient_clipping=0.05,
            negatives=negatives,
        ),
    )


def sgd(momentum: float = 0.0) -> SgdConfig:
    """Rates at which three steps move the weights well beyond rounding."""
    return SgdConfig(ecg_lr=2.0, image_lr=1.0, scale_lr=0.5, momentum=momentum)


def global_batch(step: int, size: int = GLOBAL_BATCH) -> PairBatch:
    """The whole batch of one step: patients that come twice, targets that nobody reports on half of the rows, inputs
    that are dropped.
    """
    generator = torch.Generator().manual_seed(1000 + step)
    segments = torch.rand(size, 16, generator=generator) * 110 - 20
    segments[torch.rand(size, 16, generator=generator) < 0.3] = float("nan")
    segments = segments.clamp(0, 100)
    segments[: size // 2, :4] = float("nan")
    return PairBatch(
        ecg=torch.randn(size, 5, 7, generator=generator),
        views=torch.randn(size, 1, 1, 1, 2, 3, generator=generator),
        view_mask=torch.ones(size, 1, dtype=torch.bool),
        angulation=torch.zeros(size, 1, 2),
        segments=segments,
        patient=torch.randint(0, size - 4, (size,), generator=generator),
        sample=torch.arange(size) + 100 * step,
        keep_path=torch.rand(size, 7, generator=generator) < 0.8,
    )


def micro_batches(
    batch: PairBatch, rank: int = 0, world_size: int = 1, accumulation: int = ACCUMULATION
) -> list[PairBatch]:
    """A rank's contiguous slice of each micro-batch."""
    pool = len(batch) // accumulation
    share = pool // world_size
    starts = [index * pool + rank * share for index in range(accumulation)]
    return [PairBatch(**{key: value[start : start + share] for key, value in vars(batch).items()}) for start in starts]


def labels_of(batch: PairBatch, config: PretrainConfig) -> Tensor:
    """Labels (G, 11), NaN = unknown."""
    return torch.from_numpy(stenosis_labels(batch.segments.numpy(), config.targets, np.ones(len(batch), dtype=bool)))


def known_counts(batch: PairBatch, config: PretrainConfig) -> Tensor:
    """Known labels (3,) of the whole step per part of the stenosis loss."""
    known = ~labels_of(batch, config).isnan()
    return torch.stack([known[:, part].sum() for part in STENOSIS_PARTS])


def plain_loss(model: nn.Module, batch: PairBatch, config: PretrainConfig) -> Tensor:
    """The loss of one step as its definition says it, in one process."""
    pool = config.engine.pool
    output = model(batch)
    contrastive = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(len(batch)).split(pool):
        logits = output.logit_scale * output.ecg[rows] @ output.image[rows].T
        same = batch.patient[rows][:, None] == batch.patient[rows][None, :]
        hidden, own = same & ~torch.eye(pool, dtype=torch.bool), torch.arange(pool)
        if config.loss.contrastive == "sigmoid":
            signs = 2 * torch.eye(pool, dtype=torch.float64) - 1
            terms = -logsigmoid(signs * (logits + output.logit_bias)).masked_fill(hidden, 0.0)
            pooled = terms.sum() / pool
        else:
            logits = logits.masked_fill(hidden, float("-inf"))
            pooled = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
        contrastive = contrastive + pooled * pool / len(batch)
    labels = labels_of(batch, config).double()
    shares = (config.loss.patient_weight, config.loss.artery_weight, config.loss.segment_weight)
    stenosis = torch.zeros((), dtype=torch.float64)
    for part, share in zip(STENOSIS_PARTS, shares, strict=True):
        known = ~labels[:, part].isnan()
        picked = output.stenosis_logits[:, part][known]
        stenosis = stenosis + share * binary_cross_entropy_with_logits(picked, labels[:, part][known])
    return contrastive + config.loss.stenosis_weight * stenosis


def plain_run(config: PretrainConfig, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of `steps` steps of SGD in float64 by plain torch: no ranks, no DeepSpeed."""
    model = SmallPairModel().double()
    optimizer = torch.optim.SGD(parameter_groups(model, config.optimizer), momentum=config.optimizer.momentum)
    losses = []
    for step in range(steps):
        batch = global_batch(step)
        batch = replace(batch, ecg=batch.ecg.double())
        optimizer.zero_grad()
        loss = plain_loss(model, batch, config)
        loss.backward()
        rates = learning_rates(step, steps, config.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rates[group["tower"]]
        nn.utils.clip_grad_norm_(model.parameters(), config.engine.gradient_clipping)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, {name: value.detach() for name, value in model.state_dict().items()}


def distance(state: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """The norm of the difference over the norm of the reference, over all entries."""
    assert state.keys() == reference.keys()
    gap = sum(float((state[name].double() - value.double()).square().sum()) for name, value in reference.items())
    size = sum(float(value.double().square().sum()) for value in reference.values())
    return (gap / size) ** 0.5
