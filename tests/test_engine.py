"""DeepSpeed's engine against plain torch, in a process group of one; several ranks are in dist/test_engine_ranks.py."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_pair_model import (
    SmallPairModel,
    configuration,
    distance,
    global_batch,
    known_counts,
    labels_of,
    micro_batches,
    plain_loss,
    plain_run,
    sgd,
)

from stence_dist import distributed, engine, train_step
from stence_dist.config.engine import EngineConfig
from stence_dist.config.optimizer import AdamWConfig, SgdConfig
from stence_dist.errors import ConfigError, RefusedError
from stence_dist.targets import STENOSIS_PARTS

STAGES = (0, 1, 2, 3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _group() -> None:
    """A process group of one. It stays: DeepSpeed keeps what it made of the first one."""
    if not distributed.active():
        distributed.start(60)


def trained(stage: int, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights after `steps` SGD steps at a stage."""
    config = configuration(stage, sgd())
    built = engine.build(SmallPairModel(), config, device=CPU)
    losses = []
    for step in range(steps):
        batch = global_batch(step)
        known = known_counts(batch, config)
        result = train_step.train_step(built, micro_batches(batch), step=step, total=steps, known=known, config=config)
        losses.append(result.loss)
    return losses, engine.full_state(built)


@pytest.mark.parametrize("stage", STAGES)
def test_sgd_is_plain_torch(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three clipped SGD steps with accumulation equal plain float64 torch: losses, weights, frozen ones and buffers."""
    monkeypatch.setattr(engine, "PERSISTENCE_ELEMENTS", 40)  # at stage 3 some parameters stay whole, some do not
    losses, state = trained(stage, 3)
    expected_losses, expected = plain_run(configuration(stage, sgd()), 3)
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    assert distance(state, expected) < 1e-6
    start = SmallPairModel().state_dict()
    assert distance(start, expected) > 1e-3, "the weights hardly moved, so their agreement would say nothing"
    assert all(value.dtype == torch.float32 and value.device == CPU for value in state.values())


def test_result_names_what_the_step_did() -> None:
    """Norm before clipping and terms against plain torch's first step; rates and temperature against the config."""
    config = configuration(0, sgd())
    built = engine.build(SmallPairModel(), config, device=CPU)
    batch = global_batch(0)
    known = known_counts(batch, config)
    result = train_step.train_step(built, micro_batches(batch), step=0, total=3, known=known, config=config)
    model = SmallPairModel().double()
    plain_loss(model, replace(batch, ecg=batch.ecg.double()), config).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert result.grad_norm > config.engine.gradient_clipping
    assert result.loss == pytest.approx(result.contrastive + config.loss.stenosis_weight * result.stenosis)
    assert result.logit_scale == pytest.approx(math.exp(1.5))
    rates = train_step.learning_rates(0, 3, config.optimizer)
    assert (result.lr_ecg, result.lr_image) == (rates["ecg"], rates["image"])


def test_inactive_targets_are_as_unknown() -> None:
    """Switching a target off gives the stenosis loss of plain torch with its labels removed."""
    config = configuration(0, sgd())
    active = np.ones(11, dtype=bool)
    active[[1, 5]] = False
    batch = global_batch(0)
    labels = labels_of(batch, config).double()
    labels[:, ~active] = float("nan")
    known = torch.stack([(~labels[:, part].isnan()).sum() for part in STENOSIS_PARTS])
    built = engine.build(SmallPairModel(), config, device=CPU)
    result = train_step.train_step(
        built, micro_batches(batch), step=0, total=1, known=known, config=config, active=active
    )
    logits = SmallPairModel().double()(replace(batch, ecg=batch.ecg.double())).stenosis_logits
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    means = [entropy[:, part][~labels[:, part].isnan()].mean() for part in STENOSIS_PARTS]
    assert result.stenosis == pytest.approx(float((0.4 * means[0] + 0.4 * means[1] + 0.2 * means[2]).detach()))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_non_finite_ends_the_step_before_the_update(stage: int, where: str) -> None:
    """A NaN in one sample, or an infinite gradient under a finite loss: an error with the step, weights as before."""
    config = configuration(stage, AdamWConfig())
    model = SmallPairModel()
    if where == "gradient":
        model.image_projector.register_forward_hook(
            lambda module, inputs, output: output.register_hook(lambda gradient: gradient * math.inf) and None
        )
    built = engine.build(model, config, device=CPU)
    before = engine.full_state(built)
    batch = global_batch(0)
    if where == "loss":
        batch.ecg[20, 0, 0] = math.nan
    known = known_counts(batch, config)
    with pytest.raises(train_step.NonFiniteError, match=f"step 8: the {where}.*not applied.*[Ss]amples") as caught:
        train_step.train_step(built, micro_batches(batch), step=7, total=9, known=known, config=config)
    after = engine.full_state(built)
    assert all(torch.equal(before[name], after[name]) for name in before)
    if where == "loss":
        assert "not finite: 20." in str(caught.value), "the sample is named"


def test_rates_warm_up_then_fall_along_a_cosine() -> None:
    """Closed form: 10 steps of warm-up in 100, the peak, the cosine's half, the end."""
    config = AdamWConfig(ecg_lr=1.0, image_lr=0.5, scale_lr=0.1, warmup=0.1, final=0.2)
    ecg = [train_step.learning_rates(step, 100, config)["ecg"] for step in range(101)]
    assert ecg[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert ecg[10] == 1.0
    assert ecg[55] == pytest.approx(0.6)
    assert ecg[100] == pytest.approx(0.2)
    assert all(later <= earlier for earlier, later in itertools.pairwise(ecg[10:]))
    assert train_step.learning_rates(30, 100, config)["image"] == pytest.approx(0.5 * ecg[30])
    assert train_step.learning_rates(30, 100, config)["scale"] == pytest.approx(0.1 * ecg[30])
    assert train_step.learning_rates(0, 1, AdamWConfig(warmup=0.0))["ecg"] == AdamWConfig().ecg_lr


def test_groups_split_towers_and_decay() -> None:
    """Every trainable parameter once; weight matrices decay, norms, biases and logit_scale do not; none is empty."""
    model = SmallPairModel()
    groups = engine.parameter_groups(model, AdamWConfig(ecg_lr=1, image_lr=2, scale_lr=3, weight_decay=0.05))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {(g["tower"], g["weight_decay"]): {names[id(p)] for p in g["params"]} for g in groups}
    assert found[("ecg", 0.05)] == {"ecg_tower.enter.weight", "ecg_tower.leave.weight"}
    assert found[("scale", 0.0)] == {"logit_scale.log_scale"}
    assert "image_tower.norm.weight" in found[("image", 0.0)]
    assert "stenosis_head.weight" in found[("image", 0.05)]
    assert {name for group in found.values() for name in group} == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert {group["tower"]: group["lr"] for group in groups} == {"ecg": 1, "image": 2, "scale": 3}
    alike = engine.parameter_groups(model, AdamWConfig(ecg_lr=1, image_lr=1, scale_lr=3, weight_decay=0.05))
    assert [(group["lr"], group["weight_decay"]) for group in alike] == [(1, 0.05), (1, 0.0), (3, 0.0)]
    model.logit_scale.requires_grad_(False)
    assert "scale" not in {group["tower"] for group in engine.parameter_groups(model, AdamWConfig())}


def test_configuration_is_explicit() -> None:
    """The keys whose absence DeepSpeed fills with something else, and the batch arithmetic."""
    config = EngineConfig(global_batch_size=48, accumulation=3, zero_stage=2, precision="bf16", gradient_clipping=0.0)
    settings = engine.deepspeed_config(config, SgdConfig(), elements=1000, world_size=4, device=CPU)
    assert settings["gradient_clipping"] == 0.0
    assert settings["train_batch_size"] == 48
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert settings["zero_optimization"]["round_robin_gradients"] is False
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    assert settings["zero_optimization"]["reduce_scatter"] is False
    assert settings["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert settings["zero_allow_untested_optimizer"] is True
    with pytest.raises(ConfigError, match="multiple of 15"):
        engine.deepspeed_config(config, SgdConfig(), elements=1000, world_size=5, device=CPU)


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch, native: bool, precision: str) -> None:
    """`auto` is bf16 on a GPU that has it and fp32 elsewhere; anything else is kept."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert engine.resolve_precision(EngineConfig(), CPU) == "fp32"
    assert engine.resolve_precision(EngineConfig(), torch.device("cuda")) == precision
    assert engine.resolve_precision(EngineConfig(precision="fp32"), torch.device("cuda")) == "fp32"


def test_another_deepspeed_is_refused_at_the_start() -> None:
    """A DeepSpeed without the private names that checkpoints read: an error with the version to install."""
    strange = SimpleNamespace(
        zero_optimization_stage=lambda: 3,
        optimizer=SimpleNamespace(fp16_groups=[]),
        module=SmallPairModel(),
    )
    with pytest.raises(RefusedError, match=r"grad_position.*deepspeed==0\.19\.8"):
        engine._check_internals(strange)
