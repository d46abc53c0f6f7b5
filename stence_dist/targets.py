"""From the 16 segments in percent to every label that anyone trains or reports on.

Segments are AHA numbers: 1 proximal RCA, 2 mid RCA, 3 distal RCA, 4 R-PDA, 5 left main, 6 proximal LAD, 7 mid LAD,
8 distal LAD, 9 D1, 10 D2, 11 proximal LCx, 12 OM, 13 mid/distal LCx, 14 PL, 15 L-PDA, 16 ramus intermedius.
Never SYNTAX numbers, whose 12 and 16 differ.
"""

import numpy as np
from numpy.typing import NDArray

from stence_dist.config.targets import TargetsConfig
from stence_dist.errors import ConfigError

SEGMENT_COUNT = 16
SEGMENTS = tuple(range(1, SEGMENT_COUNT + 1))
MAJOR_SEGMENTS = (1, 2, 3, 5, 6, 7, 11, 13)
RIGHT_SEGMENTS = tuple(range(1, 5))
LEFT_SEGMENTS = tuple(range(5, 17))

# The 11 outputs of the stenosis head and loss, in StenCE's order.
STENOSIS_TARGETS = ("patient", "rca", "lca", *(f"seg_{segment}" for segment in MAJOR_SEGMENTS))
# The three parts of the stenosis loss: patient, the two arteries, the eight segments.
STENOSIS_PARTS = (slice(0, 1), slice(1, 3), slice(3, 11))

_ARTERIES = {
    "rca": RIGHT_SEGMENTS,
    "lca": LEFT_SEGMENTS,
    "lm": (5,),
    "lad": tuple(range(6, 11)),
    "lcx": tuple(range(11, 16)),
}
TARGETS = ("patient", *_ARTERIES, *(f"seg_{segment}" for segment in SEGMENTS))


def members(target: str, config: TargetsConfig) -> tuple[int, ...]:
    """The segments that decide `target`. Raises ConfigError for a target that does not exist."""
    if target.startswith("seg_") and target in TARGETS:
        return (int(target.removeprefix("seg_")),)
    if target == "patient":
        chosen: tuple[int, ...] = SEGMENTS
    elif target in _ARTERIES:
        chosen = _ARTERIES[target]
    else:
        raise ConfigError(f"task.target={target} is not a target. Use one of: {', '.join(TARGETS)}.")
    if config.segments == "major" and target in ("patient", "rca", "lca"):
        chosen = tuple(segment for segment in chosen if segment in MAJOR_SEGMENTS)
    return chosen


def label(
    segments: NDArray[np.float32], target: str, config: TargetsConfig, has_study: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Labels (n,) of one target: 1, 0, or NaN where it cannot be known.

    segments (n, 16) in percent diameter stenosis, NaN = not reported; has_study (n,) = an angiogram belongs to the
    row. A target is 1 where any of its segments reaches its threshold (`>=`); 0 where all of them are known and none
    does. With `targets.unreported=normal` an unreported segment counts as 0 %, also where nothing at all is reported,
    provided that there is a study: an ECG without study and without segments was never read, so it stays unknown.
    """
    columns, percent = _counted(segments, target, config, has_study)
    thresholds = np.array([config.threshold_of(int(column) + 1) for column in columns], dtype=np.float32)
    reached = (percent >= thresholds).any(axis=1)  # NaN compares False
    unknown = np.isnan(percent).any(axis=1) & ~reached
    return np.where(unknown, np.nan, reached).astype(np.float32)


def largest_percent(
    segments: NDArray[np.float32], target: str, config: TargetsConfig, has_study: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """The largest known percent (n,) among the segments that decide `target`; NaN where none is. See `label`."""
    _, percent = _counted(segments, target, config, has_study)
    largest = np.nan_to_num(percent, nan=-1.0).max(axis=1)
    return np.where(largest < 0, np.nan, largest).astype(np.float32)


def _counted(
    segments: NDArray[np.float32], target: str, config: TargetsConfig, has_study: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The columns (k,) that decide `target`, and their percent (n, k): 0 where unreported counts as normal."""
    columns = np.array(members(target, config)) - 1
    percent = segments[:, columns].astype(np.float32, copy=True)
    if config.unreported == "normal":
        was_read = has_study | ~np.isnan(segments).all(axis=1)
        percent[was_read] = np.nan_to_num(percent[was_read], nan=0.0)
    return columns, percent


def stenosis_labels(
    segments: NDArray[np.float32], config: TargetsConfig, has_study: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Labels (n, 11) of `STENOSIS_TARGETS`; see `label`."""
    return np.stack([label(segments, target, config, has_study) for target in STENOSIS_TARGETS], axis=1)
