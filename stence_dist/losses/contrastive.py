"""The exact contrastive loss over all ranks, in its plain dense form."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stence_dist.distributed import active, all_gather, all_gather_with_gradient, rank


def contrastive_loss(ecg: Tensor, image: Tensor, logit_scale: Tensor, *, patient: Tensor) -> Tensor:
    """Symmetric InfoNCE, scalar: the mean over the *local* rows of both directions, against the columns of all ranks.

    ecg, image (B, E) at unit norm, logit_scale (1,) the inverse temperature, patient (B,) int64; B equal on all
    ranks. The positive of a row is the column of its own position; other pairs of the same patient are no negatives.
    Logits are float32, float64 for float64 inputs, whatever autocast does around. Uses the default process group, or
    none. Gradients averaged over ranks (what DeepSpeed does) are those of one process that holds all rows. Never
    scale this loss by the number of ranks: the temperature's gradient, which no gather touches, would take the factor.
    """
    with torch.autocast(ecg.device.type, enabled=False):
        dtype = torch.promote_types(ecg.dtype, torch.float32)
        ecg_BE, image_BE, scale = ecg.to(dtype), image.to(dtype), logit_scale.to(dtype)
        image_GE = all_gather_with_gradient(image_BE)
        ecg_GE = all_gather_with_gradient(ecg_BE)
        rows = torch.arange(len(patient), device=patient.device)
        positives = rows + (rank() * len(patient) if active() else 0)
        hidden_BG = patient[:, None] == all_gather(patient)[None, :]
        hidden_BG[rows, positives] = False
        # Hidden before the softmax, so that its maximum does not see them either.
        ecg_logits_BG = (scale * ecg_BE @ image_GE.T).masked_fill(hidden_BG, float("-inf"))
        image_logits_BG = (scale * image_BE @ ecg_GE.T).masked_fill(hidden_BG, float("-inf"))
        return (cross_entropy(ecg_logits_BG, positives) + cross_entropy(image_logits_BG, positives)) / 2
