"""Keys of `launch/phantom.py`. The defaults are the frozen difficulties: see `phantom.DIFFICULTY_VERSION`."""

from dataclasses import dataclass
from typing import Any

from stence_dist.config.field import group, key
from stence_dist.errors import ConfigError


@dataclass
class PhantomDiseaseConfig:
    """Latent disease and what a reader writes down."""

    offset: float = key("mean log-odds of an artery's stenosis", -0.75)
    burden: float = key("sd of the patient's burden, shared by the arteries, beside age, sex and other risks", 0.9)
    artery: float = key("sd of what is each artery's own", 1.35)
    left_main: float = key("probability that the left anterior lesion sits in the left main trunk", 0.05)
    onset: float = key("stenosis (share of the diameter) at which ischemia begins", 0.4)
    span: float = key("further stenosis until ischemia saturates", 0.5)
    exponent: float = key("curvature of ischemia between onset and saturation", 1.5)
    collateral: float = key("sd of the log of the collateral response that scales ischemia", 0.5)


@dataclass
class PhantomEcgConfig:
    """Everything in the ECG that is not ischemia."""

    cross_talk: float = key("share of a territory's ischemia that each other territory shows", 0.15)
    t_flattening: float = key("relative loss of T amplitude per mV of ischemia", 4.0)
    benign_st: float = key("sd of the benign ST dipole per axis, mV", 0.015)
    st_coupling: float = key("sd of the share of the T dipole that a patient's ST segment shows", 0.10)
    t_spread: float = key("sd of the log of the T amplitude", 0.22)
    qrs_spread: float = key("sd of the log of the QRS amplitude", 0.2)
    rotation: float = key("sd of the rotation of the heart about each axis, degrees", 20.0)
    t_rotation: float = key("sd of the further rotation of the T wave, degrees", 15.0)
    electrode_scale: float = key("relative jitter of the electrode matrix", 0.07)
    electrode_shift: float = key("additive jitter of the electrode matrix", 0.03)
    wander: float = key("baseline wander of each electrode, mV", 0.04)
    muscle: float = key("median muscle noise of each electrode, mV", 0.010)
    muscle_spread: float = key("sd of the log of the muscle noise", 0.4)
    mains: float = key("mains hum of each electrode, mV", 0.002)


@dataclass
class PhantomMorphologyConfig:
    """What version 2 adds to the ECG: see `phantom.morphology`. Ratios are mV per mV of ischemic ST shift."""

    fragmentation: float = key("ratio of the notches in QRS, a burst of 45 Hz", 1.2)
    terminal: float = key("ratio of the late QRS force, 48 ms after R", 0.8)
    st_slope: float = key("ratio of the downward slope of ST about the place where its level is measured", 0.4)
    t_notch: float = key("ratio of the notch in the descent of T", 0.5)
    t_skew: float = key("slowing of the descent of T and speeding of its ascent, per mV of ischemia", 3.0)
    alternans: float = key("ratio of the change of T from beat to beat", 0.2)
    benign: float = key(
        "sd per axis of all but alternans without ischemia, as the ST shift that would cause it, mV", 0.02
    )
    rate_dependence: float = key("relative growth of ischemia over relative growth of the heart rate beyond 70", 1.0)
    block: float = key("probability of a bundle branch block at 64 years; it doubles every 7.4 years", 0.04)

    def __post_init__(self) -> None:
        if not 0 <= self.block <= 1:
            raise ConfigError(f"morphology.block={self.block} is a probability. Use 0 to 1.")


@dataclass
class PhantomImageConfig:
    """X-ray geometry and noise."""

    size: int = key("pixels per side", 64)
    field_of_view: float = key("side of the image at the heart, mm", 40.0)
    frames: int = key("frames per run; one is the key frame", 6)
    attenuation: float = key("attenuation of contrast medium, 1/mm", 0.45)
    photons: float = key("photons per pixel in an empty beam", 3000.0)
    background: float = key("sd of the background's optical depth", 0.35)
    lesion_shortest: float = key("smallest sd of a lesion's length profile, mm", 1.5)
    lesion_longest: float = key("largest sd of a lesion's length profile, mm", 2.6)
    distal_loss: float = key("loss of calibre behind a lesion, times its stenosis", 0.35)
    angle_jitter: float = key("sd of the angles about their standard projections, degrees", 6.0)
    geometry_jitter: float = key("scale of the anatomical variation", 0.8)
    uninformative: float = key("probability of a further run almost without contrast", 0.15)


