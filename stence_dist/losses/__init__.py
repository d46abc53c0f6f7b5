"""What training minimizes."""

from dataclasses import dataclass

from torch import Tensor

from stence_dist.config.loss import LossConfig
from stence_dist.losses.contrastive import contrastive_loss
from stence_dist.losses.stenosis import stenosis_loss
from stence_dist.models.pair_model import PairOutput


@dataclass(frozen=True)
class PairLoss:
    """This micro-batch's share of the step's loss; the mean over ranks and micro-batches is the step's."""

    total: Tensor  # scalar, to run backward from
    contrastive: Tensor  # scalar, detached
    stenosis: Tensor  # scalar, detached, before its weight


def pair_loss(
    output: PairOutput, labels: Tensor, patient: Tensor, *, known: Tensor, passes: int, config: LossConfig
) -> PairLoss:
    """InfoNCE plus `stenosis_weight` times the stenosis loss.

    labels (B, S) NaN = unknown; patient (B,) int64; known (3,) and passes as in `stenosis_loss`. With a weight of 0
    the stenosis loss is reported and its gradient is exactly zero, so every parameter gets one on every rank.
    """
    contrastive = contrastive_loss(output.ecg, output.image, output.logit_scale, patient=patient)
    stenosis = stenosis_loss(
        output.stenosis_logits,
        labels,
        known=known,
        shares=(config.patient_weight, config.artery_weight, config.segment_weight),
        passes=passes,
    )
    return PairLoss(
        total=contrastive + config.stenosis_weight * stenosis,
        contrastive=contrastive.detach(),
        stenosis=stenosis.detach(),
    )
