"""Image towers: what happens between stored views and the decoder's queries."""

from dataclasses import dataclass

from stence_dist.config.field import check_name, key
from stence_dist.errors import ConfigError


@dataclass
class ImageTowerConfig:
    """SegmentMIL's query decoder over the tokens of a pair's views; the part that every image tower shares."""

    name: str = key("which tower; set by the group's YAML")
    width: int = key("decoder width D", 512)
    depth: int = key("decoder layers", 2)
    heads: int = key("attention heads", 4)
    feedforward: int = key("hidden width of the decoder's feed-forward", 2048)

    def __post_init__(self) -> None:
        check_name("image_tower", self, type(self))
        for name in ("depth", "heads", "feedforward"):
            if getattr(self, name) < 1:
                raise ConfigError(f"image_tower.{name}={getattr(self, name)}. Use 1 or more.")


@dataclass
class TokensConfig(ImageTowerConfig):
    """Stored backbone features: one linear layer to the decoder's width, then the decoder."""

    name: str = key("set by the group; do not change", "tokens")


@dataclass
class PixelsConfig(ImageTowerConfig):
    """A small CNN on key frames: local mean subtracted, a mean and a soft-maximum token per frame, then the decoder."""

    name: str = key("set by the group; do not change", "pixels")
    width: int = key("decoder width D", 64)
    depth: int = key("decoder layers", 1)
    feedforward: int = key("hidden width of the decoder's feed-forward", 128)
    channels: list[int] = key("channels of the CNN's stages; each halves the resolution", [24, 48])
    local_mean: int = key("side of the square whose mean is subtracted from each pixel; 0 = off", 15)
    chunk: int = key("views per call of the CNN, for memory; 0 = all in one call", 64)
