"""Image towers: what they share, and the visible table of them."""

import importlib
from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from stence_dist.config.image_tower import ImageTowerConfig, PixelsConfig, TokensConfig
from stence_dist.errors import ConfigError
from stence_dist.targets import STENOSIS_TARGETS


class ImageFeatures(NamedTuple):
    """What a pair's views say. A tuple, because ZeRO-3 looks for tensors in tuples and not in dataclasses."""

    pooled: Tensor  # (B, D), the contrastive query
    queries: Tensor  # (B, 12, D): contrastive, patient, RCA, LCA, then the eight major segments


class ImageTower(nn.Module, ABC):
    """A network over a pair's views.

    `forward(views, view_mask (B, V), angulation (B, V, 2))` gives ImageFeatures. Its submodules are called equally
    often on every rank and step, however many views are real: ZeRO-3 hangs otherwise.
    """

    width: int  # D

    @abstractmethod
    def attention(self, views: Tensor, view_mask: Tensor, angulation: Tensor) -> Tensor | None:
        """(B, V, F, N): the share of each token in `pooled`, arguments as of `forward`; None without a decoder.

        For pictures of a few studies, outside training and ZeRO.
        """


# config class -> (module, class). A new tower is a dataclass, a class that takes it, a row here and a YAML.
TOWERS: dict[type[ImageTowerConfig], tuple[str, str]] = {
    PixelsConfig: ("stence_dist.models.image.pixels", "PixelsTower"),
    TokensConfig: ("stence_dist.models.image.tokens", "TokensTower"),
}


def build_image_tower(
    config: ImageTowerConfig, *, tokens_width: int | None, max_views: int, frames: int = 1, tokens: int | None = None
) -> ImageTower:
    """The tower that `config` describes, with fresh weights, for one dataset.

    tokens_width is the width of stored features, None for stored pixels; max_views the most views of any pair;
    frames the frames per view; tokens the stored features per frame, None where that is not known. Raises ConfigError
    where the tower does not fit what is stored, or cannot be built.
    """
    stored = "pixels" if tokens_width is None else "features"
    if isinstance(config, TokensConfig) != (tokens_width is not None):
        choice = "pixels" if tokens_width is None else "tokens"
        raise ConfigError(f"image_tower={config.name}, but the shards hold {stored}. Use image_tower={choice}.")
    if config.width < 4 or config.width % 4 or config.width % config.heads:
        raise ConfigError(
            f"image_tower.width={config.width} with image_tower.heads={config.heads}. "
            "Use a width that 4 (the angulation code) and the heads divide, e.g. width=512, heads=4."
        )
    if isinstance(config, TokensConfig) and tokens_width is not None:
        _check_tokens(config, tokens_width=tokens_width, max_views=max_views, frames=frames, tokens=tokens)
    module, name = TOWERS[type(config)]
    tower: ImageTower = getattr(importlib.import_module(module), name)(
        config, tokens_width=tokens_width, max_views=max_views, frames=frames
    )
    return tower


def _check_tokens(config: TokensConfig, *, tokens_width: int, max_views: int, frames: int, tokens: int | None) -> None:
    """Raise ConfigError where stored features are not what the configured mode reads."""
    if config.mode == "patch":
        if not config.projection and tokens_width != config.width:
            raise ConfigError(
                f"image_tower.projection=false with image_tower.width={config.width}, but the stored tokens are "
                f"{tokens_width} wide. Use image_tower.projection=true, or image_tower.width={tokens_width}."
            )
        return
    outputs = len(STENOSIS_TARGETS)
    if max_views > 1 or frames > 1 or tokens not in (None, outputs):
        raise ConfigError(
            f"image_tower.mode=token reads one view of one frame of {outputs} tokens per study, SegmentMIL's outputs. "
            f"The shards hold up to {max_views} views of {frames} frames of {tokens or 'some'} tokens. "
            "Use image_tower.mode=patch."
        )
