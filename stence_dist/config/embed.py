"""Keys of `launch/embed.py`."""

from dataclasses import dataclass

from stence_dist.config.build import check_wfdb_scale
from stence_dist.config.field import key
from stence_dist.errors import ConfigError


@dataclass
class EmbedConfig:
    """Embed ECG files with a trained tower; the windows of a record are averaged."""

    weights: str = key("ecg_tower.safetensors")
    ecg: str = key("an ECG file, a WFDB record name, or a folder that is searched for ECGs")
    out: str = key("where to write the .npz: features (n,D), embeddings (n,E), record (n,)")
    prepared: bool = key("ecg is a .npy/.npz array (n,L,T) that is not to be prepared again", False)
    wfdb_scale: str = key("millivolts of WFDB records: auto | header | raw", "auto")
    batch_size: int = key("records per forward pass", 64)

    def __post_init__(self) -> None:
        check_wfdb_scale(self.wfdb_scale)
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}. Use 1 or more.")
