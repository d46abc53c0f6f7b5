"""Keys of `shards/build.py`."""

from dataclasses import dataclass

from stence_dist.config.field import group, key
from stence_dist.errors import ConfigError


@dataclass
class ColumnsConfig:
    """Names that the cohort table uses for the known columns."""

    patient_id: str = key("patient; hashed with the key file and never stored", "patient_id")
    ecg_path: str = key("ECG file or WFDB record name, relative to the table", "ecg_path")
    study_path: str = key("folder of the angiogram, relative to the table; empty = ECG only", "study_path")
    days_between: str = key("study minus ECG, days", "days_between")
    age: str = key("years", "age")
    sex: str = key("M or F", "sex")
    site: str = key("hospital", "site")
    split: str = key("train, val or test; may be absent", "split")
    device: str = key("ECG device; may be absent", "device")
    acute: str = key("0 or 1; may be absent", "acute")
    prior_revascularization: str = key("0 or 1; may be absent", "prior_revascularization")
    after_procedure: str = key("0 or 1: the ECG was taken after the procedure; may be absent", "after_procedure")
    high_pass_hz: str = key("lower end of the ECG's filter band, Hz; may be absent", "high_pass_hz")
    low_pass_hz: str = key("its upper end, Hz; may be absent", "low_pass_hz")
    lvef: str = key("percent; may be absent", "lvef")
    seg_1: str = key("percent diameter stenosis, proximal RCA", "seg_1")
    seg_2: str = key("mid RCA", "seg_2")
    seg_3: str = key("distal RCA", "seg_3")
    seg_4: str = key("R-PDA", "seg_4")
    seg_5: str = key("left main", "seg_5")
    seg_6: str = key("proximal LAD", "seg_6")
    seg_7: str = key("mid LAD", "seg_7")
    seg_8: str = key("distal LAD", "seg_8")
    seg_9: str = key("first diagonal", "seg_9")
    seg_10: str = key("second diagonal", "seg_10")
    seg_11: str = key("proximal LCx", "seg_11")
    seg_12: str = key("obtuse marginal", "seg_12")
    seg_13: str = key("mid and distal LCx", "seg_13")
    seg_14: str = key("posterolateral", "seg_14")
    seg_15: str = key("L-PDA", "seg_15")
    seg_16: str = key("ramus intermedius", "seg_16")


@dataclass
class BuildConfig:
    """Build a shard set from a cohort table (cohort= and out=), or examine one that is there (verify=)."""

    cohort: str | None = key("cohort table, CSV or Parquet, one row per recording", None)
    out: str | None = key("folder of the shard set; a build that was stopped goes on where it was", None)
    verify: str | None = key("shard set to examine instead: every name, size, CRC-32 and sha256", None)
    image_size: int = key("side of the stored frames, pixels (64 small CNN, 518 DINOv2)", 64)
    frames_per_view: int = key("frames stored per run, around its key frame", 1)
    frame_spacing: int = key("distance between them, in frames of the run", 1)
    mask_top: float = key("share of a frame's height that is blacked out at its top, against burned-in text", 0.0)
    mask_bottom: float = key("the same at its bottom; other burned-in text is not removed", 0.0)
    workers: int = key("processes that build shards; never changes a byte", 2)
    limit: int | None = key("build about this many rows, drawn from each split in proportion; null = all", None)
    split_seed: int = key("seed of the split by patient and of the order in shards", 0)
    shard_size: int = key("cohort rows per shard", 1000)
    rejects: str | None = key("where to list rejected rows; null = OUT/rejects.csv", None)
    key_file: str | None = key(
        "secret of the patient keys; null = patient_key.txt beside the table, made if absent", None
    )
    wfdb_scale: str = key(
        "millivolts of WFDB records: header (its gains) | raw (1,000 ADC units per mV) | "
        "auto (header, unless Einthoven's law holds on the raw values only)",
        "auto",
    )
    columns: ColumnsConfig = group("column names of the cohort table", ColumnsConfig)

    def __post_init__(self) -> None:
        if self.verify is None and not (self.cohort and self.out):
            raise ConfigError("Give cohort=TABLE and out=FOLDER to build a shard set, or verify=FOLDER to examine one.")
        if self.verify is not None and (self.cohort or self.out):
            raise ConfigError("verify= examines a set that is there; leave out cohort= and out=.")
        for name in ("image_size", "frames_per_view", "frame_spacing", "workers", "shard_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}. Use 1 or more.")
        if self.limit is not None and self.limit < 3:
            raise ConfigError(f"limit={self.limit}. Use 3 or more: train, val and test need a row each.")
        if self.image_size > 4096:
            raise ConfigError(f"image_size={self.image_size}. Use 4096 or less.")
        if min(self.mask_top, self.mask_bottom) < 0 or not self.mask_top + self.mask_bottom < 1:
            raise ConfigError(
                f"mask_top={self.mask_top:g}, mask_bottom={self.mask_bottom:g}. Use shares of the height that leave "
                "something."
            )
        check_wfdb_scale(self.wfdb_scale)


def check_wfdb_scale(value: str) -> None:
    """Raise ConfigError for a `wfdb_scale` that is not known."""
    if value not in ("auto", "header", "raw"):
        raise ConfigError(f"wfdb_scale={value} is not known. Use auto, header or raw.")
