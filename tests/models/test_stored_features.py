"""The tower over stored features: StenCE's patch mode and token mode, each against a second derivation in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stence_dist.batch import PairBatch
from stence_dist.config.image_tower import PixelsConfig, TokensConfig
from stence_dist.config.loss import LossConfig
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.errors import ConfigError
from stence_dist.losses import pair_loss
from stence_dist.models.image import build_image_tower
from stence_dist.models.image.pool import Attention
from stence_dist.models.image.tokens import TokensTower
from stence_dist.models.pair_model import build_pair_model

SMALL = {"width": 16, "depth": 2, "heads": 4, "feedforward": 24}
COUNTS = (2, 1, 3)


def attended(attention: Attention, queries: Tensor, memory: Tensor) -> Tensor:
    """torch's own multi-head attention (Q, D) with the same weights, without a mask."""
    mixed, _ = functional.multi_head_attention_forward(
        queries[:, None],
        memory[:, None],
        memory[:, None],
        queries.shape[1],
        attention.heads,
        None,
        torch.cat([attention.query.bias, attention.key.bias, attention.value.bias]),
        None,
        None,
        False,
        0.0,
        attention.output.weight,
        attention.output.bias,
        use_separate_proj_weight=True,
        q_proj_weight=attention.query.weight,
        k_proj_weight=attention.key.weight,
        v_proj_weight=attention.value.weight,
        need_weights=False,
    )
    return mixed[:, 0]


def by_pairs(tower: TokensTower, batch: PairBatch) -> Tensor:
    """Queries (B, 12, D) of one pair after the other, from its real views alone: no padding and no mask."""
    pool = tower.pool
    assert pool is not None
    found = []
    for views, angles, count in zip(batch.views, batch.angulation, COUNTS, strict=True):
        memory = []
        for view, angle in zip(views[:count], angles[:count], strict=True):
            for number, tokens in enumerate(view):
                tokens = tokens if tower.projection is None else tower.projection(tokens)
                tokens = tokens if pool.frame_code is None else tokens + pool.frame_code.code[number]
                memory.append(tokens if pool.angulation_code is None else tokens + pool.angulation_code(angle[None]))
        queries = pool.queries
        for layer in pool.layers:
            normed = layer.self_norm(queries)
            queries = queries + attended(layer.self_attention, normed, normed)
            queries = queries + attended(layer.cross_attention, layer.cross_norm(queries), torch.cat(memory))
            hidden = functional.relu(layer.hidden(layer.feedforward_norm(queries)))
            queries = queries + layer.output(hidden)
        found.append(queries)
    return torch.stack(found)


@pytest.mark.parametrize(("projection", "angulation", "frames"), [(True, True, 2), (True, False, 1), (False, False, 1)])
def test_patch_mode_equals_torch_pair_by_pair(
    make_batch: Callable[..., PairBatch], projection: bool, angulation: bool, frames: int
) -> None:
    """Queries and all gradients; (False, False, 1) is StenCE's own form: no layer before the decoder, no angles."""
    width = 10 if projection else 16
    config = TokensConfig(**SMALL, projection=projection, angulation=angulation)
    tower = build_image_tower(config, tokens_width=width, max_views=3, frames=frames).double()
    assert isinstance(tower, TokensTower)
    batch = make_batch(COUNTS, frames=frames, tokens=(4, width))
    views = batch.views.double().requires_grad_()
    batch.views, batch.angulation = views, batch.angulation.double()
    results = []
    for queries in (tower(views, batch.view_mask, batch.angulation).queries, by_pairs(tower, batch)):
        loss = (queries * torch.linspace(-1, 1, queries.numel(), dtype=torch.float64).view_as(queries)).sum()
        gradients = torch.autograd.grad(loss, [views, *tower.parameters()])
        results.append((queries.detach(), gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)
    names = {name.partition(".")[2].partition(".")[0] for name, _ in tower.named_parameters()}
    assert ("angulation_code" in names) == angulation


# What each letter and suffix means, written out for outputs (B, 11, D): patient, RCA, LCA, eight segments.
METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "p": lambda o: o[:, 0],
    "r": lambda o: o[:, 1],
    "l": lambda o: o[:, 2],
    "p_mean": lambda o: o[:, 0],
    "a_mean": lambda o: (o[:, 1] + o[:, 2]) / 2,
    "a_max": lambda o: torch.maximum(o[:, 1], o[:, 2]),
    "rl_mean": lambda o: (o[:, 1] + o[:, 2]) / 2,
    "s_mean": lambda o: sum(o[:, place] for place in range(3, 11)) / 8,
    "s_max": lambda o: o[:, 3:11].max(dim=1).values,
    "prl_max": lambda o: o[:, :3].max(dim=1).values,
    "ps_mean": lambda o: (o[:, 0] + o[:, 3:].sum(dim=1)) / 9,
    "pas_mean": lambda o: o.mean(dim=1),
    "ra_mean": lambda o: (2 * o[:, 1] + o[:, 2]) / 3,  # StenCE concatenates: the RCA counts twice
}


