"""Small pair models and batches for the tests of this folder."""

from collections.abc import Callable, Sequence

import pytest
import torch

from stence_dist.batch import PairBatch
from stence_dist.config.ecg_encoder import ResNetConfig
from stence_dist.config.image_tower import ImageTowerConfig, PixelsConfig
from stence_dist.config.loss import LossConfig
from stence_dist.config.pretrain import PretrainConfig


@pytest.fixture
def make_config() -> Callable[..., PretrainConfig]:
    """A pretraining config with towers of a few channels."""

    def make(
        *, seed: int = 0, image_tower: ImageTowerConfig | None = None, loss: LossConfig | None = None, depth: int = 1
    ) -> PretrainConfig:
        pixels = PixelsConfig(width=16, depth=depth, heads=2, feedforward=24, channels=[8, 16], local_mean=5)
        return PretrainConfig(
            run_dir="unused",
            steps=1,
            seed=seed,
            embedding=6,
            ecg_encoder=ResNetConfig(seconds=0.5, windows=3, widths=[8, 16], kernel=5),
            image_tower=image_tower or pixels,
            loss=loss or LossConfig(),
        )

    return make


@pytest.fixture
def make_batch() -> Callable[..., PairBatch]:
    """Random pairs with the given numbers of real views each."""

    def make(
        counts: Sequence[int] = (2, 1, 3, 2), *, seed: int = 0, frames: int = 1, tokens: tuple[int, int] | None = None
    ) -> PairBatch:
        random = torch.Generator().manual_seed(seed)
        rows, most = len(counts), max(counts)
        mask = torch.arange(most)[None, :] < torch.tensor(counts)[:, None]
        if tokens is None:
            views = torch.randint(0, 256, (rows, most, frames, 1, 24, 24), generator=random, dtype=torch.uint8)
        else:
            views = torch.randn(rows, most, frames, *tokens, generator=random)
        views[~mask] = 0
        angulation = torch.randn(rows, most, 2, generator=random) * 40
        angulation[0, 0] = float("nan")
        angulation[~mask] = float("nan")
        return PairBatch(
            ecg=torch.randn(rows, 12, 250, generator=random),
            views=views,
            view_mask=mask,
            angulation=angulation,
            segments=torch.full((rows, 16), float("nan")),
            patient=torch.arange(rows),
            sample=torch.arange(rows),
            keep_path=torch.zeros(rows, 0, dtype=torch.bool),
        )

    return make
