"""Gradients and updates on several ranks against one float64 process of plain torch."""

import functools
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gradient_cases import ALL, CROSSING, MISTAKES, STEPS, Case, batch_of, configuration_of, errors, model_of
from processes import run_ranks
from safetensors.torch import load_file
from small_pair_model import plain_loss
from torch import Tensor

from stence_dist.engine import parameter_groups
from stence_dist.train_step import learning_rates

pytestmark = pytest.mark.dist

SIZES = (1, 2, 3, 4) if os.environ.get("SLOW") else (2, 3)
CASES = ALL if os.environ.get("SLOW") else CROSSING


@functools.cache
def reference(contrastive: str, negatives: str, repeated: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(gradients of the first update, weights after the third), from the definition: no ranks, no tiles, no passes."""
    case = Case(0, contrastive, negatives, False, repeated)
    config = configuration_of(case)
    model = model_of(case).double()
    optimizer = torch.optim.SGD(parameter_groups(model, config.optimizer), momentum=0.9)
    gradients = {}
    for step in range(STEPS):
        batch = batch_of(case, step)
        optimizer.zero_grad()
        plain_loss(model, replace(batch, ecg=batch.ecg.double()), config).backward()
        if step == 0:
            gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        rates = learning_rates(step, STEPS, config.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rates[group["tower"]]
        optimizer.step()
    return gradients, {name: value.detach() for name, value in model.state_dict().items()}


def compare(case: Case, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Errors of gradients and of weights."""
    found = load_file(folder / f"{case.name}.safetensors")
    gradients, weights = reference(case.contrastive, case.negatives, case.repeated)
    return (
        errors({name[9:]: value for name, value in found.items() if name.startswith("gradient|")}, gradients),
        errors({name[7:]: value for name, value in found.items() if name.startswith("weight|")}, weights),
    )


@pytest.mark.parametrize("world_size", SIZES)
def test_gradients_and_updates_are_those_of_one_process(world_size: int, tmp_path: Path) -> None:
    """All parameters, the temperature and the bias included, to 1e-5 in float32: every ZeRO stage, both losses, both
    kinds of negatives over four micro-batches, one tile and many, with dropout, repeated patients, missing targets.
    """
    wrong = MISTAKES if world_size == 2 else []
    script = Path(__file__).with_name("gradient_ranks.py")
    names = [case.name for case in [*CASES, *wrong]]
    results = run_ranks(script, world_size, [str(tmp_path), *names], timeout=600, env={"DS_ACCELERATOR": "cpu"})
    assert all(result.returncode == 0 for result in results), "\n".join(result.output[-3000:] for result in results)
    for case in CASES:
        gradients, weights = compare(case, tmp_path)
        assert max(gradients.values()) <= 1e-5, (case, gradients)
        assert max(weights.values()) <= 1e-5, (case, weights)
    spoiled = {
        "towers": "ecg_tower.enter.weight",
        "scale": "logit_scale.log_scale",
        "denominators": "stenosis_head.weight",
    }
    for case in wrong:  # the same comparison must see each classic mistake where it acts
        gradients, _ = compare(case, tmp_path)
        assert gradients[spoiled[case.mistake]] >= 0.05, (case, gradients)