@pytest.mark.parametrize("method", METHODS)
def test_token_mode_takes_the_published_outputs(method: str) -> None:
    """Embedding and the gradient by the stored outputs, in float64; the other queries are the outputs themselves."""
    config = TokensConfig(mode="token", cls_token_method=method)
    tower = build_image_tower(config, tokens_width=6, max_views=1, tokens=11)
    assert tower.width == 6
    assert not list(tower.parameters())
    views = torch.randn(4, 1, 1, 11, 6, dtype=torch.float64, requires_grad=True)
    features = tower(views, torch.ones(4, 1, dtype=torch.bool), torch.zeros(4, 1, 2))
    expected = METHODS[method](views[:, 0, 0])
    torch.testing.assert_close(features.pooled, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(features.queries, torch.cat([expected[:, None], views[:, 0, 0]], dim=1))
    weights = torch.randn(4, 6, dtype=torch.float64)
    gradients = [torch.autograd.grad((pooled * weights).sum(), views)[0] for pooled in (features.pooled, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


def test_token_mode_trains_the_projector_alone(
    make_config: Callable[..., PretrainConfig], make_batch: Callable[..., PairBatch]
) -> None:
    """A pair model's loss and gradients against LayerNorm, two linear layers and InfoNCE written out, in float64; what
    only the stenosis loss reaches gets a gradient of exactly zero."""
    config = make_config(
        image_tower=TokensConfig(mode="token", cls_token_method="a_mean"), loss=LossConfig(stenosis_weight=0)
    )
    model = build_pair_model(config, tokens_width=16, max_views=1, tokens=11).double()
    batch = make_batch((1, 1, 1, 1), tokens=(11, 16))
    batch.ecg, batch.views, batch.angulation = batch.ecg.double(), batch.views.double(), batch.angulation.double()
    labels, known = torch.zeros(4, 11), torch.tensor([4, 8, 32])
    loss = pair_loss(model(batch), labels, batch.patient, known=known, passes=1, config=config.loss).total
    loss.backward()

    layers = model.image_projector
    pooled = batch.views[:, 0, 0, 1:3].mean(dim=1)
    hidden = functional.layer_norm(pooled, (16,), layers.norm.weight, layers.norm.bias)
    hidden = functional.relu(hidden @ layers.hidden.weight.T + layers.hidden.bias)
    image = hidden @ layers.output.weight.T + layers.output.bias
    ecg = model.ecg_tower(batch.ecg)[1]
    logits = functional.normalize(ecg, dim=1) @ functional.normalize(image, dim=1).T * model.logit_scale().detach()
    diagonal = logits.diagonal()
    expected = (logits.logsumexp(dim=1) - diagonal).mean() / 2 + (logits.logsumexp(dim=0) - diagonal).mean() / 2
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-9, atol=0)
    for parameter, gradient in zip(
        layers.parameters(), torch.autograd.grad(expected, list(layers.parameters())), strict=True
    ):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
    assert not model.stenosis_head.weight.grad.any()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mode": "tokens"}, "Use patch or token"),
        ({"cls_token_method": "q"}, "Use letters of p, r, l, a, s"),
        ({"cls_token_method": ""}, "Use letters of"),
        ({"cls_token_method": "p_"}, "Use letters of"),
        ({"cls_token_method": "a_sum"}, "Use letters of"),
        ({"cls_token_method": "a"}, "a_mean or a_max"),
        ({"cls_token_method": "ps"}, "names 9 outputs"),
    ],
)
def test_methods_that_mean_nothing_are_refused(keys: dict[str, str], message: str) -> None:
    """Unknown letters and suffixes, and several outputs without a word on how they become one."""
    with pytest.raises(ConfigError, match=message):
        TokensConfig(**keys)


@pytest.mark.parametrize(
    ("config", "stored", "message"),
    [
        (TokensConfig(mode="token"), {"max_views": 1, "tokens": 1369}, "frames of 1369 tokens"),
        (TokensConfig(mode="token"), {"max_views": 4, "tokens": 11}, "up to 4 views"),
        (TokensConfig(mode="token"), {"max_views": 1, "frames": 2, "tokens": 11}, "of 2 frames"),
        (TokensConfig(projection=False), {"max_views": 4, "tokens": 1369}, "stored tokens are 384 wide"),
    ],
)
def test_shards_that_a_mode_cannot_read_are_refused(config: TokensConfig, stored: dict[str, int], message: str) -> None:
    """The error says what the shards hold and which key to change."""
    with pytest.raises(ConfigError, match=f"(?s){message}.*Use image_tower"):
        build_image_tower(config, tokens_width=384, **stored)


def test_token_mode_refuses_a_stenosis_loss() -> None:
    """Nothing that is stored can learn from it; StenCE switches to patch mode by itself."""
    with pytest.raises(ConfigError, match=r"Use loss\.stenosis_weight=0, or image_tower\.mode=patch"):
        PretrainConfig(run_dir="unused", image_tower=TokensConfig(mode="token"))
    PretrainConfig(run_dir="unused", image_tower=PixelsConfig())
