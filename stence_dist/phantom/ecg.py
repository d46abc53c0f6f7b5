"""A 12-lead ECG from a moving heart dipole: Gaussian waves in X, Y, Z, Dower's matrix, noise on nine electrodes.

Axes after Frank: X to the left, Y down, Z to the back. Ischemia moves the ST segment along LAD +Z (down in V1-V4),
LCX -X (down in I, aVL, V5, V6), RCA -Y (down in II, III, aVF), and flattens T; version 2 adds what is in `morphology`.
Model of the waves: McSharry 2003, Sameni 2007 in closed form; lead matrix: Dower 1980.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.spatial.transform import Rotation

from stence_dist.config.phantom import PhantomEcgConfig
from stence_dist.phantom.morphology import Morphology
from stence_dist.phantom.physiology import Physiology

SAMPLING_RATE = 500
SECONDS = 10
SAMPLES = SAMPLING_RATE * SECONDS

# Rows I, II, V1 ... V6; columns X, Y, Z.
_DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
# Each artery's ischemic ST dipole, per mV in the measured lead that sees it best; rows LAD (V2), LCX (V4), RCA (II).
TERRITORIES = np.diag(1 / np.abs(_DOWER).max(axis=0))[[2, 0, 1]] * [[1.0], [-1.0], [-1.0]]

# Center (s after R) and width (s) of each wave, then its dipole X, Y, Z in mV: P, three of QRS, two of T.
_WAVES = np.array(
    [
        [-0.160, 0.022, 0.05, 0.10, 0.01],
        [-0.022, 0.009, -0.10, 0.02, -0.25],
        [0.000, 0.012, 1.15, 0.80, 0.10],
        [0.025, 0.012, -0.10, 0.05, 0.65],
        [0.270, 0.050, 0.16, 0.11, -0.12],
        [0.305, 0.033, 0.14, 0.10, -0.12],
    ]
)
_T_WAVES = slice(4, 6)
# The ST plateau, a fourth-power bell: flat from the J point (60 ms) well into the T wave.
_ST_CENTER, _ST_WIDTH = 0.135, 0.075
_REFERENCE_RR = 60 / 70

# What a site's recorders do: high-pass (Hz), mains (Hz), noise factor, mV per step of their files.
_SITE_HIGH_PASS = (0.05, 0.05, 0.15)
_SITE_MAINS = (50.0, 50.0, 60.0)
_SITE_NOISE = (1.0, 1.15, 0.9)
SITE_STEP_MV = (0.001, 0.0025, 0.005)
SITE_DEVICE = ("phantom cart 1", "phantom cart 2", "phantom cart 3")


def _leads_from_electrodes() -> NDArray[np.float64]:
    """Matrix (12, 9) from the potentials of RA, LA, LL, V1 ... V6 to the leads, I first and V6 last."""
    matrix = np.zeros((12, 9))
    matrix[0, :3] = [-1, 1, 0]
    matrix[1, :3] = [-1, 0, 1]
    matrix[2, :3] = [0, -1, 1]
    matrix[3, :3] = [1, -0.5, -0.5]
    matrix[4, :3] = [-0.5, 1, -0.5]
    matrix[5, :3] = [-0.5, -0.5, 1]
    matrix[6:, :3] = -1 / 3
    matrix[6:, 3:] = np.eye(6)
    return matrix


def _electrodes_from_dipole() -> NDArray[np.float64]:
    """Matrix (9, 3) from the dipole to the potentials of RA, LA, LL, V1 ... V6 against their Wilson terminal."""
    lead_one, lead_two = _DOWER[0], _DOWER[1]
    right_arm = -(lead_one + lead_two) / 3
    return np.vstack([right_arm, right_arm + lead_one, right_arm + lead_two, _DOWER[2:]])


_LEADS = _leads_from_electrodes()
_ELECTRODES = _electrodes_from_dipole()


def draw_ecg(
    rng: np.random.Generator,
    patient: Physiology,
    ischemia_mv: NDArray[np.float64],
    config: PhantomEcgConfig,
    morphology: Morphology | None = None,
) -> NDArray[np.float64]:
    """Leads (12, 5000) in mV at 500 Hz; Einthoven holds exactly. ischemia_mv (3,): LAD, LCX, RCA.

    `morphology` is what version 2 adds, None in version 1. It draws nothing from `rng`: all else is the same in both.
    """
    beats = _beat_times(rng)
    if morphology is not None:
        ischemia_mv = ischemia_mv * morphology.demand(60 / beats[:, 1].mean())
    dipole = _dipole(rng, beats, patient, ischemia_mv, config, morphology)
    matrix = _ELECTRODES * (1 + config.electrode_scale * rng.normal(size=(9, 3)))
    matrix = matrix + config.electrode_shift * rng.normal(size=(9, 3))
    potentials = matrix @ dipole + _electrode_noise(rng, patient.site, config)
    smoothing = np.exp(-2 * np.pi * _SITE_HIGH_PASS[patient.site] / SAMPLING_RATE)
    potentials = lfilter([(1 + smoothing) / 2, -(1 + smoothing) / 2], [1, -smoothing], potentials, axis=1)
    return np.asarray(_LEADS @ potentials)


def _beat_times(rng: np.random.Generator) -> NDArray[np.float64]:
    """Columns R time and RR interval (beats, 2) in seconds, covering the record and a beat on either side."""
    rate = np.clip(70 + 11 * rng.normal(), 45, 110)
    count = 24
    breathing = 2 * np.pi * rng.uniform(0.2, 0.3)
    mean = 60 / rate
    intervals = mean * (1 + 0.015 * rng.normal(size=count))
    intervals += 0.03 * mean * np.sin(breathing * mean * np.arange(count) + rng.uniform(0, 2 * np.pi))
    times = rng.uniform(-1, 0) * mean + np.cumsum(intervals) - intervals[0]
    kept = times < SECONDS + 1
    return np.stack([times[kept], intervals[kept]], axis=1)


def _dipole(
    rng: np.random.Generator,
    beats: NDArray[np.float64],
    patient: Physiology,
    ischemia_mv: NDArray[np.float64],
    config: PhantomEcgConfig,
    morphology: Morphology | None,
) -> NDArray[np.float64]:
    """The heart's dipole (3, 5000) in mV: the patient's waves, once per beat."""
    amplitudes, st_dipole = _wave_dipoles(rng, patient, ischemia_mv, config)
    signs = None
    if morphology is not None:
        signs = morphology.signs(_ischemic_dipole(ischemia_mv, config), float(ischemia_mv.sum()))
        if signs.block is not None:
            amplitudes[_T_WAVES] += signs.block.t_wave / 2
            st_dipole += signs.block.st
    time = np.arange(SAMPLES) / SAMPLING_RATE
    dipole = np.zeros((3, SAMPLES))
    for number, (r_time, interval) in enumerate(beats):
        # P and T move with the cube root of the interval, QRS does not.
        moving = np.abs(_WAVES[:, 0]) > 0.1
        stretch = np.cbrt(interval / _REFERENCE_RR)
        center = _WAVES[:, 0] * np.where(moving, stretch, 1.0)
        first, last = np.clip((r_time + np.array([-0.4, 0.65])) * SAMPLING_RATE, 0, SAMPLES).astype(int)
        near = time[first:last] - r_time
        offset = near - center[:, None]
        if signs is not None:
            offset[_T_WAVES] = signs.t_time(near, stretch) - center[_T_WAVES, None]
        bells = np.exp(-0.5 * (offset / _WAVES[:, 1:2]) ** 2)
        plateau = np.exp(-(((near - _ST_CENTER) / _ST_WIDTH) ** 4))
        dipole[:, first:last] += amplitudes.T @ bells + st_dipole[:, None] * plateau
        if signs is not None:
            dipole[:, first:last] += signs.beat(near, stretch, number)
    return dipole


def _wave_dipoles(
    rng: np.random.Generator, patient: Physiology, ischemia_mv: NDArray[np.float64], config: PhantomEcgConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Dipoles of the patient's waves (waves, 3) and of the ST plateau (3,) in mV."""
    decades = (patient.age - 64) / 10
    qrs_gain = np.exp(config.qrs_spread * rng.normal() - 0.03 * decades + 0.10 * (patient.male - 0.62))
    t_gain = np.exp(config.t_spread * rng.normal() - 0.04 * decades + 0.10 * (patient.male - 0.62))
    t_gain *= np.exp(-config.t_flattening * float(ischemia_mv.sum()))
    benign = config.benign_st * rng.normal(size=3) + [0.0, 0.0, -0.005 * patient.male]
    strain = rng.uniform(0.5, 1.5)
    if patient.diabetes:
        t_gain *= 0.93
    if patient.hypertrophy:
        qrs_gain *= 1.3
        t_gain *= 0.88
        benign += strain * np.array([-0.015, 0.0, 0.008])
    heart = Rotation.from_euler("XYZ", config.rotation * rng.normal(size=3), degrees=True).as_matrix()
    recovery = Rotation.from_euler("XYZ", config.t_rotation * rng.normal(size=3), degrees=True).as_matrix() @ heart

    p_wave = _WAVES[:1, 2:] @ heart.T
    qrs = qrs_gain * _WAVES[1:4, 2:] @ heart.T
    t_wave = t_gain * _WAVES[4:, 2:] @ recovery.T
    st_dipole = _ischemic_dipole(ischemia_mv, config) + benign
    # A normal ST segment leans towards its T wave, in some hearts more than in others. This hides ischemia best.
    st_dipole += config.st_coupling * rng.normal() * t_wave.sum(axis=0)
    return np.vstack([p_wave, qrs, t_wave]), st_dipole


