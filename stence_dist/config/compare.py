"""Keys of `launch/compare.py`."""

from dataclasses import dataclass

from stence_dist.config.cohort import CohortConfig
from stence_dist.config.field import group, key
from stence_dist.config.finetune import LabelledSetConfig, SupervisedConfig, TaskConfig
from stence_dist.config.targets import TargetsConfig
from stence_dist.errors import ConfigError

ARMS = ("probe", "finetune", "scratch", "random", "shuffled", "hand", "age_sex")
NULL_ARMS = ("probe", "finetune", "scratch")


@dataclass
class CompareConfig:
    """Compare ways to get an ECG model from few labels, over paired label draws, on one test split."""

    run_dir: str = key("folder for summary.json and predictions.csv")
    weights: str = key("ecg_tower.safetensors of the pretraining under test")
    stenosis_weight: float | None = key(
        "loss.stenosis_weight that `weights` was pretrained with; null = as its file says, 0.3 where it does not", None
    )
    unsupervised_weights: str | None = key("ecg_tower.safetensors pretrained with loss.stenosis_weight=0", None)
    shuffled_weights: str | None = key("ecg_tower.safetensors pretrained with shuffle_pairs=true", None)
    null: bool = key("the set is a cohort without any effect: probe, finetune and scratch only", False)
    arms: list[str] = key("what to compare; shuffled needs shuffled_weights, else it is left out", list(ARMS))
    labels: list[str] = key("labelled training patients: numbers, shares like 10%, all", ["50", "all"])
    draws: int = key("label draws per number of labels; the same draws for every arm", 5)
    repeats: int = key("training seeds at labels=all, where there is nothing to draw", 2)
    rows: str = key(
        "rows that labels are drawn from: auto (ecg_only where there are any) | ecg_only | paired | all", "auto"
    )
    seed: int = key("seed of initialization, order, augmentation and bootstrap", 0)
    workers: int = key("processes, of one thread each; never changes the result", 2)
    bootstrap: int = key("bootstrap draws (test patients and label draws) for the intervals", 1000)
    level: float = key("level of the intervals", 0.95)
    batch_size: int = key("records per forward pass when scoring", 64)
    data: LabelledSetConfig = group("shards and their reader", LabelledSetConfig)
    cohort: CohortConfig = group("which rows take part", CohortConfig)
    targets: TargetsConfig = group("from percent to labels", TargetsConfig)
    task: TaskConfig = group("what to learn", TaskConfig)
    supervised: SupervisedConfig = group("budget of finetune and scratch", SupervisedConfig)

    def __post_init__(self) -> None:
        if self.rows not in ("auto", "ecg_only", "paired", "all"):
            raise ConfigError(f"rows={self.rows} is not known. Use auto, ecg_only, paired or all.")
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms:
            raise ConfigError(f"arms={self.arms}: {unknown} not known. Use some of: {', '.join(ARMS)}.")
        if not self.labels:
            raise ConfigError("labels=[] leaves nothing to compare. Use e.g. [50,all].")
        for name in ("draws", "repeats", "workers", "bootstrap", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}. Use 1 or more.")
        if self.stenosis_weight is not None and self.stenosis_weight < 0:
            raise ConfigError(f"stenosis_weight={self.stenosis_weight:g}. Use 0 or more.")
        if not 0 < self.level < 1:
            raise ConfigError(f"level={self.level:g}. Use a value between 0 and 1, e.g. 0.95.")
