"""Optimizers and their per-tower rates."""

from dataclasses import dataclass

from stence_dist.config.field import check_name, key
from stence_dist.errors import ConfigError


@dataclass
class OptimizerConfig:
    """Peak rates; each follows a linear warm-up, then half a cosine to `final`, as a pure function of the step."""

    name: str = key("which optimizer; set by the group's YAML")
    ecg_lr: float = key("peak learning rate of the ECG tower and its projector", 2e-3)
    image_lr: float = key("peak learning rate of the image tower and its projector", 2e-3)
    scale_lr: float = key("peak learning rate of logit_scale", 2e-3)
    weight_decay: float = key("decoupled weight decay; none on norms, biases and logit_scale", 0.05)
    warmup: float = key("share of the run spent warming up", 0.1)
    final: float = key("learning rate at the end, as a share of the peak", 0.0)

    def __post_init__(self) -> None:
        check_name("optimizer", self, type(self))
        for rate in ("ecg_lr", "image_lr", "scale_lr", "weight_decay"):
            if getattr(self, rate) < 0:
                raise ConfigError(f"optimizer.{rate}={getattr(self, rate):g}. Use 0 or more.")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"optimizer.warmup={self.warmup}. It is a share of the run: use 0 to below 1.")
        if not 0 <= self.final <= 1:
            raise ConfigError(f"optimizer.final={self.final:g}. It is a share of the peak: use 0 to 1.")


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov and Hutter 2019)."""

    name: str = key("set by the group; do not change", "adamw")
    beta1: float = key("decay of the first moment", 0.9)
    beta2: float = key("decay of the second moment", 0.999)
    epsilon: float = key("added to the root of the second moment", 1e-8)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optimizer.{name}={getattr(self, name):g}. Use a decay from 0 to below 1.")
        if self.epsilon <= 0:
            raise ConfigError(f"optimizer.epsilon={self.epsilon:g}. Use a value above 0, e.g. 1e-8.")


@dataclass
class SgdConfig(OptimizerConfig):
    """Plain SGD. Its update is the gradient, which makes distributed runs comparable."""

    name: str = key("set by the group; do not change", "sgd")
    momentum: float = key("momentum", 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"optimizer.momentum={self.momentum:g}. Use 0 (off) to below 1.")
