"""Keys of `launch/pretrain.py`."""

from dataclasses import dataclass

from stence_dist.config.cohort import CohortConfig
from stence_dist.config.data import DataConfig
from stence_dist.config.ecg_encoder import EcgEncoderConfig, ResNetConfig
from stence_dist.config.engine import EngineConfig
from stence_dist.config.field import group, key
from stence_dist.config.image_tower import ImageTowerConfig, PixelsConfig, TokensConfig
from stence_dist.config.loss import LossConfig
from stence_dist.config.optimizer import AdamWConfig, OptimizerConfig
from stence_dist.config.targets import TargetsConfig
from stence_dist.errors import ConfigError


@dataclass
class PretrainConfig:
    """Contrastive pretraining of two towers on pairs. Resumes when run_dir holds an unfinished run of this config."""

    run_dir: str = key("folder of the run: config, metrics, checkpoints, weights")
    steps: int | None = key("length in optimizer steps; null = by epochs", None)
    epochs: float = key("length in passes over the training pairs, where steps is null", 30.0)
    seed: int = key("seed of initialization, order and augmentation", 0)
    init_from: str | None = key(
        "ECG tower's file to start from; ecg_encoder must choose its kind; null = fresh weights", None
    )
    embedding: int = key("width E of the joint embedding", 256)
    log_every: int = key("steps between rows of metrics.jsonl", 10)
    save_every: int = key("steps between checkpoints", 200)
    eval_every: int = key("steps between validations; one also ends the run", 200)
    keep_last: int = key("checkpoints to keep, beside the best", 2)
    best_metric: str = key("validation metric that chooses the best weights; larger is better", "val/recall@5")
    reference_samples: int = key("training pairs embedded as reference for kNN and probe in validation", 1024)
    knn_neighbors: int = key("nearest reference pairs that vote in val/knn_auroc", 5)
    knn_distance: str = key("cosine (of standardized embeddings) | euclidean (of embeddings as they are)", "cosine")
    pictures_every: int = key("validations between pictures in TensorBoard; the last one has some, too; 0 = none", 5)
    shuffle_pairs: bool = key("control: pair every ECG with another patient's study; nothing should be learned", False)
    dry_run: bool = key("two steps of everything in RUN_DIR.dry_run, which is removed afterwards", False)
    data: DataConfig = group("shards and their reader", DataConfig)
    cohort: CohortConfig = group("which rows take part", CohortConfig)
    targets: TargetsConfig = group("from percent to labels", TargetsConfig)
    ecg_encoder: EcgEncoderConfig = group("ECG tower", ResNetConfig)
    image_tower: ImageTowerConfig = group("image tower", PixelsConfig)
    loss: LossConfig = group("objective", LossConfig)
    optimizer: OptimizerConfig = group("optimizer", AdamWConfig)
    engine: EngineConfig = group("ranks, micro-batches, precision", EngineConfig)

    def __post_init__(self) -> None:
        if self.epochs <= 0 or (self.steps is not None and self.steps < 1):
            raise ConfigError(f"steps={self.steps}, epochs={self.epochs:g}. A run is 1 step or longer.")
        if self.keep_last < 2:
            raise ConfigError(f"keep_last={self.keep_last}. Use 2 or more: a damaged newest checkpoint needs a spare.")
        if self.knn_distance not in ("cosine", "euclidean"):
            raise ConfigError(f"knn_distance={self.knn_distance}. Use cosine or euclidean.")
        tower = self.image_tower
        if isinstance(tower, TokensConfig) and tower.mode == "token" and self.loss.stenosis_weight > 0:
            raise ConfigError(
                f"loss.stenosis_weight={self.loss.stenosis_weight:g} with image_tower.mode=token: stored outputs of "
                "SegmentMIL cannot learn stenosis any more. Use loss.stenosis_weight=0, or image_tower.mode=patch."
            )
        if self.pictures_every < 0:
            raise ConfigError(f"pictures_every={self.pictures_every}. Use 0 (none) or more.")
        for name in ("log_every", "save_every", "eval_every", "embedding", "reference_samples", "knn_neighbors"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}. Use 1 or more.")
