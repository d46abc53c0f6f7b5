"""Keys of `launch/finetune.py` and of the label-efficiency comparison."""

from dataclasses import dataclass

from stence_dist.config.cohort import CohortConfig
from stence_dist.config.data import EcgAugmentConfig
from stence_dist.config.ecg_encoder import EcgEncoderConfig, ResNetConfig
from stence_dist.config.field import group, key
from stence_dist.config.targets import TargetsConfig
from stence_dist.errors import ConfigError


@dataclass
class LabelledSetConfig:
    """The shard set and its reader."""

    shards: str = key("folder that shards/build.py wrote")
    verify: str = key("CRC-32 checks while reading: off | first_pass | always", "first_pass")

    def __post_init__(self) -> None:
        if self.verify not in ("off", "first_pass", "always"):
            raise ConfigError(f"data.verify={self.verify} is not known. Use off, first_pass or always.")


@dataclass
class LabelledDataConfig(LabelledSetConfig):
    """The shard set and its reader, which may have processes of its own."""

    workers: int = key("loader processes; 0 loads in the training process. Never changes the result", 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 0:
            raise ConfigError(f"data.workers={self.workers}. Use 0 or more.")


@dataclass
class TaskConfig:
    """What is learned from labels."""

    target: str = key("patient | rca | lca | lm | lad | lcx | seg_1 ... seg_16 | label_* of the cohort", "patient")


@dataclass
class SupervisedConfig:
    """Budget of `finetune` and `scratch`; None = by the number of labels, log-interpolated."""

    steps: int | None = key("updates; null = 60 / 150 / 500 at 50 / 200 / 1,000 labels and more", None)
    batch_size: int = key("largest batch", 64)
    lr: float = key("peak AdamW rate", 1e-3)
    weight_decay: float = key("AdamW weight decay", 0.05)
    warmup: float = key("share of the updates spent warming up", 0.1)
    augment: EcgAugmentConfig = group("training augmentation", EcgAugmentConfig)

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 1) or self.batch_size < 1 or self.lr <= 0:
            raise ConfigError(
                f"supervised.steps={self.steps}, batch_size={self.batch_size}, lr={self.lr:g}. Use values above 0."
            )
        if self.weight_decay < 0:
            raise ConfigError(f"supervised.weight_decay={self.weight_decay:g}. Use 0 or more.")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"supervised.warmup={self.warmup}. It is a share of the updates: use 0 to below 1.")


@dataclass
class FinetuneConfig:
    """Teach an ECG tower from labels and measure it on the untouched test split. One process, plain torch."""

    run_dir: str = key("folder for metrics.json and predictions.csv")
    weights: str | None = key("ecg_tower.safetensors; may be left out for mode=scratch", None)
    mode: str = key("probe (frozen features, logistic regression) | finetune | scratch", "probe")
    labels: str = key("labelled training patients to use: all, a number, or a share like 10%", "all")
    label_seed: int = key("which draw of labels; draws are stratified, nested and by patient", 0)
    rows: str = key("train and validation rows: auto (ecg_only where there are any) | ecg_only | paired | all", "auto")
    seed: int = key("seed of initialization, order and augmentation", 0)
    bootstrap: int = key("patient-level bootstrap draws for the intervals", 1000)
    level: float = key("level of the intervals", 0.95)
    batch_size: int = key("records per forward pass when scoring", 64)
    data: LabelledDataConfig = group("shards and their reader", LabelledDataConfig)
    cohort: CohortConfig = group("which rows take part", CohortConfig)
    targets: TargetsConfig = group("from percent to labels", TargetsConfig)
    task: TaskConfig = group("what to learn", TaskConfig)
    ecg_encoder: EcgEncoderConfig = group("tower of mode=scratch without weights", ResNetConfig)
    supervised: SupervisedConfig = group("budget of finetune and scratch", SupervisedConfig)

    def __post_init__(self) -> None:
        if self.mode not in ("probe", "finetune", "scratch"):
            raise ConfigError(f"mode={self.mode} is not known. Use probe, finetune or scratch.")
        if self.rows not in ("auto", "ecg_only", "paired", "all"):
            raise ConfigError(f"rows={self.rows} is not known. Use auto, ecg_only, paired or all.")
        if self.bootstrap < 1 or not 0 < self.level < 1 or self.batch_size < 1:
            raise ConfigError(
                f"bootstrap={self.bootstrap}, level={self.level:g}, batch_size={self.batch_size}. "
                "Use 1 draw or more, a level between 0 and 1, and 1 record or more."
            )
        if self.mode != "scratch" and not self.weights:
            raise ConfigError(f"mode={self.mode} needs weights=RUN/ecg_tower.safetensors.")