def _ischemic_dipole(ischemia_mv: NDArray[np.float64], config: PhantomEcgConfig) -> NDArray[np.float64]:
    """ST dipole (3,) in mV of ischemia in the three territories."""
    spread = (1 - config.cross_talk) * np.eye(3) + config.cross_talk * (1 - np.eye(3))
    return np.asarray((spread @ ischemia_mv) @ TERRITORIES)


def _electrode_noise(rng: np.random.Generator, site: int, config: PhantomEcgConfig) -> NDArray[np.float64]:
    """Wander, muscle and mains (9, 5000) in mV. On electrodes, not leads: else Einthoven would tell noise apart."""
    time = np.arange(SAMPLES) / SAMPLING_RATE
    frequencies = np.array([rng.uniform(0.2, 0.3), rng.uniform(0.05, 0.15)])
    phases = rng.uniform(0, 2 * np.pi, size=(9, 2, 1))
    sizes = config.wander * np.abs(rng.normal(size=(9, 2)))
    waves = np.sin(2 * np.pi * frequencies[:, None] * time + phases)  # (9, 2, T)
    wander = (sizes[:, None, :] @ waves)[:, 0]
    level = config.muscle * np.exp(config.muscle_spread * rng.normal()) * _SITE_NOISE[site]
    muscle = level * rng.normal(size=(9, SAMPLES))
    hum = config.mains * rng.normal(size=(9, 1)) * np.sin(2 * np.pi * _SITE_MAINS[site] * time + rng.uniform(0, 6.28))
    return np.asarray(wander + muscle + hum)
