"""Keys of `launch/check.py`."""

from dataclasses import dataclass

from stence_dist.config.build import ColumnsConfig
from stence_dist.config.field import group, key
from stence_dist.config.targets import TargetsConfig
from stence_dist.errors import ConfigError


@dataclass
class CheckConfig:
    """Say what a file, a folder, a cohort table or a shard set holds and what is wrong with it. No path, name or date
    of a file's header is ever shown. Exit code 1 where a build would stop or be wrong, 2 for a path that is unknown."""

    path: str = key("ECG or angiogram file, folder of files, cohort table (CSV, Parquet), or shard set")
    out: str | None = key("folder for check.json and check.html; null = text on the terminal alone", None)
    limit: int | None = key("look into about this many recordings, evenly drawn; null = all", None)
    workers: int = key("processes that read files", 2)
    key_file: str | None = key("secret of the patient keys, as the build has it; null = patient_key.txt if there", None)
    targets: TargetsConfig = group("labels that are counted", TargetsConfig)
    columns: ColumnsConfig = group("column names of the cohort table", ColumnsConfig)

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path= is empty. Give a recording, a folder, a cohort table or a shard set.")
        if self.limit is not None and self.limit < 3:
            raise ConfigError(f"limit={self.limit}. Use 3 or more: train, val and test give a row each.")
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers}. Use 1 or more.")
