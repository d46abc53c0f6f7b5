"""Who a synthetic patient is: risks, stenoses, ischemia, and what a reader writes about the 16 segments."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stence_dist.config.phantom import PhantomDiseaseConfig

ARTERIES = ("lad", "lcx", "rca")
LAD, LCX, RCA = range(3)
LEFT_MAIN_SEGMENT = 5

SITES = ("A", "B", "C")
_SITE_SHARES = (0.45, 0.35, 0.20)
_SITE_BURDEN = (0.0, 0.2, -0.3)

# The lesion of an artery sits in one of these AHA segments, at this share of its centerline.
_LESION_PLACES: dict[int, dict[int, tuple[float, float]]] = {
    LAD: {6: (0.18, 0.38), 7: (0.38, 0.65)},
    LCX: {11: (0.10, 0.38), 13: (0.42, 0.72)},
    RCA: {1: (0.10, 0.30), 2: (0.30, 0.55), 3: (0.55, 0.75)},
}
_LEFT_MAIN_PLACE = (0.04, 0.11)
# Diffuse disease, too mild to be drawn: its largest share of the artery's stenosis.
_DIFFUSE_SEGMENTS = {LAD: (5, 6, 7, 8, 9, 10), LCX: (11, 12, 13, 14, 15, 16), RCA: (1, 2, 3, 4)}
_DIFFUSE_SHARE = 0.35


@dataclass(frozen=True)
class Physiology:
    """One patient's hidden state. The arrays (3,) are in the order LAD, LCX, RCA."""

    age: float
    male: bool
    diabetes: bool
    hypertrophy: bool  # of the left ventricle
    site: int
    stenosis: NDArray[np.float64]  # (3,) share of the diameter that is lost
    lesion_segment: tuple[int, int, int]  # AHA numbers
    lesion_place: tuple[float, float, float]  # share of the centerline
    ischemia: NDArray[np.float64]  # (3,) per territory, in units of the full ischemia of one territory

    @property
    def sex(self) -> str:
        """M or F."""
        return "M" if self.male else "F"


def draw_physiology(rng: np.random.Generator, config: PhantomDiseaseConfig) -> Physiology:
    """A patient. The number of draws never depends on a knob, so that knobs change sizes and not people."""
    risk, male_draw, diabetes_draw, hypertrophy_draw = rng.normal(), rng.random(), rng.random(), rng.random()
    site = int(np.searchsorted(np.cumsum(_SITE_SHARES)[:-1], rng.random(), side="right"))
    age = float(np.clip(64 + 10 * risk, 32, 92))
    decades = (age - 64) / 10
    male = male_draw < 0.62
    diabetes = diabetes_draw < 0.28
    hypertrophy = hypertrophy_draw < 0.10 + 0.05 * np.clip(decades, 0, 2) + 0.05 * diabetes

    burden = config.burden * rng.normal() + 0.2 * decades + 0.3 * (male - 0.5)
    burden += 0.35 * (diabetes - 0.28) + 0.2 * hypertrophy + _SITE_BURDEN[site]
    stenosis = 1 / (1 + np.exp(-(config.offset + burden + config.artery * rng.normal(size=3))))

    segments, places = [], []
    for artery in range(3):
        choices = _LESION_PLACES[artery]
        segment = list(choices)[int(rng.integers(len(choices)))]
        low, high = choices[segment]
        segments.append(segment)
        places.append(low + (high - low) * rng.random())
    left_main_draw, left_main_place = rng.random(2)
    supplied = stenosis.copy()
    if left_main_draw < config.left_main:
        segments[LAD] = LEFT_MAIN_SEGMENT
        places[LAD] = _LEFT_MAIN_PLACE[0] + (_LEFT_MAIN_PLACE[1] - _LEFT_MAIN_PLACE[0]) * left_main_place
        supplied[LCX] = max(stenosis[LCX], stenosis[LAD])
    return Physiology(
        age=age,
        male=bool(male),
        diabetes=bool(diabetes),
        hypertrophy=bool(hypertrophy),
        site=site,
        stenosis=stenosis,
        lesion_segment=(segments[0], segments[1], segments[2]),
        lesion_place=(places[0], places[1], places[2]),
        ischemia=_ischemia(supplied, rng.normal(size=3), config),
    )


def _ischemia(
    supplied: NDArray[np.float64], response: NDArray[np.float64], config: PhantomDiseaseConfig
) -> NDArray[np.float64]:
    """Relative ischemia (3,): nothing below the onset, then convex, then flat; collaterals scale it."""
    extent = np.clip((supplied - config.onset) / config.span, 0, 1) ** config.exponent
    return np.asarray(extent * np.exp(config.collateral * response))


def read_segments(rng: np.random.Generator, patient: Physiology, label_noise: float) -> NDArray[np.float32]:
    """Percent stenosis (16,) as a reader notes it, in whole percent; every segment is reported."""
    percent = np.zeros(16, dtype=np.float32)
    read = np.clip(patient.stenosis + label_noise * rng.normal(size=3), 0, 1)
    for artery, segments in _DIFFUSE_SEGMENTS.items():
        diffuse = np.round(100 * _DIFFUSE_SHARE * patient.stenosis[artery] * rng.random(len(segments)))
        percent[np.array(segments) - 1] = np.where(diffuse < 5, 0, diffuse)
    for artery in range(3):
        percent[patient.lesion_segment[artery] - 1] = np.round(100 * read[artery])
    return percent
