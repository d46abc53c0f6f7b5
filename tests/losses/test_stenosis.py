import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stence_dist.config.loss import LossConfig
from stence_dist.losses import pair_loss
from stence_dist.losses.contrastive import contrastive_loss
from stence_dist.losses.stenosis import stenosis_loss
from stence_dist.models.pair_model import PairOutput
from stence_dist.targets import STENOSIS_PARTS

SHARES = (0.4, 0.4, 0.2)


def _draw(rows: int, unknown: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 11, generator=random, dtype=torch.float64)
    labels = (torch.rand(rows, 11, generator=random) < 0.4).double()
    labels[torch.rand(rows, 11, generator=random) < unknown] = float("nan")
    return logits.requires_grad_(), labels


def _counts(labels: Tensor) -> Tensor:
    return torch.stack([(~labels[:, part].isnan()).sum() for part in STENOSIS_PARTS])


def _reference(logits: Tensor, labels: Tensor) -> Tensor:
    """The parts' means over known labels, entry by entry, for the whole step in one process."""
    total = logits.new_zeros(())
    for part, share in zip(STENOSIS_PARTS, SHARES, strict=True):
        known = ~labels[:, part].isnan()
        if known.any():
            total = total + share * binary_cross_entropy_with_logits(logits[:, part][known], labels[:, part][known])
    return total


def test_fully_known_labels_give_the_published_loss() -> None:
    """StenCE's 0.4 / 0.4 / 0.2 of three plain BCE means."""
    logits, labels = _draw(8)
    plain = [binary_cross_entropy_with_logits(logits[:, part], labels[:, part]) for part in STENOSIS_PARTS]
    loss = stenosis_loss(logits, labels, known=torch.tensor([8, 16, 64]), shares=SHARES, passes=1)
    torch.testing.assert_close(loss, 0.4 * plain[0] + 0.4 * plain[1] + 0.2 * plain[2], rtol=1e-12, atol=0)


@pytest.mark.parametrize("passes", [1, 2, 4, 8])
def test_splits_average_to_one_process(passes: int) -> None:
    """Mean over the W*A micro-batches of loss and gradient against one process, though each knows other labels."""
    logits, labels = _draw(16, unknown=0.5)
    labels[:3] = float("nan")
    expected = _reference(logits, labels)
    wanted = torch.autograd.grad(expected, logits)[0]
    known = _counts(labels)
    pieces = [
        stenosis_loss(part, label, known=known, shares=SHARES, passes=passes)
        for part, label in zip(logits.chunk(passes), labels.chunk(passes), strict=True)
    ]
    mean = torch.stack(pieces).mean()
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(mean, logits)[0], wanted, rtol=1e-12, atol=1e-15)
    if passes == 8:  # the local mean that this form avoids does differ
        local = torch.stack([_reference(p, n) for p, n in zip(logits.chunk(8), labels.chunk(8), strict=True)]).mean()
        assert abs(local - expected) > 1e-3


def test_a_part_without_known_labels_adds_nothing() -> None:
    """No known segment: 0.4 / 0.4 of the rest remain; nothing known at all: 0 with a gradient of 0 for every logit."""
    logits, labels = _draw(6)
    labels[:, STENOSIS_PARTS[2]] = float("nan")
    loss = stenosis_loss(logits, labels, known=_counts(labels), shares=SHARES, passes=1)
    torch.testing.assert_close(loss, _reference(logits, labels), rtol=1e-12, atol=0)
    empty = torch.full_like(labels, float("nan"))
    nothing = stenosis_loss(logits, empty, known=_counts(empty), shares=SHARES, passes=2)
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


def test_loss_is_float32_under_autocast() -> None:
    """bf16 logits inside bf16 autocast against the float64 loss of the same values."""
    logits, labels = _draw(6, unknown=0.3)
    coarse = logits.detach().bfloat16()
    known = _counts(labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = stenosis_loss(coarse, labels.float(), known=known, shares=SHARES, passes=1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(_reference(coarse.double(), labels).item(), rel=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_pair_loss_is_the_weighted_sum(weight: float) -> None:
    """total = contrastive + weight * stenosis; a weight of 0 leaves the head a gradient of exactly 0, not none."""
    logits, labels = _draw(6, unknown=0.3)
    ecg, image = torch.eye(6, dtype=torch.float64).requires_grad_(), torch.eye(6, dtype=torch.float64).flip(0)
    scale, patient, known = torch.tensor([2.0], dtype=torch.float64), torch.tensor([0, 1, 1, 2, 3, 4]), _counts(labels)
    output = PairOutput(ecg=ecg, image=image, stenosis_logits=logits, logit_scale=scale, logit_bias=scale * 0)
    loss = pair_loss(output, labels, patient, known=known, passes=1, config=LossConfig(stenosis_weight=weight))
    contrastive = contrastive_loss(ecg, image, scale, patient=patient)
    torch.testing.assert_close(loss.contrastive, contrastive)
    torch.testing.assert_close(loss.stenosis, _reference(logits, labels))
    torch.testing.assert_close(loss.total, contrastive + weight * _reference(logits, labels))
    loss.total.backward()
    assert logits.grad is not None
    assert bool(logits.grad.any()) == (weight > 0)
    assert not loss.contrastive.requires_grad
    assert not loss.stenosis.requires_grad
