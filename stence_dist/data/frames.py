"""From runs to key frames: which frames of a run are kept, and how a frame becomes 8 bit and square."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_REFERENCE_FRAMES = 3  # of a run, before contrast arrives
_DARKEST_SHARE = 0.02  # of the pixels: about what filled arteries cover


@dataclass(frozen=True)
class FrameSettings:
    """How runs become stored frames; see `BuildConfig`."""

    image_size: int
    frames_per_view: int
    frame_spacing: int


def frame_indices(key_frame: int, count: int, spacing: int, total: int) -> list[int]:
    """`count` frame numbers around `key_frame`, `spacing` apart, those beyond an end of the run moved to that end."""
    first = key_frame - spacing * ((count - 1) // 2)
    return [min(max(first + spacing * number, 0), total - 1) for number in range(count)]


def contrast_frame(frames: Iterable[NDArray[np.uint8]]) -> int:
    """The frame of most contrast: the darkest pixels against the mean of the run's first frames.

    frames (H, W) uint8 in time order, vessels dark. The score of a frame is the mean fall of the 2 % of pixels that
    fell most. A run in which nothing darkens gives its middle frame.
    """
    stack = np.stack(list(frames)).astype(np.float32)
    fall = (stack[:_REFERENCE_FRAMES].mean(axis=0) - stack).reshape(len(stack), -1)
    count = max(1, round(_DARKEST_SHARE * fall.shape[1]))
    scores = np.partition(fall, -count, axis=1)[:, -count:].mean(axis=1)
    return int(scores.argmax()) if scores.max() > 1.0 else len(stack) // 2


def to_bytes(frame: NDArray[Any], low: float, high: float, *, inverted: bool) -> NDArray[np.float32]:
    """frame (H, W) as gray values 0 ... 255 (float32, not yet rounded): low -> 0, high -> 255, or the reverse."""
    gray = np.clip((frame.astype(np.float32) - low) / (high - low), 0.0, 1.0) * 255.0
    return np.asarray(255.0 - gray if inverted else gray, dtype=np.float32)


def fit_square(frame: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """frame (H, W) of gray values as (size, size) uint8: anti-aliased resize, aspect kept, the rest padded black."""
    height, width = frame.shape
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    if (new_height, new_width) != (height, width):
        # Pillow widens the triangle by the reduction, so nothing aliases; it never overshoots, so nothing clips.
        image = Image.fromarray(frame).resize((new_width, new_height), Image.Resampling.BILINEAR)
        frame = np.asarray(image, dtype=np.float32)
    square = np.zeros((size, size), dtype=np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square[top : top + new_height, left : left + new_width] = np.rint(np.clip(frame, 0, 255)).astype(np.uint8)
    return square
