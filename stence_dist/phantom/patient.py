"""One synthetic patient from a seed and a number."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stence_dist.config.phantom import PhantomConfig
from stence_dist.phantom.ecg import draw_ecg
from stence_dist.phantom.frames import AngioRun, draw_runs
from stence_dist.phantom.morphology import draw_morphology
from stence_dist.phantom.physiology import Physiology, draw_physiology, read_segments
from stence_dist.phantom.vessels import draw_vessels
from stence_dist.seeds import generator


@dataclass(frozen=True)
class PhantomPatient:
    """What the files of a patient are written from, and the hidden truth behind them."""

    ecg: NDArray[np.float64]  # (12, 5000) mV at 500 Hz, before rounding to the recorder's step
    ecg_site: int  # whose recorder made it; another patient's where ECG and patient do not belong together
    segments: NDArray[np.float32]  # (16,) percent as read
    views: list[AngioRun]  # empty where images were not asked for
    days_between: int  # study - ECG
    ischemia: NDArray[np.float64]  # (3,) mV that the ECG shows for LAD, LCX, RCA, at 70 beats per minute: the oracle
    physiology: Physiology  # of study and segments, never of a mismatched ECG

    @property
    def age(self) -> int:
        """Whole years."""
        return int(self.physiology.age)

    @property
    def sex(self) -> str:
        """M or F."""
        return self.physiology.sex

    @property
    def site(self) -> int:
        """Number of the hospital."""
        return self.physiology.site


def patient(seed: int, index: int, config: PhantomConfig, *, images: bool = True) -> PhantomPatient:
    """Patient `index` of cohort `seed`, whatever the size of the cohort and the order of the calls.

    Where `mismatch` strikes, the ECG comes from a second person who shares nothing with the first. `null=true` does so
    for everyone and takes ischemia out: no causal path from stenosis to ECG, and no age, sex, diabetes, hypertrophy or
    site that acts on both.
    """
    physiology = draw_physiology(generator(seed, "phantom", "physiology", index), config.disease)
    other = draw_physiology(generator(seed, "phantom", "other", index), config.disease)
    mismatched = bool(generator(seed, "phantom", "mismatch", index).random() < config.mismatch)
    recorded = other if mismatched or config.null else physiology
    ischemia = (0.0 if config.null else config.ischemia_mv) * recorded.ischemia
    morphology = None
    if config.version == 2:
        morphology = draw_morphology(generator(seed, "phantom", "morphology", index), recorded, config.morphology)
    views: list[AngioRun] = []
    if images:
        vessels = draw_vessels(generator(seed, "phantom", "vessels", index), physiology, config.image)
        views = draw_runs(generator(seed, "phantom", "runs", index), vessels, physiology.site, config.image)
    return PhantomPatient(
        ecg=draw_ecg(generator(seed, "phantom", "ecg", index), recorded, ischemia, config.ecg, morphology),
        ecg_site=recorded.site,
        segments=read_segments(generator(seed, "phantom", "reading", index), physiology, config.label_noise),
        views=views,
        days_between=int(generator(seed, "phantom", "visit", index).integers(0, 31)),
        ischemia=ischemia,
        physiology=physiology,
    )
