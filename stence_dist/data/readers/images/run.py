"""What every reader of pixels hands over, and the one way from there to a stored view."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.frames import (
    FrameSettings,
    contrast_frame,
    fit_square,
    frame_indices,
    is_saturated,
    mask_bands,
    shown_part,
)
from stence_dist.data.readers.images.views_table import ViewNote
from stence_dist.data.readers.record import View, study_error

_LARGEST_SIDE = 4096
_MOST_FRAMES = 20_000
_MOST_PIXELS = 4_000_000_000  # of a whole run: an hour of 512 x 512 fluoroscopy at 4 frames per second
_SEARCH_SIZE = 128  # pixels: frames are compared at this size where the key frame must be searched

# Frames (H, W) of gray values 0 ... 255, not rounded: those of the numbers given, in that order, or all.
GrayFrames = Callable[[list[int] | None], Iterator[NDArray[np.float32]]]


def check_size(frames: int, rows: int, columns: int) -> None:
    """Raise ReaderError for a run larger than any that is read; called before anything is decoded or mapped."""
    fits = 1 <= rows <= _LARGEST_SIDE and 1 <= columns <= _LARGEST_SIDE and 1 <= frames <= _MOST_FRAMES
    if not fits or frames * rows * columns > _MOST_PIXELS:
        raise study_error(
            f"a run has {frames} frames of {rows} x {columns} pixels; at most {_MOST_FRAMES} of "
            f"{_LARGEST_SIDE} x {_LARGEST_SIDE}, and {_MOST_PIXELS} pixels in all, are read."
        )


def _unknown(_frame: int) -> tuple[float, float]:
    return float("nan"), float("nan")


@dataclass(frozen=True)
class Run:
    """Frames of one view, decoded on demand, and what the file says of them. None = not stated."""

    gray: GrayFrames
    frames: int
    rows: int
    columns: int
    key_frame: int | None = None  # from 0
    angles: Callable[[int], tuple[float, float]] = _unknown  # of a frame: primary and secondary, degrees
    frame_time: float | None = None  # ms
    pixel_spacing: list[float] | None = None  # mm between rows and columns, at the detector


def _prepared(run: Run, indices: list[int] | None, settings: FrameSettings, size: int) -> Iterator[NDArray[np.uint8]]:
    """Frames (size, size) uint8 of a run, by number, or all, their bands masked."""
    for frame in run.gray(indices):
        yield fit_square(mask_bands(frame, settings), size)


def known_key_frame(run: Run, note: ViewNote | None) -> tuple[int, str] | None:
    """The key frame's number from 0, and where it comes from: views.csv, the header, or no choice.

    None where the frames must be searched for it. Raises ReaderError for one that the run has not.
    """
    if note is not None and note.key_frame is not None:
        if not 0 <= note.key_frame < run.frames:
            raise study_error(f"views.csv states key frame {note.key_frame} of a run of {run.frames} frames (from 0).")
        return note.key_frame, "views.csv"
    if run.key_frame is not None and 0 <= run.key_frame < run.frames:
        return run.key_frame, "header"
    if run.frames == 1:
        return 0, "only frame"
    return None


def to_view(run: Run, note: ViewNote | None, settings: FrameSettings) -> View:
    """The stored view of a run: its key frame and those around it; angles from views.csv, else from the file.

    A run of a single frame gives that frame as often as frames are wanted, as every run does beyond its ends. Only a
    view whose key frame is almost all black, white or of one gray has `saturated` in its meta: its window does not fit,
    say.
    """
    key_frame, source = known_key_frame(run, note) or (
        contrast_frame(_prepared(run, None, settings, _SEARCH_SIZE)),
        "contrast",
    )
    indices = frame_indices(key_frame, settings.frames_per_view, settings.frame_spacing, run.frames)
    wanted = sorted(set(indices))
    decoded = dict(zip(wanted, _prepared(run, wanted, settings, settings.image_size), strict=True))
    noted = note is not None and not np.isnan(note.angulation).all()
    angulation = note.angulation if note and noted else np.array(run.angles(key_frame), dtype=np.float32)
    meta: dict[str, Any] = {
        "key_frame": key_frame,
        "key_frame_source": source,
        "frame_time": run.frame_time,
        "frames": run.frames,
        "rows": run.rows,
        "columns": run.columns,
        "pixel_spacing": run.pixel_spacing,
    }
    if is_saturated(shown_part(decoded[key_frame], run.rows, run.columns, settings)):
        meta["saturated"] = True
    return View(np.stack([decoded[number] for number in indices]), angulation, meta)
