"""Coronary arteries in three dimensions: centerlines on an ellipsoid, calibres, stenoses.

Patient axes in mm about the heart's center: x to the patient's left, y to the back, z to the head.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from stence_dist.config.phantom import PhantomImageConfig
from stence_dist.phantom.physiology import ARTERIES, LAD, LCX, RCA, Physiology

# A miniature heart, so that whole arteries fit a small image while calibres stay in their true proportion to pixels.
_HALF_AXES = np.array([13.5, 12.5, 16.5])
_POINTS_PER_CURVE = 160

# Control points in degrees: angle from the base along the long axis, then around it (0 left wall, 90 front, 180 right).
_CURVES: dict[str, list[tuple[float, float]]] = {
    "lad": [(38, 128), (50, 112), (66, 108), (88, 112), (112, 114), (136, 112), (158, 108)],
    "lcx": [(50, 112), (60, 88), (68, 55), (72, 20), (74, -15), (76, -48)],
    "rca": [(44, 152), (58, 168), (70, 190), (76, 216), (74, 246), (74, 274), (96, 284), (122, 286)],
    "d1": [(84, 111), (92, 94), (104, 76), (120, 62), (134, 54)],
    "om": [(70, 38), (82, 26), (98, 14), (114, 6), (128, 0)],
}
# Calibre in mm at the start and the end of each curve.
_CALIBRES = {"lad": (3.3, 1.5), "lcx": (3.1, 1.6), "rca": (3.4, 1.8), "d1": (1.9, 1.1), "om": (2.0, 1.2)}
# Side branches leave their parent at its control points; disease of the parent before that narrows them, too.
_PARENTS = {"d1": ("lad", 0.42), "om": ("lcx", 0.45)}
LEFT_TREE = ("lad", "lcx", "d1", "om")
RIGHT_TREE = ("rca",)


@dataclass(frozen=True)
class Vessel:
    """One artery: points (P, 3) in mm and its radius (P,) in mm at each."""

    points: NDArray[np.float64]
    radius: NDArray[np.float64]


def draw_vessels(rng: np.random.Generator, patient: Physiology, config: PhantomImageConfig) -> dict[str, Vessel]:
    """The patient's arteries by name: lad, lcx, rca, d1, om."""
    jitter = config.geometry_jitter
    orientation = _heart_axes(6 * jitter * rng.normal(size=3))
    scale = np.exp(0.04 * jitter * rng.normal())
    calibre = np.exp(0.08 * jitter * rng.normal())
    center = 0.8 * jitter * rng.normal(size=3)
    turn = 5 * jitter * rng.normal(size=(3, 2))  # degrees; an artery moves with its branches
    lengths = rng.uniform(config.lesion_shortest, config.lesion_longest, size=3)
    vessels = {}
    for name, angles in _CURVES.items():
        artery = {"d1": LAD, "om": LCX}.get(name, ARTERIES.index(name) if name in ARTERIES else RCA)
        bend = 3 * jitter * rng.normal(size=(len(angles), 2))
        if name != "rca":
            bend[0] = 0.0  # branches stay attached
        turned = np.deg2rad(np.array(angles) + turn[LAD if name == "lcx" else artery] + bend)
        points = _catmull_rom(_on_ellipsoid(turned)) @ orientation.T * scale + center
        arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        first, last = _CALIBRES[name]
        diameter = calibre * (first + (last - first) * arc / arc[-1])
        stenosis, place = float(patient.stenosis[artery]), patient.lesion_place[artery]
        if name in _PARENTS:
            lesion_is_before = place < _PARENTS[name][1]
            diameter *= 1 - config.distal_loss * stenosis * lesion_is_before
        else:
            beyond = (arc - place * arc[-1]) / lengths[artery]
            diameter *= 1 - stenosis * np.exp(-0.5 * beyond**2)
            diameter *= 1 - config.distal_loss * stenosis / (1 + np.exp(-3 * (beyond - 1)))
        vessels[name] = Vessel(points=points, radius=diameter / 2)
    return vessels


def _on_ellipsoid(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (k, 3) in mm in the heart's own axes (left wall, front wall, apex) from angles (k, 2) in radians."""
    down, around = angles[:, 0], angles[:, 1]
    unit = np.stack([np.sin(down) * np.cos(around), np.sin(down) * np.sin(around), -np.cos(down)], axis=1)
    return np.asarray(unit * _HALF_AXES)


def _heart_axes(tilt: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns: left wall, front wall and apex of the heart as unit vectors in patient axes; tilt (3,) in degrees."""
    apex = np.array([0.62, -0.50, -0.60])
    apex /= np.linalg.norm(apex)
    wall = np.array([0.65, 0.70, 0.10])
    wall -= (wall @ apex) * apex
    wall /= np.linalg.norm(wall)
    front = np.cross(wall, apex)
    front *= np.sign(-front[1])  # towards the chest
    turn = Rotation.from_euler("XYZ", tilt, degrees=True).as_matrix()
    return np.asarray(turn @ np.stack([wall, front, apex], axis=1))


@lru_cache(maxsize=16)
def _catmull_rom_basis(count: int) -> NDArray[np.float64]:
    """Weights (_POINTS_PER_CURVE, count) of `count` control points; the curve passes through all of them."""
    basis = np.zeros((_POINTS_PER_CURVE, count))
    place = np.linspace(0, count - 1, _POINTS_PER_CURVE)
    left = np.minimum(place.astype(int), count - 2)
    t = place - left
    weights = 0.5 * np.stack(
        [-(t**3) + 2 * t**2 - t, 3 * t**3 - 5 * t**2 + 2, -3 * t**3 + 4 * t**2 + t, t**3 - t**2], axis=1
    )
    rows = np.arange(_POINTS_PER_CURVE)
    for offset in range(4):
        np.add.at(basis, (rows, np.clip(left + offset - 1, 0, count - 1)), weights[:, offset])
    return basis


def _catmull_rom(control: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth curve (_POINTS_PER_CURVE, 3) through control points (k, 3)."""
    return np.asarray(_catmull_rom_basis(len(control)) @ control)
