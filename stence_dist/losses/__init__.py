"""What training minimizes."""

from dataclasses import dataclass

from torch import Tensor

from stence_dist.config.loss import LossConfig
from stence_dist.losses.contrastive import contrastive_loss
from stence_dist.losses.sigmoid import sigmoid_loss
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
    """The contrastive loss plus `stenosis_weight` times the stenosis loss.

    labels (B, S) NaN = unknown; patient (B,) int64; known (3,) and passes as in `stenosis_loss`. With a weight of 0
    the stenosis loss is reported and its gradient is exactly zero, so every parameter gets one on every rank.
    """
    contrastive = contrastive_part(
        output.ecg, output.image, output.logit_scale, output.logit_bias, patient=patient, config=config
    )
    stenosis = stenosis_part(output.stenosis_logits, labels, known=known, passes=passes, config=config)
    return PairLoss(
        total=contrastive + config.stenosis_weight * stenosis,
        contrastive=contrastive.detach(),
        stenosis=stenosis.detach(),
    )


def contrastive_part(
    ecg: Tensor, image: Tensor, logit_scale: Tensor, logit_bias: Tensor, *, patient: Tensor, config: LossConfig
) -> Tensor:
    """The configured contrastive loss of local rows (B, E) against all ranks' columns, scalar."""
    if config.contrastive == "sigmoid":
        return sigmoid_loss(ecg, image, logit_scale, logit_bias, patient=patient)
    return contrastive_loss(ecg, image, logit_scale, patient=patient)


def stenosis_part(logits: Tensor, labels: Tensor, *, known: Tensor, passes: int, config: LossConfig) -> Tensor:
    """The stenosis loss with the configured shares, before its weight, scalar; arguments as in `stenosis_loss`."""
    shares = (config.patient_weight, config.artery_weight, config.segment_weight)
    return stenosis_loss(logits, labels, known=known, shares=shares, passes=passes)
