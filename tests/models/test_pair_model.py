import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from stence_dist.batch import PairBatch
from stence_dist.config.image_tower import TokensConfig
from stence_dist.config.loss import LossConfig
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.losses import pair_loss
from stence_dist.models.ecg_tower import build_ecg_tower
from stence_dist.models.pair_model import LogitScale, build_pair_model

MakeConfig = Callable[..., PretrainConfig]
MakeBatch = Callable[..., PairBatch]


def test_outputs_are_unit_norm_tensors(make_config: MakeConfig, make_batch: MakeBatch) -> None:
    """Shapes, float32, unit norm, temperature 0.2 -> 5; and no Parameter among them (ZeRO-3 empties those)."""
    output = build_pair_model(make_config(), tokens_width=None, max_views=3)(make_batch())
    assert output.ecg.shape == output.image.shape == (4, 6)
    assert output.stenosis_logits.shape == (4, 11)
    for embedding in (output.ecg, output.image):
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))
    assert output.logit_scale.shape == (1,)
    assert output.logit_scale.item() == pytest.approx(5.0)
    assert not any(isinstance(value, nn.Parameter) for value in output)
    assert {value.dtype for value in output} == {torch.float32}


def test_embeddings_stay_float32_under_autocast(make_config: MakeConfig, make_batch: MakeBatch) -> None:
    """Under bf16 autocast the embeddings have unit norm to float32 precision; bf16 would miss it by 4e-3."""
    model, batch = build_pair_model(make_config(), tokens_width=None, max_views=3), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch)
        # The layers before must have run in bf16, or this test shows nothing.
        assert model.ecg_tower(batch.ecg)[1].dtype == torch.bfloat16
    for embedding in (output.ecg, output.image):
        assert embedding.dtype == torch.float32
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(output.ecg, model(batch).ecg, atol=0.1, rtol=0)


def test_weights_depend_on_the_config_alone(make_config: MakeConfig) -> None:
    """Two builds agree bitwise, leave torch's generator alone, and hold build_ecg_tower's own weights."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_pair_model(make_config(), tokens_width=None, max_views=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = build_pair_model(make_config(), tokens_width=None, max_views=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    config = make_config()
    tower = build_ecg_tower(config.ecg_encoder, config.embedding, config.seed).state_dict()
    assert all(torch.equal(first[f"ecg_tower.{name}"], value) for name, value in tower.items())
    other = build_pair_model(make_config(seed=1), tokens_width=None, max_views=3).state_dict()
    drawn = [name for name, value in first.items() if value.unique().numel() > 2]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("kind", ["pixels", "tokens"])
def test_parameters_suit_deepspeed(make_config: MakeConfig, make_batch: MakeBatch, kind: str) -> None:
    """No 0-d and no strided parameter or gradient; a gradient for every parameter though no label is known; the
    state holds parameters only."""
    tower = None if kind == "pixels" else TokensConfig(width=16, depth=1, heads=2, feedforward=24)
    width, shape = (None, None) if kind == "pixels" else (10, (4, 10))
    config = make_config(image_tower=tower, loss=LossConfig(learnable=True))
    model = build_pair_model(config, tokens_width=width, max_views=3, frames=2)
    batch = make_batch(frames=2, tokens=shape)
    labels, known = torch.full((4, 11), float("nan")), torch.zeros(3)
    pair_loss(model(batch), labels, batch.patient, known=known, passes=1, config=config.loss).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.dim() > 0, name
        assert parameter.is_contiguous(), name
        assert parameter.grad is not None, name
        assert parameter.grad.is_contiguous(), name
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("chunk", [0, 2])
def test_a_pair_does_not_depend_on_its_batch(make_config: MakeConfig, make_batch: MakeBatch, chunk: int) -> None:
    """Each pair alone against the pair in its batch: what makes a global batch independent of the ranks."""
    config = make_config()
    config = dataclasses.replace(config, image_tower=dataclasses.replace(config.image_tower, chunk=chunk))
    model, batch = build_pair_model(config, tokens_width=None, max_views=3), make_batch()
    together = model(batch)
    for row in range(4):
        alone = model(PairBatch(**{name: value[row : row + 1] for name, value in vars(batch).items()}))
        torch.testing.assert_close(alone.ecg[0], together.ecg[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.image[0], together.image[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.stenosis_logits[0], together.stenosis_logits[row], rtol=1e-4, atol=1e-5)


def test_evaluation_windows_are_averaged_before_the_norm(make_config: MakeConfig, make_batch: MakeBatch) -> None:
    """ecg (B, windows, L, T) against the mean of the projections by hand; one window equals the plain batch."""
    model, batch = build_pair_model(make_config(), tokens_width=None, max_views=3), make_batch()
    windows = torch.stack([batch.ecg, batch.ecg.flip(2)], dim=1)
    mean = (model.ecg_tower(windows[:, 0])[1] + model.ecg_tower(windows[:, 1])[1]) / 2
    output = model(dataclasses.replace(batch, ecg=windows))
    torch.testing.assert_close(output.ecg, mean / mean.norm(dim=1, keepdim=True))
    single = model(dataclasses.replace(batch, ecg=batch.ecg[:, None]))
    torch.testing.assert_close(single.ecg, model(batch).ecg)


def test_logit_scale_is_bounded_in_value_only() -> None:
    """exp up to the bound, the bound above it; the derivative there is still the value (straight through)."""
    scale = LogitScale(LossConfig(temperature=0.5, learnable=True, max_logit_scale=100.0))
    for start, value in ((math.log(2.0), 2.0), (math.log(99.0), 99.0), (7.0, 100.0)):
        with torch.no_grad():
            scale.log_scale.fill_(start)
        scale.zero_grad()
        output = scale()
        output.sum().backward()
        assert output.item() == pytest.approx(value, rel=1e-6)
        assert scale.log_scale.grad is not None
        assert scale.log_scale.grad.item() == pytest.approx(value, rel=1e-6)
        assert scale.log_scale.item() == pytest.approx(start)


def test_fixed_temperature_is_a_frozen_parameter() -> None:
    """loss.learnable=false keeps the parameter (checkpoints hold it by name) without a gradient."""
    scale = LogitScale(LossConfig(temperature=0.2))
    assert scale.log_scale.shape == (1,)
    assert not scale.log_scale.requires_grad
    assert not scale().requires_grad


def test_model_learns_to_tell_its_pairs_apart(make_config: MakeConfig, make_batch: MakeBatch) -> None:
    """Twenty-five AdamW steps on eight fixed pairs take the loss far below ln 8, so gradients reach both towers."""
    config = make_config()
    model, batch = build_pair_model(config, tokens_width=None, max_views=3), make_batch((2, 1, 3, 2, 1, 3, 2, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    labels = (torch.rand(8, 11, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    losses = []
    for _ in range(25):
        loss = pair_loss(
            model(batch), labels, batch.patient, known=torch.tensor([8, 16, 64]), passes=1, config=config.loss
        )
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss)
    assert losses[0].contrastive.item() == pytest.approx(math.log(8), abs=0.5)
    assert losses[-1].contrastive < losses[0].contrastive - 0.5
    assert losses[-1].stenosis < losses[0].stenosis - 0.02
