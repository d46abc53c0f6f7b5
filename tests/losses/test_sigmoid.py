import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stence_dist.losses.sigmoid import sigmoid_loss


def _unit(rows: int, width: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, dtype=torch.float64, generator=random), dim=1)


def test_orthonormal_pairs_give_the_closed_form() -> None:
    """Cosines 1 and 0: log(1 + exp(-s-b)) for the own pair and G-1 times log(1 + exp(b)) for the others."""
    loss = sigmoid_loss(torch.eye(5), torch.eye(5), torch.tensor([3.0]), torch.tensor([-1.0]), patient=torch.arange(5))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2)) + 4 * math.log1p(math.exp(-1)), rel=1e-6)


def test_large_logits_lose_no_digit() -> None:
    """Own pairs at logit 21, others at -9, then at 31 and 1: softplus by log1p; torch's is linear above 20."""
    eye = torch.eye(6, dtype=torch.float64)
    for bias in (-9.0, 1.0):
        scale, shift = (torch.tensor([value], dtype=torch.float64) for value in (30.0, bias))
        loss = sigmoid_loss(eye, eye, scale, shift, patient=torch.arange(6))
        exact = math.log1p(math.exp(-30 - bias)) + 5 * (max(bias, 0.0) + math.log1p(math.exp(-abs(bias))))
        assert loss.item() == pytest.approx(exact, rel=1e-12)
    scale, shift = (torch.tensor([value], dtype=torch.float64) for value in (10.0, 25.0))
    only = sigmoid_loss(eye, eye, scale, shift, patient=torch.zeros(6, dtype=torch.int64))
    assert only.item() == pytest.approx(math.log1p(math.exp(-35)), rel=1e-12)


def test_gradient_is_the_derivative() -> None:
    """Finite differences in float64 (gradcheck), scale and bias included, with two patients seen twice."""
    scale, bias = torch.tensor([4.0], dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64)
    inputs = tuple(value.requires_grad_() for value in (_unit(5, 3, 0), _unit(5, 3, 1), scale, bias))
    patient = torch.tensor([0, 1, 0, 2, 1])
    assert torch.autograd.gradcheck(lambda *values: sigmoid_loss(*values, patient=patient), inputs)


def test_pairs_of_one_patient_pay_nothing_for_each_other() -> None:
    """One patient throughout: only the own pairs are left."""
    ecg, image = _unit(4, 3, 0), _unit(4, 3, 1)
    scale, bias = torch.tensor([4.0], dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64)
    loss = sigmoid_loss(ecg, image, scale, bias, patient=torch.full((4,), 8))
    own = (4.0 * (ecg * image).sum(dim=1) - 1.5).tolist()
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-logit)) for logit in own) / 4, rel=1e-12)
