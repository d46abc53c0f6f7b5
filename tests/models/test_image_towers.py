from collections.abc import Callable

import numpy as np
import pytest
import torch

from stence_dist.batch import PairBatch
from stence_dist.config.image_tower import ImageTowerConfig, PixelsConfig, TokensConfig
from stence_dist.errors import ConfigError
from stence_dist.models import initial_weights
from stence_dist.models.image import ImageTower, build_image_tower
from stence_dist.models.image.pixels import normalize_frames

SMALL = {"width": 16, "depth": 1, "heads": 2, "feedforward": 24}


def _pixels(chunk: int = 0, frames: int = 1) -> ImageTower:
    config = PixelsConfig(**SMALL, channels=[8, 16], local_mean=5, chunk=chunk)
    with initial_weights(0, "test"):
        return build_image_tower(config, tokens_width=None, max_views=4, frames=frames)


def test_frames_are_normalized_as_described() -> None:
    """z-score, then the mean of the square around each pixel, by brute force in numpy."""
    frames = torch.randint(0, 256, (2, 1, 9, 7), dtype=torch.uint8)
    values = frames[:, 0].numpy().astype(np.float64)
    scored = (values - values.mean((1, 2), keepdims=True)) / values.std((1, 2), keepdims=True)
    expected = np.empty_like(scored)
    for y in range(9):
        for x in range(7):
            square = scored[:, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
            expected[:, y, x] = scored[:, y, x] - square.mean((1, 2))
    np.testing.assert_allclose(normalize_frames(frames, 5)[:, 0].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(normalize_frames(frames, 0)[:, 0].numpy(), scored, atol=1e-5)
    assert not normalize_frames(torch.full((1, 1, 9, 7), 40, dtype=torch.uint8), 5).any()


@pytest.mark.parametrize("chunk", [1, 3, 5, 100])
@pytest.mark.parametrize("frames", [1, 2])
def test_chunks_change_neither_output_nor_gradient(
    make_batch: Callable[..., PairBatch], chunk: int, frames: int
) -> None:
    """Queries and all parameter gradients in chunks against one call."""
    batch = make_batch((2, 1, 3), frames=frames)
    gradients = []
    for size in (0, chunk):
        tower = _pixels(size, frames)
        queries = tower(batch.views, batch.view_mask, batch.angulation).queries
        (queries * torch.linspace(-1, 1, queries.numel()).view_as(queries)).sum().backward()
        gradients.append((queries.detach(), {name: value.grad for name, value in tower.named_parameters()}))
    torch.testing.assert_close(gradients[1][0], gradients[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1][1], gradients[0][1], rtol=1e-3, atol=1e-4)


def _count(seen: dict[str, list[int]], name: str, direction: int) -> None:
    seen.setdefault(name, [0, 0])[direction] += 1


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # stored pixels have no gradient
@pytest.mark.parametrize("chunk, calls", [(0, 1), (3, 4), (12, 1), (5, 3)])
def test_calls_do_not_depend_on_the_views(make_batch: Callable[..., PairBatch], chunk: int, calls: int) -> None:
    """ceil(3 pairs x 4 views / chunk) forward and backward passes of every submodule, for few and for many views."""
    tower = _pixels(chunk)
    seen: dict[str, list[int]] = {}
    for name, module in tower.frame_encoder.named_modules():
        for direction, hook in enumerate((module.register_forward_pre_hook, module.register_full_backward_pre_hook)):
            hook(lambda *_, name=name, direction=direction: _count(seen, name, direction))
    for counts in ((1, 1, 1), (4, 4, 4), (2, 1, 3)):
        seen.clear()
        batch = make_batch(counts)
        tower(batch.views, batch.view_mask, batch.angulation).queries.sum().backward()
        assert seen
        assert all(passes == [calls, calls] for passes in seen.values()), seen


def test_padded_views_stay_outside(make_batch: Callable[..., PairBatch]) -> None:
    """Noise in the padding changes nothing; a pair's queries do not depend on its neighbors' views."""
    tower, batch = _pixels(), make_batch((2, 1, 3))
    expected = tower(batch.views, batch.view_mask, batch.angulation).queries
    batch.views[~batch.view_mask] = 200
    batch.angulation[~batch.view_mask] = 17.0
    assert torch.equal(tower(batch.views, batch.view_mask, batch.angulation).queries, expected)
    alone = tower(batch.views[1:2, :1], batch.view_mask[1:2, :1], batch.angulation[1:2, :1])
    torch.testing.assert_close(alone.queries, expected[1:2], rtol=1e-4, atol=1e-5)
    assert torch.equal(alone.pooled, alone.queries[:, 0])


def test_phantom_sized_tower_takes_key_frames() -> None:
    """The recipe's 64-pixel frames with channels 16-24-32-48 and width 64."""
    config = PixelsConfig(width=64, depth=2, heads=4, feedforward=128)
    tower = build_image_tower(config, tokens_width=None, max_views=3)
    views = torch.randint(0, 256, (2, 3, 1, 1, 64, 64), dtype=torch.uint8)
    features = tower(views, torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, 2))
    assert features.queries.shape == (2, 12, 64)
    assert bool(features.queries.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tokens_tower_reads_stored_features(make_batch: Callable[..., PairBatch], dtype: torch.dtype) -> None:
    """Half-precision features give the queries of the same values in float32; order of views does not matter."""
    tower = build_image_tower(TokensConfig(**SMALL), tokens_width=10, max_views=3)
    batch = make_batch((2, 1, 3), tokens=(4, 10))
    views = batch.views.to(dtype)
    features = tower(views, batch.view_mask, batch.angulation)
    torch.testing.assert_close(features.queries, tower(views.float(), batch.view_mask, batch.angulation).queries)
    order = torch.tensor([2, 0, 1])
    turned = tower(views[2:, order], batch.view_mask[2:, order], batch.angulation[2:, order])
    torch.testing.assert_close(turned.queries, features.queries[2:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config, tokens_width, message",
    [
        (PixelsConfig(**SMALL), 384, "Use image_tower=tokens"),
        (TokensConfig(**SMALL), None, "Use image_tower=pixels"),
        (PixelsConfig(width=30, heads=2), None, "width=30"),
        (TokensConfig(width=16, heads=3), 384, "heads=3"),
        (PixelsConfig(**SMALL, local_mean=14), None, "local_mean=14"),
        (PixelsConfig(**SMALL, channels=[]), None, "channels"),
        (PixelsConfig(**SMALL, chunk=-1), None, "chunk=-1"),
    ],
)
def test_towers_that_cannot_be_built_are_refused(
    config: ImageTowerConfig, tokens_width: int | None, message: str
) -> None:
    """A tower for the other kind of shard set and impossible sizes raise ConfigError naming the key."""
    with pytest.raises(ConfigError, match=message):
        build_image_tower(config, tokens_width=tokens_width, max_views=3)
