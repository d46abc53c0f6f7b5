"""ECG encoders and what each expects of a signal."""

from dataclasses import dataclass

from stence_dist.config.field import check_name, key
from stence_dist.errors import ConfigError


@dataclass
class EcgEncoderConfig:
    """What every ECG encoder shares: the part of its spec that a user may choose."""

    name: str = key("which encoder; set by the group's YAML")
    seconds: float = key("length of one window, seconds", 3.0)
    windows: int = key("evaluation windows per record, evenly spread; 1 = the first", 1)
    drop_path: float = key("probability of skipping a residual branch, drawn per sample", 0.0)

    def __post_init__(self) -> None:
        check_name("ecg_encoder", self, type(self))
        if self.seconds <= 0:
            raise ConfigError(f"ecg_encoder.seconds={self.seconds:g}. Use a length above 0.")
        if self.windows < 1:
            raise ConfigError(f"ecg_encoder.windows={self.windows}. Use 1 window or more.")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"ecg_encoder.drop_path={self.drop_path:g}. Use a probability from 0 to below 1.")


@dataclass
class ResNetConfig(EcgEncoderConfig):
    """A small 1-D pre-activation ResNet with GroupNorm at 500 Hz; its stem averages down to 125 Hz."""

    name: str = key("set by the group; do not change", "resnet")
    widths: list[int] = key("channels of the stages; each stage after the first halves the rate", [24, 32, 48, 64])
    kernel: int = key("kernel size of all convolutions, samples", 7)


# Width, depth and heads of the published OTiS encoders (vit_{base,large,huge}Deep_patchX); each has a YAML of its name.
OTIS_SIZES = {"otis_base": (192, 12, 3), "otis_large": (384, 18, 6), "otis_huge": (576, 24, 8)}
OTIS_LEADS = 12
MLP_KINDS = ("gelu", "swiglu")


@dataclass
class OtisConfig(EcgEncoderConfig):
    """The OTiS encoder: a transformer over patches of single leads at 500 Hz; 7.1 M weights at its base size."""

    name: str = key("set by the group; do not change", "otis")
    drop_path: float = key("probability of skipping the last block's branches; falls linearly to 0 at the first", 0.1)
    width: int = key("D: width of the tokens", OTIS_SIZES["otis_base"][0])
    depth: int = key("transformer blocks, of two residual branches each", OTIS_SIZES["otis_base"][1])
    heads: int = key("attention heads", OTIS_SIZES["otis_base"][2])
    mlp: str = key("gelu (as published) | swiglu (as in OTiS's code since 2026)", "gelu")
    mlp_hidden: int = key("width inside the MLPs; 0 = four times the width", 0)
    patch: int = key("samples per token", 24)
    positions: int = key("time positions that are stored; longer windows stretch them, shorter ones use the first", 42)
    domain_rows: int = key("rows of the table of signal channels; row 0 is padding", 39)
    ecg_offset: int = key("rows of other domains before the ECG: lead I has row 1 + ecg_offset", 4)
    checkpointing: bool = key("recompute each block in the backward pass: less memory, about a third more time", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("width", "depth", "heads", "patch", "positions"):
            if getattr(self, field) < 1:
                raise ConfigError(f"ecg_encoder.{field}={getattr(self, field)}. Use 1 or more.")
        if self.width % 4 or self.width % self.heads:
            raise ConfigError(
                f"ecg_encoder.width={self.width} with ecg_encoder.heads={self.heads}. "
                "Use a width that 4 (the position code) and the heads divide, e.g. width=192, heads=3."
            )
        if self.mlp not in MLP_KINDS:
            raise ConfigError(f"ecg_encoder.mlp={self.mlp}. Use {' or '.join(MLP_KINDS)}.")
        if self.mlp_hidden < 0:
            raise ConfigError(f"ecg_encoder.mlp_hidden={self.mlp_hidden}. Use a width, or 0 (four times the width).")
        if self.ecg_offset < 0 or self.domain_rows <= self.ecg_offset + OTIS_LEADS:
            raise ConfigError(
                f"ecg_encoder.domain_rows={self.domain_rows} with ecg_encoder.ecg_offset={self.ecg_offset}: the leads "
                f"need rows {self.ecg_offset + 1} to {self.ecg_offset + OTIS_LEADS}. "
                "Use the published 39 and 4, or 13 and 0 for ECGs alone."
            )
