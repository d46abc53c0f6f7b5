"""Image towers: what happens between stored views and the decoder's queries."""

from dataclasses import dataclass

from stence_dist.config.field import check_name, key
from stence_dist.errors import ConfigError

# SegmentMIL's outputs, as StenCE's `cls_token_method` names them: places among the 11 of `targets.STENOSIS_TARGETS`.
OUTPUT_LETTERS = {"p": (0,), "r": (1,), "l": (2,), "a": (1, 2), "s": tuple(range(3, 11))}


@dataclass
class ImageTowerConfig:
    """SegmentMIL's query decoder over the tokens of a pair's views; the part that every image tower shares."""

    name: str = key("which tower; set by the group's YAML")
    width: int = key("decoder width D", 512)
    depth: int = key("decoder layers", 2)
    heads: int = key("attention heads", 4)
    feedforward: int = key("hidden width of the decoder's feed-forward", 2048)
    angulation: bool = key("add SegmentMIL's code of a view's C-arm angles to its tokens (StenCE adds none)", True)

    def __post_init__(self) -> None:
        check_name("image_tower", self, type(self))
        for name in ("width", "depth", "heads", "feedforward"):
            if getattr(self, name) < 1:
                raise ConfigError(f"image_tower.{name}={getattr(self, name)}. Use 1 or more.")


@dataclass
class TokensConfig(ImageTowerConfig):
    """Stored features: patch tokens of all views for the decoder, or a study's 11 SegmentMIL outputs as they are."""

    name: str = key("set by the group; do not change", "tokens")
    mode: str = key("patch (the decoder reads stored patch tokens) | token (SegmentMIL's outputs are stored)", "patch")
    projection: bool = key(
        "patch mode: a linear layer to the decoder's width; false for tokens that have it already, as StenCE's", True
    )
    cls_token_method: str = key(
        "token mode: which outputs meet the ECG: p patient, r RCA, l LCA, a both arteries, s segments, or several "
        "letters; more than one output needs _mean or _max, e.g. prl_max",
        "p",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("patch", "token"):
            raise ConfigError(f"image_tower.mode={self.mode}. Use patch or token.")
        self.chosen_outputs()

    def chosen_outputs(self) -> tuple[list[int], str]:
        """(places among a study's 11 stored outputs, mean | max | "" for one) that `cls_token_method` names.

        A place that two letters name counts twice in a mean, as in StenCE. Raises ConfigError for anything else.
        """
        letters, underscore, how = self.cls_token_method.partition("_")
        places = [place for letter in letters for place in OUTPUT_LETTERS.get(letter, (-1,))]
        if not places or -1 in places or (underscore and how not in ("mean", "max")):
            raise ConfigError(
                f"image_tower.cls_token_method={self.cls_token_method}. Use letters of {', '.join(OUTPUT_LETTERS)}, "
                "then _mean or _max, e.g. p, a_mean, prl_max."
            )
        if len(places) > 1 and not how:
            raise ConfigError(
                f"image_tower.cls_token_method={self.cls_token_method} names {len(places)} outputs. "
                f"Say how they become one: {self.cls_token_method}_mean or {self.cls_token_method}_max."
            )
        return places, how


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
