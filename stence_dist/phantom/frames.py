"""X-ray runs of the arteries: parallel projection, contrast medium, background, photons."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stence_dist.config.phantom import PhantomImageConfig
from stence_dist.phantom.vessels import LEFT_TREE, RIGHT_TREE, Vessel

# Standard projections in degrees: (RAO-/LAO+, CAU-/CRA+).
_LEFT_PROJECTIONS = ((-30.0, -25.0), (-30.0, 25.0), (45.0, 25.0), (45.0, -25.0), (0.0, 30.0), (0.0, -30.0))
_RIGHT_PROJECTIONS = ((30.0, 0.0), (-30.0, 0.0), (20.0, 20.0))
FRAME_TIME_MS = 66.7
_SUPERSAMPLING = 2
_STEEPEST = 0.5  # a vessel towards the viewer looks at most 1 / this as dense as one across
_FAINT = 0.06  # contrast of an uninformative run, as a share of a full injection
_GRAY = 100.0  # 8-bit value of an empty beam

# What a site's machines do to the background.
_SITE_BACKGROUND = (0.9, 1.0, 1.15)
_SITE_GAIN = (1.0, 1.1, 0.9)


@dataclass(frozen=True)
class AngioRun:
    """One X-ray run at one angulation."""

    frames: NDArray[np.uint8]  # (F, H, W), contrast is dark
    primary: float  # degrees, RAO-/LAO+
    secondary: float  # degrees, CAU-/CRA+
    key_frame: int  # number of the frame of full contrast, from 0
    artery: str  # left | right
    informative: bool


def draw_runs(
    rng: np.random.Generator, vessels: dict[str, Vessel], site: int, config: PhantomImageConfig
) -> list[AngioRun]:
    """One or two runs of the left arteries, one of the right, and sometimes one that shows almost nothing."""
    left = rng.permutation(len(_LEFT_PROJECTIONS))[: int(rng.integers(1, 3))]
    right = int(rng.integers(len(_RIGHT_PROJECTIONS)))
    planned = [("left", _LEFT_PROJECTIONS[number], True) for number in left]
    planned.append(("right", _RIGHT_PROJECTIONS[right], True))
    uninformative_draw, place = rng.random(), int(rng.integers(len(planned) + 1))
    spare = _LEFT_PROJECTIONS[int(rng.integers(len(_LEFT_PROJECTIONS)))]
    if uninformative_draw < config.uninformative:
        planned.insert(place, ("left", spare, False))
    return [_run(rng, vessels, artery, angles, informative, site, config) for artery, angles, informative in planned]


def _run(
    rng: np.random.Generator,
    vessels: dict[str, Vessel],
    artery: str,
    angles: tuple[float, float],
    informative: bool,
    site: int,
    config: PhantomImageConfig,
) -> AngioRun:
    """One run: contrast washes in until the key frame and out after it; the background stands still."""
    primary, secondary = np.round(np.array(angles) + config.angle_jitter * rng.normal(size=2), 1)
    tree = [vessels[name] for name in (LEFT_TREE if artery == "left" else RIGHT_TREE)]
    path = path_length(tree, primary, secondary, config)
    background = config.background * _SITE_BACKGROUND[site] * _background(rng, config.size)
    gain = _SITE_GAIN[site] * np.exp(0.08 * rng.normal())
    key_frame = int(rng.integers(2, config.frames - 1))
    after = np.arange(config.frames) - key_frame
    contrast = np.where(after <= 0, np.clip(1 + after / key_frame, 0, 1), 0.7**after)
    depth = config.attenuation * (1.0 if informative else _FAINT) * contrast[:, None, None] * path + background
    counts = rng.poisson(config.photons * np.exp(-depth))
    frames = np.clip(np.round(counts * (_GRAY * gain / config.photons)), 0, 255).astype(np.uint8)
    return AngioRun(frames, float(primary), float(secondary), key_frame, artery, informative)


def projection(primary: float, secondary: float) -> NDArray[np.float64]:
    """Rows (2, 3): the image's right and up in patient axes. At 0, 0 the patient faces the viewer."""
    alpha, beta = np.deg2rad([primary, secondary])
    right = np.array([np.cos(alpha), np.sin(alpha), 0.0])
    towards_detector = np.array([np.sin(alpha) * np.cos(beta), -np.cos(alpha) * np.cos(beta), np.sin(beta)])
    return np.stack([right, np.cross(towards_detector, right)])


