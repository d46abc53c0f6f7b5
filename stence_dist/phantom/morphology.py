"""What version 2 adds to the beats: signs of ischemia that fixed-point measurements miss, and bundle branch block.

Each sign is the ischemic ST dipole times a ratio, so that all of them point where ST depression points, plus a benign
part that knows nothing of disease. An ST level at J + 60 to 80 ms and the height of T, taken on a median beat, hardly
see them: QRS is over by then, the slope is odd about the place of that measurement, T changes its pace and not its
height and is notched on its flank, and what alternans leaves in a median has a sign by chance.

The phenomena are known, most of them from other settings than ischemia at rest; that they grow with it, where they
point and how large they are is ours, chosen so that there is something to learn, not measured on patients.

- QRS notches in a territory's leads: fragmented QRS over scars, Das 2006, Circulation 113:2495.
- Late QRS force: its distortion in infarction with ST elevation, Birnbaum 1996, Am J Cardiol 78:396.
- Downward slope of ST: under exercise, Goldschlager 1976, Ann Intern Med 85:277.
- Asymmetry and notch of T: as measures of its shape, Andersen 2008, J Electrocardiol 41:557.
- T wave alternans: before arrhythmia, Rosenbaum 1994, N Engl J Med 330:235.
- Growth of ischemia with the heart rate: under exercise, Kligfield 1989, Circulation 79:245.
- Bundle branch block, its growth with age: Eriksson 1998, Circulation 98:2494.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stence_dist.config.phantom import PhantomMorphologyConfig
from stence_dist.phantom.physiology import Physiology

# Where the signs lie, in seconds after R; what belongs to the T wave moves with it.
_BURST_CENTER, _BURST_WIDTH, _BURST_HZ = 0.015, 0.015, 45.0
_TERMINAL_CENTER, _TERMINAL_WIDTH = 0.048, 0.010
_SLOPE_CENTER, _SLOPE_WIDTH = 0.130, 0.022
_T_APEX = 0.295
_NOTCH_AFTER_APEX, _NOTCH_WIDTH = 0.060, 0.012
_ALTERNANS_WIDTH = 0.040

_LARGEST_SKEW = 0.5
_REFERENCE_RATE = 70.0
_DEMAND_BOUNDS = (0.25, 3.0)

_REFERENCE_AGE = 64
_BLOCK_GROWTH = 0.094  # of the log of the probability of a block, per year
_LARGEST_BLOCK_PROBABILITY = 0.3
_RIGHT_SHARE = 2 / 3
_BLOCK_SIZES = (0.6, 1.2)


@dataclass(frozen=True)
class Block:
    """A bundle branch block: a late QRS force and the repolarization that follows from it, dipoles X, Y, Z in mV."""

    center: float  # of the late force, seconds after R
    width: float
    qrs: NDArray[np.float64]
    st: NDArray[np.float64]
    t_wave: NDArray[np.float64]

    def times(self, size: float) -> "Block":
        """The same block, its dipoles `size` times as large."""
        return Block(self.center, self.width, size * self.qrs, size * self.st, size * self.t_wave)


# Right: a second R in V1, a broad S in I and V6, T against it. Left: a broad R in I and V6, ST and T against it.
RIGHT_BLOCK = Block(0.072, 0.016, np.array([-0.45, 0.0, -0.45]), np.array([0.0, 0.0, 0.0]), np.array([0.05, 0.0, 0.12]))
LEFT_BLOCK = Block(
    0.060, 0.020, np.array([0.50, 0.10, 0.45]), np.array([-0.04, 0.0, -0.05]), np.array([-0.25, -0.08, -0.15])
)


@dataclass(frozen=True)
class Morphology:
    """One patient's share in version 2; nothing in it depends on disease."""

    config: PhantomMorphologyConfig
    benign: NDArray[np.float64]  # (4, 3) mV of ST shift that would look like it: burst, terminal, slope, notch; X, Y, Z
    benign_skew: float  # the same for the T wave's asymmetry
    alternans_phase: int  # which beats the alternans lowers, 0 or 1
    block: Block | None

    def demand(self, rate: float) -> float:
        """Factor on all ischemia, ST shift included, at a heart rate in beats per minute; 1 at 70."""
        growth = self.config.rate_dependence * (rate - _REFERENCE_RATE) / _REFERENCE_RATE
        return float(np.clip(1 + growth, *_DEMAND_BOUNDS))

    def signs(self, ischemic: NDArray[np.float64], total: float) -> "Signs":
        """What the ischemic ST dipole (3,) and the ischemia of all territories, mV, do to the beats of a record."""
        config = self.config
        ratios = np.array([config.fragmentation, config.terminal, config.st_slope, config.t_notch])
        skew = config.t_skew * (total + self.benign_skew)
        return Signs(
            dipoles=np.vstack([ratios[:, None] * (ischemic + self.benign), config.alternans * ischemic]),
            skew=float(np.clip(skew, -_LARGEST_SKEW, _LARGEST_SKEW)),
            alternans_phase=self.alternans_phase,
            block=self.block,
        )


