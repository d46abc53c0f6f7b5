"""Two towers, two projectors, the temperature and the stenosis head: the only module that DeepSpeed wraps."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stence_dist.batch import PairBatch
from stence_dist.config.loss import LossConfig
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.models import initial_weights
from stence_dist.models.ecg_tower import EcgTower, build_ecg_tower, embed_windows
from stence_dist.models.image import ImageTower, build_image_tower
from stence_dist.models.projector import Projector, start_as_published


class PairOutput(NamedTuple):
    """What the loss needs. A tuple of tensors, never of Parameters: ZeRO-3 empties those outside forward."""

    ecg: Tensor  # (B, E) float32, unit norm
    image: Tensor  # (B, E) float32, unit norm
    stenosis_logits: Tensor  # (B, S), in the order of targets.STENOSIS_TARGETS
    logit_scale: Tensor  # (1,) float32, the inverse temperature
    logit_bias: Tensor  # (1,) float32, of the sigmoid loss; 0 with InfoNCE


class LogitScale(nn.Module):
    """The logarithm of the inverse temperature, in a module of its own so that ZeRO-3 gathers it for any caller."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        start = torch.tensor([-math.log(config.temperature)])
        self.log_scale = nn.Parameter(start, requires_grad=config.learnable)
        self.log_largest = math.log(config.max_logit_scale)

    def forward(self) -> Tensor:
        """(1,), the inverse temperature, at most `loss.max_logit_scale`.

        The value is bounded, never the parameter: the optimizer's own copy would undo that. The gradient passes the
        bound, so that a scale beyond it can come back.
        """
        excess = (self.log_scale - self.log_largest).clamp(min=0).detach()
        return (self.log_scale - excess).exp()


class LogitBias(nn.Module):
    """What the sigmoid loss adds to every logit."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([config.bias]), requires_grad=config.learnable)

    def forward(self) -> Tensor:
        """(1,), the bias itself; a copy, because ZeRO-3 empties parameters outside forward."""
        return self.bias.clone()


def unit_norm(projected: Tensor) -> Tensor:
    """(B, E) at unit length, in float32 or better whatever autocast does around it."""
    with torch.autocast(projected.device.type, enabled=False):
        return nn.functional.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)


class PairModel(nn.Module):
    """An ECG tower and an image tower that meet in one space."""

    def __init__(
        self,
        ecg_tower: EcgTower,
        image_tower: ImageTower,
        image_projector: Projector,
        stenosis_head: nn.Linear,
        logit_scale: LogitScale,
        logit_bias: LogitBias | None,
    ) -> None:
        super().__init__()
        self.ecg_tower = ecg_tower
        self.image_tower = image_tower
        self.image_projector = image_projector
        self.stenosis_head = stenosis_head  # one layer for all queries but the contrastive one, as in StenCE
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias

    def forward(self, batch: PairBatch) -> PairOutput:
        """PairOutput of B pairs; batch.views is needed.

        An evaluation batch has ecg (B, windows, L, T): projections are then averaged over windows before they are
        normalized.
        """
        assert batch.views is not None, "pairs need views; an ECG alone goes through ecg_tower"
        if batch.ecg.dim() == 4:
            _, ecg = embed_windows(self.ecg_tower, batch.ecg)
        else:
            _, ecg = self.ecg_tower(batch.ecg, batch.keep_path)
        assert ecg is not None, "the ECG tower of a pair model has a projector"
        pooled, queries = self.image_tower(batch.views, batch.view_mask, batch.angulation)
        scale = self.logit_scale()
        return PairOutput(
            ecg=unit_norm(ecg),
            image=unit_norm(self.image_projector(pooled)),
            stenosis_logits=self.stenosis_head(queries[:, 1:]).squeeze(2),
            logit_scale=scale,
            logit_bias=torch.zeros_like(scale) if self.logit_bias is None else self.logit_bias(),
        )


def build_pair_model(
    config: PretrainConfig, *, tokens_width: int | None, max_views: int, frames: int = 1, tokens: int | None = None
) -> PairModel:
    """A model whose weights depend on the config alone, alike on every rank; its ECG tower is `build_ecg_tower`'s.

    tokens_width, max_views, frames and tokens describe the dataset as in `build_image_tower`. Raises ConfigError where
    the configured towers do not fit it.
    """
    ecg_tower = build_ecg_tower(config.ecg_encoder, config.embedding, config.seed)
    with initial_weights(config.seed, "image_tower"):
        image_tower = build_image_tower(
            config.image_tower, tokens_width=tokens_width, max_views=max_views, frames=frames, tokens=tokens
        )
    with initial_weights(config.seed, "image_projector"):
        image_projector = Projector(image_tower.width, config.embedding)
    with initial_weights(config.seed, "stenosis_head"):
        stenosis_head = start_as_published(nn.Linear(image_tower.width, 1))
    logit_bias = LogitBias(config.loss) if config.loss.contrastive == "sigmoid" else None
    return PairModel(ecg_tower, image_tower, image_projector, stenosis_head, LogitScale(config.loss), logit_bias)
