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