def draw_morphology(rng: np.random.Generator, patient: Physiology, config: PhantomMorphologyConfig) -> Morphology:
    """The patient's share. The number of draws depends on no knob."""
    benign, benign_skew = config.benign * rng.normal(size=(4, 3)), config.benign * float(rng.normal())
    phase, block_draw, side_draw = int(rng.integers(2)), rng.random(), rng.random()
    block = (RIGHT_BLOCK if side_draw < _RIGHT_SHARE else LEFT_BLOCK).times(rng.uniform(*_BLOCK_SIZES))
    probability = config.block * np.exp(_BLOCK_GROWTH * (patient.age - _REFERENCE_AGE))
    blocked = block_draw < min(probability, _LARGEST_BLOCK_PROBABILITY)
    return Morphology(config, benign, benign_skew, phase, block if blocked else None)


@dataclass(frozen=True)
class Signs:
    """The signs of one record, drawn beat by beat."""

    dipoles: NDArray[np.float64]  # (5, 3) mV: burst, terminal, slope, notch, alternans
    skew: float  # by how much the descent of T is slowed and its ascent sped up
    alternans_phase: int
    block: Block | None

    def t_time(self, near: NDArray[np.float64], stretch: float) -> NDArray[np.float64]:
        """Where in an unskewed T wave `near` (n,) seconds after R lie: a change of pace about its apex, not of height.

        stretch: by how much the T wave's places move with the RR interval.
        """
        beyond = near - _T_APEX * stretch
        return np.asarray(_T_APEX * stretch + beyond / np.where(beyond > 0, 1 + self.skew, 1 - self.skew))

    def beat(self, near: NDArray[np.float64], stretch: float, number: int) -> NDArray[np.float64]:
        """Dipole (3, n) in mV that the signs add to beat `number` at `near` (n,) seconds after R."""
        in_qrs, after_apex = near - _BURST_CENTER, near - _T_APEX * stretch
        lowered = 1.0 if number % 2 == self.alternans_phase else -1.0
        shapes = [
            np.cos(2 * np.pi * _BURST_HZ * in_qrs) * _bell(in_qrs / _BURST_WIDTH),
            _bell((near - _TERMINAL_CENTER) / _TERMINAL_WIDTH),
            _odd((near - _SLOPE_CENTER) / _SLOPE_WIDTH),
            _odd((after_apex - _NOTCH_AFTER_APEX) / _NOTCH_WIDTH),
            lowered * _bell(after_apex / _ALTERNANS_WIDTH),
        ]
        added = self.dipoles.T @ np.stack(shapes)
        if self.block is not None:
            added += self.block.qrs[:, None] * _bell((near - self.block.center) / self.block.width)
        return np.asarray(added)


def _bell(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.exp(-0.5 * x**2))


def _odd(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Odd about 0; its extremes are -1 at -1 and 1 at 1."""
    return np.asarray(x * np.exp(0.5 - 0.5 * x**2))
