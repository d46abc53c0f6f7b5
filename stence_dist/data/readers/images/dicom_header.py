"""Elements of a DICOM header that may be absent, empty, malformed, or stated per frame."""

import math
from typing import Any

from pydicom import config as pydicom_settings
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

# Malformed values are common, and refused where they matter; pydicom need not look for them.
pydicom_settings.settings.reading_validation_mode = pydicom_settings.IGNORE

_SAME_ANGLE = 0.1  # degrees


def _in_groups(groups: Any, name: str) -> Any:
    """The element `name` of one item of functional groups: it stands in the single item of one of its sequences."""
    for element in groups:
        if element.VR == "SQ" and not element.tag.is_private and element.value and name in element.value[0]:
            return element.value[0][name].value
    return None


def stated(header: Dataset, name: str, frame: int = 0) -> Any:
    """The value of an element for a frame; None where it is absent, empty or malformed.

    Enhanced objects state it in the functional groups of the frame or in the shared ones (PS3.3 C.7.6.16), others in
    the data set itself.
    """
    try:
        value = None
        own = header.get("PerFrameFunctionalGroupsSequence") or []
        if frame < len(own):
            value = _in_groups(own[frame], name)
        shared = header.get("SharedFunctionalGroupsSequence") or []
        if value is None and shared:
            value = _in_groups(shared[0], name)
        return header.get(name) if value is None else value
    except Exception:  # pydicom parses elements where they are used, and damaged ones fail in many ways
        return None


def number(header: Dataset, name: str, frame: int = 0) -> float | None:
    """The finite number, or the first of several, that an element states for a frame, else None."""
    value = stated(header, name, frame)
    try:
        converted = float(value[0] if isinstance(value, (list, MultiValue)) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return converted if math.isfinite(converted) else None


def frame_angles(header: Dataset, frame: int, frames: int) -> tuple[float, float]:
    """Primary and secondary angle in degrees of one frame of a run of so many; NaN = unknown."""
    primary, secondary = (_angle(header, f"Positioner{axis}Angle", frame, frames) for axis in ("Primary", "Secondary"))
    return primary, secondary


def _angle(header: Dataset, name: str, frame: int, frames: int) -> float:
    base = number(header, name, frame)
    if base is None:
        return math.nan
    # In enhanced objects each frame states its own angle.
    moves = "PerFrameFunctionalGroupsSequence" not in header and stated(header, "PositionerMotion") != "STATIC"
    angle = base + _turned(header, f"{name}Increment", base, frame, frames) if moves else base
    return angle if abs(angle) <= 180 else math.nan  # 9999, say, for unknown


def _turned(header: Dataset, name: str, base: float, frame: int, frames: int) -> float:
    """Degrees by which a moving positioner is off its stated angle at a frame; 0 where nothing is said of it.

    One value is the average from frame to frame; else each frame has its own (PS3.3 C.8.7.5.1.3), which counts from
    the stated angle, but in the rotations of some vendors is the frame's angle itself: the first is the stated one
    then, in place of 0. NaN for any other count, and for values that are no numbers.
    """
    try:
        value = header[name].value if name in header else None
        if value is None or value == "":
            return 0.0
        values = [float(entry) for entry in (value if isinstance(value, (list, MultiValue)) else [value])]
    except Exception:  # pydicom parses elements where they are used, and damaged ones fail in many ways
        return math.nan
    if not all(map(math.isfinite, values)) or len(values) not in (1, frames):
        return math.nan
    if len(values) != frames:
        return frame * values[0]
    is_absolute = base != 0 and abs(values[0] - base) <= _SAME_ANGLE
    return values[frame] - base if is_absolute else values[frame]
