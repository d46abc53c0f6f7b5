import dataclasses
import math
from pathlib import Path

import pytest
import torch
from contrastive_cases import CASES, SIGMOID_BIAS, Case, two_towers
from processes import run_ranks
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from stence_dist.losses.contrastive import _HEADROOM, _LEAST_SUM

pytestmark = pytest.mark.dist

SCRIPT = Path(__file__).with_name("contrastive_ranks.py")


def _one_process(case: Case, kind: str = "infonce") -> dict[str, Tensor]:
    """Loss and gradients of the whole batch in one float64 process, from the definition: no gather, no ranks."""
    case = dataclasses.replace(case, ecg=case.ecg.double(), image=case.image.double())
    model = two_towers(case)
    ecg, image, scale = model(case.ecg, case.image)
    logits, positives = scale * ecg @ image.T, torch.arange(case.global_batch)
    hidden = (case.patient[:, None] == case.patient[None, :]).fill_diagonal_(False)
    if kind == "sigmoid":
        signs = 2 * torch.eye(case.global_batch, dtype=torch.float64) - 1
        terms = -logsigmoid(signs * (logits + SIGMOID_BIAS))
        loss = terms.masked_fill(hidden, 0.0).sum() / case.global_batch
    else:
        logits = logits.masked_fill(hidden, float("-inf"))
        loss = (cross_entropy(logits, positives) + cross_entropy(logits.T, positives)) / 2
    loss.backward()
    values = {"loss": loss.detach().reshape(1)}
    return values | {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def _largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Per name the largest error, relative to the largest expected entry."""
    assert set(found) == set(expected)
    return {
        name: float((found[name].double() - value).abs().max() / value.abs().max()) for name, value in expected.items()
    }


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """`case/variant` -> averaged loss and gradients of W gloo ranks, from one launch."""
    out = tmp_path_factory.mktemp("ranks") / f"{request.param}.safetensors"
    for rank, result in enumerate(run_ranks(SCRIPT, request.param, [str(out)])):
        assert result.returncode == 0, f"rank {rank}: {result.output}"
    results: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(out).items():
        case, variant, name = key.split("/")
        results.setdefault(f"{case}/{variant}", {})[name] = value
    return results


@pytest.mark.parametrize(
    "variant", ["infonce", "infonce in tiles", "infonce in kept tiles", "sigmoid", "sigmoid in tiles"]
)
def test_averaged_gradients_are_those_of_one_process(ranks: dict[str, dict[str, Tensor]], variant: str) -> None:
    """Loss and every gradient, temperature included, at W = 2 and 4 against one float64 process: 1e-12, or 1e-5 for
    float32; with patients seen on several ranks, in one tile and in many."""
    for name, case in CASES.items():
        limit = 1e-12 if case.ecg.dtype == torch.float64 else 1e-5
        errors = _largest_difference(ranks[f"{name}/{variant}"], _one_process(case, variant.split()[0]))
        assert max(errors.values()) <= limit, (name, errors)


def test_some_rows_are_lost_and_some_are_not() -> None:
    """The case of that name has both, so that ranks must agree on which form they take."""
    case = CASES["lost rows"]
    ecg, image, scale = two_towers(case)(case.ecg, case.image)
    lost = (scale * ecg @ image.T).logsumexp(dim=1) - (scale - _HEADROOM) < math.log(_LEAST_SUM)
    halves = lost.reshape(2, -1).any(dim=1)
    assert halves.tolist() in ([True, False], [False, True])


@pytest.mark.parametrize(
    "variant, right, wrong",
    [
        ("whole_matrix", "log_scale", "ecg_tower.0.weight"),
        ("local_rows", "log_scale", "ecg_tower.0.weight"),
        ("scaled_up", "ecg_tower.0.weight", "log_scale"),
    ],
)
def test_the_comparison_catches_wrong_gathers(
    ranks: dict[str, dict[str, Tensor]], variant: str, right: str, wrong: str
) -> None:
    """The three classic mistakes fail the same comparison, each on the parameters that it is known to spoil and not
    on the others: what is compared above can tell."""
    name = next(iter(CASES))
    errors = _largest_difference(ranks[f"{name}/{variant}"], _one_process(CASES[name]))
    assert errors[right] <= 1e-12
    assert errors[wrong] >= 0.1
