"""StenCE's three-part stenosis loss over the known targets of a whole step."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stence_dist.targets import STENOSIS_PARTS


def stenosis_loss(
    logits: Tensor, labels: Tensor, *, known: Tensor, shares: tuple[float, float, float], passes: int
) -> Tensor:
    """This micro-batch's share of the step's loss, scalar: averaged over the step's `passes` it is the loss itself.

    logits, labels (B, S) in the order of `targets.STENOSIS_TARGETS`, a NaN label is unknown. Each of the three parts
    (patient, arteries, segments) is the mean binary cross-entropy of its known labels, weighted by its share. known
    (3,) are the parts' counts of known labels over all ranks and micro-batches of the step, passes = W*A of them: a
    local mean would weigh a label by the company it keeps, and so depend on W. A part without any known label adds
    nothing. Unknown labels stay in the graph with a gradient of zero, so no rank skips the head.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits_BS = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels_BS = labels.to(logits_BS.dtype)
        entropy_BS = binary_cross_entropy_with_logits(logits_BS, labels_BS.nan_to_num(), reduction="none")
        entropy_BS = torch.where(labels_BS.isnan(), 0.0, entropy_BS)
        counts = known.to(logits_BS)
        weights = torch.where(counts > 0, counts.new_tensor(shares) * passes / counts.clamp(min=1), 0.0)
        sizes = torch.tensor([part.stop - part.start for part in STENOSIS_PARTS], device=logits.device)
        return (entropy_BS * weights.repeat_interleave(sizes)).sum()
