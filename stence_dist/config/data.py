"""Where samples come from and how the training reader treats them."""

from dataclasses import dataclass

from stence_dist.config.field import group, key
from stence_dist.errors import ConfigError


@dataclass
class EcgAugmentConfig:
    """Training augmentation of the prepared ECG; every draw depends on (seed, position, sample) only."""

    random_crop: bool = key("crop the ECG at a random place instead of the spec's first window", True)
    stretch: float = key("shortest share of the window that is stretched to its length; 1 = off (OTiS: 0.75)", 1.0)
    phase_probability: float = key("probability of turning the phase of each frequency (OTiS: 0.5)", 0.0)
    phase_noise: float = key("largest turn, alike for all leads, as a share of a full one", 0.075)
    jitter: float = key("standard deviation of a factor around 1 for every value (OTiS: 0.12)", 0.0)
    rescale: float = key("standard deviation of one factor around 1 for all leads, sign dropped (OTiS: 0.5)", 0.0)
    amplitude_probability: float = key("probability of scaling all leads by one factor", 0.8)
    amplitude_low: float = key("smallest factor", 0.6)
    amplitude_high: float = key("largest factor", 1.3)
    shift_probability: float = key("probability of a circular time shift", 1.0)
    shift_seconds: float = key("largest shift either way, seconds", 1.0)
    noise_probability: float = key("probability of Gaussian noise", 0.3)
    noise_level: float = key("its standard deviation, in units of the prepared signal", 0.03)
    mask_probability: float = key("probability of zeroed windows over all leads (StenCE: 0.5)", 0.0)
    mask_seconds: float = key("length of a zeroed window, seconds", 0.3)
    mask_count: int = key("number of zeroed windows (they may overlap)", 5)

    def __post_init__(self) -> None:
        kinds = ("phase", "amplitude", "shift", "noise", "mask")
        self._check_shares(*(f"{kind}_probability" for kind in kinds), "stretch", "phase_noise")
        self._check_leaves_something("stretch")
        self._check_finite("jitter", "rescale", "shift_seconds", "noise_level", "mask_seconds", "mask_count")
        if not 0 < self.amplitude_low <= self.amplitude_high:
            raise ConfigError(
                f"augment.amplitude_low={self.amplitude_low:g}, augment.amplitude_high={self.amplitude_high:g}. "
                "Use factors above 0, the largest not below the smallest."
            )

    def _check_shares(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name}={getattr(self, name):g} is not a probability or share. Use 0 to 1.")

    def _check_leaves_something(self, name: str) -> None:
        if getattr(self, name) == 0:
            raise ConfigError(f"augment.{name}=0 leaves nothing to stretch. Use a share above 0; 1 = off.")

    def _check_finite(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"augment.{name}={getattr(self, name):g}. Use 0 (off) or more.")


@dataclass
class AugmentConfig(EcgAugmentConfig):
    """Training augmentation of pairs: of the ECG, of which views a sample has, and of their frames."""

    drop_views: float = key("largest share of a pair's views that is dropped, one stays (StenCE: 0.3)", 0.0)
    shift_frames: float = key("largest shift of a view's frames along either axis, share of their side", 0.0)
    crop_frames: float = key("smallest share of a view's area that is blown up to its size; 1 = off (StenCE: 0.5)", 1.0)
    rotate_frames: float = key("largest rotation of a view either way, degrees (StenCE: 10)", 0.0)
    contrast_frames: float = key("largest change of a view's brightness and contrast, share (StenCE: 0.8)", 0.0)
    blur_frames: float = key("largest deviation of a Gaussian blur, share of the side (StenCE: 2/518)", 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shares("drop_views", "shift_frames", "crop_frames", "contrast_frames", "blur_frames")
        self._check_leaves_something("crop_frames")
        self._check_finite("rotate_frames")

    @property
    def changes_frames(self) -> bool:
        """Whether frames of pixels are changed at all."""
        others = self.shift_frames + self.rotate_frames + self.contrast_frames + self.blur_frames
        return self.crop_frames < 1 or others > 0


@dataclass
class DataConfig:
    """The shard set and its reader."""

    shards: str = key("folder that shards/build.py wrote")
    workers: int = key("loader processes per rank; 0 loads in the training process. Never changes what is trained", 1)
    verify: str = key("CRC-32 checks while reading: off | first_pass | always", "first_pass")
    copies: list[str] = key("shard sets of the same rows with other views; one set is drawn per sample and epoch", [])
    augment: AugmentConfig = group("training augmentation", AugmentConfig)

    def __post_init__(self) -> None:
        if self.verify not in ("off", "first_pass", "always"):
            raise ConfigError(f"data.verify={self.verify} is not known. Use off, first_pass or always.")
        if self.workers < 0:
            raise ConfigError(f"data.workers={self.workers}. Use 0 or more.")