@dataclass
class PhantomConfig:
    """Write a synthetic cohort of WFDB and DICOM files with cohort.csv. Synthetic: it says nothing about patients."""

    out: str = key("folder to write; holds cohort.csv, ecg/, study/, patient_key.txt, phantom.json")
    patients: int = key("patients with an ECG and an angiogram")
    version: int = key(
        "2: ischemia shifts ST, flattens T and leaves the signs under morphology | 1: the first two alone", 2
    )
    seed: int = key("seed of the cohort; patient i depends on (seed, i) and on the knobs, on nothing else", 0)
    ecg_only: int = key("further patients with a labelled ECG alone", 0)
    ecg_only_test: int = key(
        "how many of those are the test split; above 0 the table gets a split column (other ECG-only patients "
        "train/val 85/15, pairs 90/10), at 0 the builder splits",
        0,
    )
    null: bool = key("make ECG and stenosis independent: another patient's ECG, without ischemia", False)
    ischemia_mv: float = key("ST shift of full ischemia of one territory, mV in V2 (LAD), V4 (LCX) or II (RCA)", 0.07)
    label_noise: float = key("sd of the reader's error on a stenosis, share of the diameter", 0.04)
    mismatch: float = key("probability that a patient's ECG is another person's; study and segments stay", 0.0)
    disease: PhantomDiseaseConfig = group("latent disease", PhantomDiseaseConfig)
    ecg: PhantomEcgConfig = group("ECG nuisance", PhantomEcgConfig)
    morphology: PhantomMorphologyConfig = group("what version 2 adds to the ECG", PhantomMorphologyConfig)
    image: PhantomImageConfig = group("X-ray geometry and noise", PhantomImageConfig)
    workers: int = key("processes that write patients; never changes what is written", 2)

    def __post_init__(self) -> None:
        if self.patients < 0 or self.ecg_only < 0 or self.patients + self.ecg_only < 1:
            raise ConfigError(f"patients={self.patients}, ecg_only={self.ecg_only}. Ask for 1 patient or more.")
        if not 0 <= self.ecg_only_test <= self.ecg_only:
            raise ConfigError(f"ecg_only_test={self.ecg_only_test}. Use 0 to ecg_only={self.ecg_only}.")
        probabilities: dict[str, Any] = {
            "mismatch": self.mismatch,
            "image.uninformative": self.image.uninformative,
            "disease.left_main": self.disease.left_main,
        }
        for name, value in probabilities.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}={value} is a probability. Use 0 to 1.")
        for name, value in {"ischemia_mv": self.ischemia_mv, "label_noise": self.label_noise}.items():
            if value < 0:
                raise ConfigError(f"{name}={value}. Use 0 or more.")
        for group_name in ("disease", "ecg", "image"):
            for name, value in vars(getattr(self, group_name)).items():
                if value < 0 and name != "offset":  # which is in log-odds
                    raise ConfigError(f"{group_name}.{name}={value:g}. Use 0 or more.")
        if min(self.disease.span, self.image.field_of_view, self.image.photons) <= 0:
            raise ConfigError(
                f"disease.span={self.disease.span:g}, image.field_of_view={self.image.field_of_view:g}, "
                f"image.photons={self.image.photons:g}. Use values above 0."
            )
        if not 0 < self.image.lesion_shortest <= self.image.lesion_longest:
            raise ConfigError(
                f"image.lesion_shortest={self.image.lesion_shortest:g}, "
                f"image.lesion_longest={self.image.lesion_longest:g}. Use lengths above 0, the longest not below the "
                "shortest."
            )
        if self.image.size < 16 or self.image.frames < 4:
            raise ConfigError(
                f"image.size={self.image.size}, image.frames={self.image.frames}. Use 16 pixels and 4 frames or more."
            )
        if self.version not in (1, 2):
            raise ConfigError(f"version={self.version} is not known. Use 1 or 2.")
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers}. Use 1 or more.")
