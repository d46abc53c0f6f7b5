"""How percent stenosis becomes labels."""

from dataclasses import dataclass

from stence_dist.config.field import key
from stence_dist.errors import ConfigError


@dataclass
class TargetsConfig:
    """From segment percentages to labels; applied at load, never in shards."""

    threshold: float = key("percent diameter stenosis from which (>=) a segment counts as severe", 70.0)
    segment_thresholds: dict[int, float] = key("other thresholds per AHA segment, e.g. {5: 50} for the left main", {})
    unreported: str = key("what an unreported segment means: unknown | normal (0 %)", "unknown")
    segments: str = key("segments that feed patient, rca and lca: all (16) | major (StenCE's 8)", "all")

    def __post_init__(self) -> None:
        if self.unreported not in ("unknown", "normal"):
            raise ConfigError(f"targets.unreported={self.unreported} is not known. Use unknown or normal.")
        if self.segments not in ("all", "major"):
            raise ConfigError(f"targets.segments={self.segments} is not known. Use all or major.")
        _check_percent("threshold", self.threshold)
        for segment, percent in self.segment_thresholds.items():
            if not 1 <= segment <= 16:
                raise ConfigError(f"targets.segment_thresholds names segment {segment}. AHA segments are 1 to 16.")
            _check_percent(f"segment_thresholds of segment {segment}", percent)

    def threshold_of(self, segment: int) -> float:
        """The severity threshold of one AHA segment, in percent."""
        return self.segment_thresholds.get(segment, self.threshold)


def _check_percent(name: str, percent: float) -> None:
    if not 0 < percent <= 100:
        raise ConfigError(f"targets.{name} is {percent}. Use percent diameter stenosis above 0, up to 100.")
