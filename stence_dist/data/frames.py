"""From runs to key frames: which frames of a run are kept, and how a frame becomes 8 bit and square.

Text that is burned into the pixels (names, dates) is NOT removed, but for the bands that `mask_top` and `mask_bottom`
of `FrameSettings` blacken.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_REFERENCE_FRAMES = 3  # of a run, before contrast arrives
_DARKEST_SHARE = 0.02  # of the pixels: about what filled arteries cover
_SATURATED_SHARE = 0.95
_FEWEST_GRAYS = 16  # 8-bit frames under a window of 12 bits have fewer
_MARGIN = 0.1  # of each side, where collimators and texts are


@dataclass(frozen=True)
class FrameSettings:
    """How runs become stored frames; see `BuildConfig`. The bands are shares of a frame's height, 0 ... 1 together."""

    image_size: int
    frames_per_view: int
    frame_spacing: int
    mask_top: float = 0.0
    mask_bottom: float = 0.0


def key_frame_place(count: int) -> int:
    """Where the key frame stands among the `count` frames that are stored of a view."""
    return (count - 1) // 2


def frame_indices(key_frame: int, count: int, spacing: int, total: int) -> list[int]:
    """`count` frame numbers around `key_frame`, `spacing` apart, those beyond an end of the run moved to that end."""
    first = key_frame - spacing * key_frame_place(count)
    return [min(max(first + spacing * number, 0), total - 1) for number in range(count)]


def contrast_frame(frames: Iterable[NDArray[np.uint8]]) -> int:
    """The frame of most contrast: the darkest pixels against the mean of the run's first frames.

    frames (H, W) uint8 in time order, vessels dark, one held at a time. The score of a frame is the mean fall of the
    2 % of pixels that fell most. A run in which nothing darkens gives its middle frame.
    """
    ordered = iter(frames)
    early = list(itertools.islice(ordered, _REFERENCE_FRAMES))
    reference = np.stack(early).astype(np.float32).mean(axis=0)
    count = max(1, round(_DARKEST_SHARE * reference.size))

    def score(frame: NDArray[np.uint8]) -> float:
        fall = (reference - frame).ravel()
        return float(np.partition(fall, -count)[-count:].mean())

    scores = [score(frame) for frame in itertools.chain(early, ordered)]
    return int(np.argmax(scores)) if max(scores) > 1.0 else len(scores) // 2


def to_bytes(frame: NDArray[Any], low: float, high: float, *, inverted: bool) -> NDArray[np.float32]:
    """frame (H, W) as gray values 0 ... 255 (float32, not yet rounded): low -> 0, high -> 255, or the reverse."""
    gray = np.clip((frame.astype(np.float32) - low) / (high - low), 0.0, 1.0) * 255.0
    return np.asarray(255.0 - gray if inverted else gray, dtype=np.float32)


def mask_bands(frame: NDArray[np.float32], settings: FrameSettings) -> NDArray[np.float32]:
    """frame (H, W) of gray values with its top and bottom bands black, as padding is; the frame itself without bands.

    A band of share 0.1 takes round(0.1 * H) rows.
    """
    top, bottom = (round(share * len(frame)) for share in (settings.mask_top, settings.mask_bottom))
    if not top and not bottom:
        return frame
    masked = frame.copy()
    masked[:top] = 0.0
    masked[len(frame) - bottom :] = 0.0
    return masked


def _place(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Height, width, top and left of a frame (height, width) within a square of `size`."""
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    return new_height, new_width, (size - new_height) // 2, (size - new_width) // 2


def fit_square(frame: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """frame (H, W) of gray values as (size, size) uint8: anti-aliased resize, aspect kept, the rest padded black."""
    height, width = frame.shape
    new_height, new_width, top, left = _place(height, width, size)
    if (new_height, new_width) != (height, width):
        # Pillow widens the triangle by the reduction, so nothing aliases; it never overshoots, so nothing clips.
        image = Image.fromarray(frame).resize((new_width, new_height), Image.Resampling.BILINEAR)
        frame = np.asarray(image, dtype=np.float32)
    square = np.zeros((size, size), dtype=np.uint8)
    square[top : top + new_height, left : left + new_width] = np.rint(np.clip(frame, 0, 255)).astype(np.uint8)
    return square


def shown_part(square: NDArray[np.uint8], rows: int, columns: int, settings: FrameSettings) -> NDArray[np.uint8]:
    """What a stored frame (S, S) shows of a frame (rows, columns): (H, W) without padding and blackened bands."""
    height, width, top, left = _place(rows, columns, len(square))
    first, last = round(settings.mask_top * height), height - round(settings.mask_bottom * height)
    return square[top + first : top + last, left : left + width]


def is_saturated(frame: NDArray[np.uint8]) -> bool:
    """Whether the middle of frame (H, W), 80 % of its rows and columns, shows next to nothing.

    95 % or more of it are all black or all white, or 98 % lie within 16 gray values.
    """
    height, width = frame.shape
    top, left = round(_MARGIN * height), round(_MARGIN * width)
    middle = frame[top : height - top, left : width - left]
    at_an_end = max(np.count_nonzero(middle == 0), np.count_nonzero(middle == 255))
    if not middle.size:
        return False
    darkest, brightest = np.percentile(middle, (1, 99))
    return bool(at_an_end >= _SATURATED_SHARE * middle.size or brightest - darkest < _FEWEST_GRAYS)
