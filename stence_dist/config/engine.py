"""How the work is spread over ranks and micro-batches."""

from dataclasses import dataclass

from stence_dist.config.field import key
from stence_dist.errors import ConfigError


@dataclass
class EngineConfig:
    """Batch arithmetic, ZeRO and precision."""

    global_batch_size: int = key("G: pairs per optimizer step over all ranks; use more where there are GPUs", 64)
    accumulation: int = key("A: micro-batches per step", 1)
    negatives: str = key(
        "micro (a row meets the G/A pairs of its micro-batch) | accumulated (it meets all G; costs a second forward)",
        "micro",
    )
    zero_stage: int = key("DeepSpeed ZeRO stage, 0 to 3", 1)
    precision: str = key("auto (bf16 on a GPU, fp32 on CPU) | fp32 | bf16 | fp16 (stage 0 only)", "auto")
    gradient_clipping: float = key("largest gradient norm; 0 = off", 1.0)
    timeout_s: float = key("seconds after which a collective that a rank does not join ends the run", 600.0)
    profile: bool = key("profile ten steps: RUN/profile/ gets a trace per rank and a table of where time went", False)

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"engine.zero_stage={self.zero_stage}. Use 0, 1, 2 or 3.")
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise ConfigError(f"engine.precision={self.precision} is not known. Use auto, fp32, bf16 or fp16.")
        if self.precision == "fp16" and self.zero_stage != 0:
            raise ConfigError(
                f"engine.precision=fp16 with engine.zero_stage={self.zero_stage}: DeepSpeed's loss scale never backs "
                "off there. Use engine.zero_stage=0, or engine.precision=bf16."
            )
        if self.global_batch_size < 2 or self.accumulation < 1:
            raise ConfigError(
                f"engine.global_batch_size={self.global_batch_size}, engine.accumulation={self.accumulation}. "
                "A contrastive batch needs 2 pairs or more, and accumulation 1 or more."
            )
        if self.global_batch_size % self.accumulation:
            raise ConfigError(
                f"engine.accumulation={self.accumulation} does not divide "
                f"engine.global_batch_size={self.global_batch_size}. Use a divisor."
            )
        if self.negatives not in ("micro", "accumulated"):
            raise ConfigError(f"engine.negatives={self.negatives} is not known. Use micro or accumulated.")
        if self.pool < 2:
            raise ConfigError(
                f"engine.accumulation={self.accumulation} leaves engine.global_batch_size={self.global_batch_size} "
                "micro-batches of one pair, which has no negative. Use engine.negatives=accumulated, or less "
                "accumulation."
            )
        if self.timeout_s <= 0:
            raise ConfigError(f"engine.timeout_s={self.timeout_s}. Use seconds above 0, e.g. 600.")
        if self.gradient_clipping < 0:
            raise ConfigError(f"engine.gradient_clipping={self.gradient_clipping}. Use 0 (off) or more.")

    @property
    def pool(self) -> int:
        """The columns that a row of logits meets on any number of ranks: G/A, or G with accumulated negatives."""
        return self.global_batch_size // (self.accumulation if self.negatives == "micro" else 1)

    def micro_batch(self, world_size: int) -> int:
        """B = G/(W*A). Raises ConfigError where W*A does not divide G, naming near values that work."""
        unit = world_size * self.accumulation
        if self.global_batch_size % unit:
            below = self.global_batch_size // unit * unit
            choices = " or ".join(str(value) for value in (below, below + unit) if value >= 2)
            raise ConfigError(
                f"engine.global_batch_size={self.global_batch_size} does not divide over {world_size} ranks x "
                f"{self.accumulation} micro-batches. Use a multiple of {unit}, e.g. {choices}."
            )
        return self.global_batch_size // unit
