"""Keys of `launch/import_weights.py`."""

from dataclasses import dataclass

from stence_dist.config.ecg_encoder import OTIS_SIZES
from stence_dist.config.field import key
from stence_dist.errors import ConfigError

KINDS = (*OTIS_SIZES, "stence")


@dataclass
class ImportWeightsConfig:
    """Turn a published OTiS or StenCE checkpoint into an ECG tower that embed.py and finetune.py take as weights=."""

    source: str = key("checkpoint: otis_base.pth, otis_large.pth, otis_huge.pth, or an ecg_last.pt of StenCE")
    as_: str = key(f"what it is: {' | '.join(KINDS)}")
    out: str = key("where to write the tower, e.g. weights.safetensors")
    seconds: float = key("length of one window, seconds", 3.0)

    def __post_init__(self) -> None:
        if self.as_ not in KINDS:
            raise ConfigError(f"as={self.as_}. Use one of: {', '.join(KINDS)}.")
        if self.seconds <= 0:
            raise ConfigError(f"seconds={self.seconds:g}. Use a length above 0.")
