"""Keys of `shards/pair.py`."""

from dataclasses import dataclass

from stence_dist.config.field import key
from stence_dist.errors import ConfigError


@dataclass
class PairConfig:
    """Join a table of ECGs and a table of studies, by patient and date, into a cohort table."""

    ecg: str = key("table of ECGs, CSV or Parquet: patient_id, date, ecg_path and whatever else is known")
    studies: str = key(
        "table of studies: patient_id, date, study_path, seg_1 ... seg_16 and whatever else is known; of a column that "
        "both have, the ECGs' is kept, but of seg_* the studies'"
    )
    window_days: float = key("largest distance between ECG and study, days")
    out: str = key("where to write the cohort table; beside it OUT.left_out.csv says what fell out and why")
    policy: str = key(
        "nearest (one ECG per study) | all (every ECG, with its nearest study) | before (last one)", "nearest"
    )
    keep_unpaired: bool = key("keep ECGs without a study as ECG-only rows", False)
    patient_id: str = key("column of both tables", "patient_id")
    ecg_date: str = key("column of the ECG table: YYYY-MM-DD or YYYYMMDD, with or without a time", "date")
    study_date: str = key("column of the study table, likewise", "date")

    def __post_init__(self) -> None:
        if self.policy not in ("nearest", "all", "before"):
            raise ConfigError(f"policy={self.policy} is not known. Use nearest, all or before.")
        if not 0 <= self.window_days <= 36500:
            raise ConfigError(f"window_days={self.window_days:g}. Use 0 to 36500 days.")
