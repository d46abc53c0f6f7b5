import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from stence_dist.losses.contrastive import contrastive_loss


def _unit(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, dtype=torch.float64, generator=random), dim=1).to(dtype)


def test_equal_embeddings_give_the_logarithm_of_the_pool() -> None:
    """Closed form: all similarities equal, so each of G candidates has probability 1/G."""
    rows = torch.ones(7, 4) / 2
    loss = contrastive_loss(rows, rows, torch.tensor([5.0]), patient=torch.arange(7))
    assert loss.item() == pytest.approx(math.log(7), rel=1e-6)


def test_perfect_pairs_give_the_closed_form() -> None:
    """Orthonormal pairs at scale s: log(1 + (G-1) exp(-s)) both ways."""
    loss = contrastive_loss(torch.eye(5), torch.eye(5), torch.tensor([3.0]), patient=torch.arange(5))
    assert loss.item() == pytest.approx(math.log1p(4 * math.exp(-3)), rel=1e-6)


def test_distinct_patients_give_plain_cross_entropy() -> None:
    """Value and gradients against torch's cross_entropy on the full matrix, rows and columns, in float64."""
    ecg, image = _unit(9, 6, 0).requires_grad_(), _unit(9, 6, 1).requires_grad_()
    scale = torch.tensor([7.0], dtype=torch.float64, requires_grad=True)
    logits = scale * ecg @ image.T
    expected = 0.5 * (cross_entropy(logits, torch.arange(9)) + cross_entropy(logits.T, torch.arange(9)))
    wanted = torch.autograd.grad(expected, (ecg, image, scale))
    loss = contrastive_loss(ecg, image, scale, patient=torch.arange(9))
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, (ecg, image, scale)), wanted, rtol=1e-12, atol=1e-15)


def test_pairs_of_one_patient_are_no_negatives() -> None:
    """Against a loop over rows that leaves out the same patient's other columns, in float64."""
    ecg, image, patient = _unit(6, 5, 0), _unit(6, 5, 1), torch.tensor([4, 9, 4, 4, 1, 9])
    logits = (11.0 * ecg @ image.T).tolist()
    terms = []
    for row in range(6):
        for matrix in (logits, list(zip(*logits, strict=True))):
            allowed = [column for column in range(6) if column == row or patient[column] != patient[row]]
            terms.append(math.log(sum(math.exp(matrix[row][column]) for column in allowed)) - matrix[row][row])
    loss = contrastive_loss(ecg, image, torch.tensor([11.0], dtype=torch.float64), patient=patient)
    assert loss.item() == pytest.approx(sum(terms) / 12, rel=1e-12)
    unmasked = contrastive_loss(ecg, image, torch.tensor([11.0], dtype=torch.float64), patient=torch.arange(6))
    assert abs(loss.item() - unmasked.item()) > 1e-2


def test_masked_gradient_is_the_derivative() -> None:
    """Finite differences in float64 (gradcheck) with two patients seen twice."""
    scale = torch.tensor([4.0], dtype=torch.float64, requires_grad=True)
    inputs = (_unit(5, 3, 0).requires_grad_(), _unit(5, 3, 1).requires_grad_(), scale)
    patient = torch.tensor([0, 1, 0, 2, 1])
    assert torch.autograd.gradcheck(lambda *values: contrastive_loss(*values, patient=patient), inputs)


def test_a_hidden_logit_never_sets_the_scale() -> None:
    """A masked column 200 above all others: the loss is that of the rest, where exp of the rest underflows."""
    ecg = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    image = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss = contrastive_loss(ecg, image, torch.tensor([100.0]), patient=torch.tensor([3, 3, 5]))
    # Rows by hand. ECG 0 sees its positive at -100 and image 2 at 0: loss 100. All other rows: their positive leads.
    # Image 0 sees its positive at -100 and ECG 2 at 0: loss 100.
    assert loss.item() == pytest.approx((100 / 3 + 100 / 3) / 2, rel=1e-5)


def test_one_patient_alone_has_nothing_to_tell_apart() -> None:
    """Every other pair hidden: only the positive is left, the loss is 0 and finite, and so is its gradient."""
    ecg = _unit(4, 3, 0).requires_grad_()
    loss = contrastive_loss(ecg, _unit(4, 3, 1), torch.tensor([5.0]), patient=torch.full((4,), 8))
    assert loss.item() == 0
    loss.backward()
    assert ecg.grad is not None
    assert not ecg.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [5.0, 50.0, 100.0])
def test_logits_are_float32_under_autocast(scale: float, dtype: torch.dtype) -> None:
    """Inside bf16 autocast the loss is the float64 loss of the same inputs to 1e-5; bf16 logits would miss by 1e-2."""
    ecg, image, patient = _unit(16, 8, 0, dtype), _unit(16, 8, 1, dtype), torch.arange(16)
    expected = contrastive_loss(
        ecg.double(), image.double(), torch.tensor([scale], dtype=torch.float64), patient=patient
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(ecg, image, torch.tensor([scale]), patient=patient)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 42.0, 60.0, 61.0, 100.0, 1000.0, 10000.0])
@pytest.mark.parametrize("related", [0.0, 1.0, 3.0])
def test_no_scale_is_too_large(scale: float, related: float) -> None:
    """Pairs that have nothing in common, related ones, matching ones: loss and gradients in float32 are as near to
    float64 cross entropies as the rounding of logits of this size allows.
    """
    ecg = _unit(64, 16, 0)
    image = normalize(_unit(64, 16, 1) + related * ecg, dim=1)
    values = [ecg, image, torch.tensor([scale], dtype=torch.float64)]
    exact = [value.clone().requires_grad_() for value in values]
    logits = exact[2] * exact[0] @ exact[1].T
    expected = 0.5 * (cross_entropy(logits, torch.arange(64)) + cross_entropy(logits.T, torch.arange(64)))
    wanted = torch.autograd.grad(expected, exact)
    single = [value.float().requires_grad_() for value in values]
    loss = contrastive_loss(*single, patient=torch.arange(64))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=2e-7 * max(scale / 10, 1))
    found = torch.autograd.grad(loss, single)
    # Of a gradient's size when nothing is learned: near 0 all that is left is what did not cancel.
    for name, size, here, right in zip(
        ("ecg", "image", "scale"), (scale / 8, scale / 8, 1), found, wanted, strict=True
    ):
        assert float((here.double() - right).norm()) <= 1e-6 * max(scale / 40, 1) * size, name


def test_a_launcher_without_a_group_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """RANK in the environment but no process group: the same value as without (positives stay in place)."""
    ecg, image, patient, scale = _unit(4, 3, 0), _unit(4, 3, 1), torch.arange(4), torch.tensor([5.0])
    expected = contrastive_loss(ecg, image, scale, patient=patient)
    monkeypatch.setenv("RANK", "1")
    assert torch.equal(contrastive_loss(ecg, image, scale, patient=patient), expected)
