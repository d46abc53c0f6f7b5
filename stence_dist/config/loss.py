"""The training objective."""

from dataclasses import dataclass

from stence_dist.config.field import key
from stence_dist.errors import ConfigError


@dataclass
class LossConfig:
    """A contrastive loss plus a weighted stenosis loss on the angiogram's queries."""

    contrastive: str = key(
        "infonce (softmax over the pool, both ways) | sigmoid (SigLIP's, each pair by itself)", "infonce"
    )
    temperature: float = key("temperature; with loss.learnable=true only its start", 0.2)
    bias: float = key("added to every logit of the sigmoid loss; with loss.learnable=true only its start", -10.0)
    learnable: bool = key("learn the temperature, and the bias of the sigmoid loss", False)
    max_logit_scale: float = key("upper bound of the inverse temperature; a learned one is clamped in forward", 100.0)
    stenosis_weight: float = key("weight of the stenosis loss; 0 uses no angiographic label", 0.3)
    patient_weight: float = key("share of the patient target in the stenosis loss", 0.4)
    artery_weight: float = key("share of the two arteries", 0.4)
    segment_weight: float = key("share of the eight segments", 0.2)

    def __post_init__(self) -> None:
        if self.contrastive not in ("infonce", "sigmoid"):
            raise ConfigError(f"loss.contrastive={self.contrastive} is not known. Use infonce or sigmoid.")
        if self.temperature <= 0:
            raise ConfigError(f"loss.temperature={self.temperature}. Use a value above 0, e.g. 0.2.")
        if self.max_logit_scale < 1 / self.temperature * (1 - 1e-6):
            raise ConfigError(
                f"loss.temperature={self.temperature} is an inverse temperature of {1 / self.temperature:g}, above "
                f"loss.max_logit_scale={self.max_logit_scale:g}. Raise one of them."
            )
        for name in ("stenosis_weight", "patient_weight", "artery_weight", "segment_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"loss.{name}={getattr(self, name):g}. Use 0 or more.")
        total = self.patient_weight + self.artery_weight + self.segment_weight
        if abs(total - 1) > 1e-6:
            raise ConfigError(
                f"loss.patient_weight + artery_weight + segment_weight is {total:g}. The three shares must sum to 1."
            )