def path_length(
    tree: list[Vessel], primary: float, secondary: float, config: PhantomImageConfig
) -> NDArray[np.float64]:
    """Millimeters of lumen (size, size) on the way of each pixel's ray; crossing vessels add up."""
    side = config.size * _SUPERSAMPLING
    pixel = config.field_of_view / side
    plane = projection(primary, secondary)
    total = np.zeros(side * side)
    for vessel in tree:
        flat = vessel.points @ plane.T  # (P, 2) mm
        step = np.gradient(vessel.points, axis=0)
        across = np.linalg.norm(step @ plane.T, axis=1) / np.linalg.norm(step, axis=1)
        column = flat[:, 0] / pixel + side / 2 - 0.5
        row = -flat[:, 1] / pixel + side / 2 - 0.5
        total += _stamp(row, column, vessel.radius / pixel, pixel / np.maximum(across, _STEEPEST), side)
    blocks = total.reshape(config.size, _SUPERSAMPLING, config.size, _SUPERSAMPLING)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _stamp(
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    radius: NDArray[np.float64],
    length: NDArray[np.float64],
    side: int,
) -> NDArray[np.float64]:
    """Chords (side * side,) of a tube as the largest chord of dense balls; coordinates and radius in pixels."""
    reach = int(np.ceil(radius.max()))
    offsets = np.arange(-reach, reach + 1)
    row_number = np.round(row).astype(int)[:, None] + offsets  # (P, window)
    column_number = np.round(column).astype(int)[:, None] + offsets
    squared = (row_number - row[:, None])[:, :, None] ** 2 + (column_number - column[:, None])[:, None, :] ** 2
    inside = radius[:, None, None] ** 2 - squared
    seen = inside > 0
    seen &= ((row_number >= 0) & (row_number < side))[:, :, None]
    seen &= ((column_number >= 0) & (column_number < side))[:, None, :]
    point, window_row, window_column = np.nonzero(seen)
    chord = 2 * np.sqrt(inside[seen]) * length[point]
    image = np.zeros(side * side)
    np.maximum.at(image, row_number[point, window_row] * side + column_number[point, window_column], chord)
    return image


@lru_cache(maxsize=8)
def _smooth_basis(size: int) -> NDArray[np.float64]:
    """Gaussian bumps (size, 7) that blend a coarse random grid into a smooth field."""
    place = np.linspace(0, 6, size)[:, None] - np.arange(7)
    bumps = np.exp(-0.5 * (place / 0.7) ** 2)
    return np.asarray(bumps / np.linalg.norm(bumps, axis=1, keepdims=True))


def _background(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Optical depth (size, size) of lung, ribs and diaphragm, about unit variance."""
    basis = _smooth_basis(size)
    lung = basis @ rng.normal(size=(7, 7)) @ basis.T
    down, right = np.mgrid[0:size, 0:size] / size
    tilt, spacing, phase = rng.uniform(-0.5, 0.5), rng.uniform(0.22, 0.34), rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * (down + tilt * right + 0.25 * right**2) / spacing + phase)
    ribs = np.clip(wave - 0.3, 0, None) * rng.uniform(0.5, 1.2)
    edge, slope = rng.uniform(0.75, 1.1), rng.uniform(-0.4, 0.4)
    diaphragm = 1.5 / (1 + np.exp(-(down - edge - slope * (right - 0.5)) / 0.03))
    return np.asarray(0.8 * lung + ribs + diaphragm)
