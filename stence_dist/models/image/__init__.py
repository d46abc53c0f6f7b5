"""Image towers: what they share, and the visible table of them."""

import importlib
from typing import NamedTuple

from torch import Tensor, nn

from stence_dist.config.image_tower import ImageTowerConfig, PixelsConfig, TokensConfig
from stence_dist.errors import ConfigError


class ImageFeatures(NamedTuple):
    """What a pair's views say. A tuple, because ZeRO-3 looks for tensors in tuples and not in dataclasses."""

    pooled: Tensor  # (B, D), the contrastive query
    queries: Tensor  # (B, 12, D): contrastive, patient, RCA, LCA, then the eight major segments


class ImageTower(nn.Module):
    """A network over a pair's views.

    `forward(views, view_mask (B, V), angulation (B, V, 2))` gives ImageFeatures. Its submodules are called equally
    often on every rank and step, however many views are real: ZeRO-3 hangs otherwise.
    """

    width: int  # D


# config class -> (module, class). A new tower is a dataclass, a class that takes it, a row here and a YAML.
TOWERS: dict[type[ImageTowerConfig], tuple[str, str]] = {
    PixelsConfig: ("stence_dist.models.image.pixels", "PixelsTower"),
    TokensConfig: ("stence_dist.models.image.tokens", "TokensTower"),
}


def build_image_tower(
    config: ImageTowerConfig, *, tokens_width: int | None, max_views: int, frames: int = 1
) -> ImageTower:
    """The tower that `config` describes, with fresh weights, for one dataset.

    tokens_width is the width of stored features, None for stored pixels; max_views the most views of any pair;
    frames the frames per view. Raises ConfigError where the tower does not fit what is stored, or cannot be built.
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
    module, name = TOWERS[type(config)]
    tower: ImageTower = getattr(importlib.import_module(module), name)(
        config, tokens_width=tokens_width, max_views=max_views, frames=frames
    )
    return tower
