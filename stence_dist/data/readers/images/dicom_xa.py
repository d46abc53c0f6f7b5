"""X-ray angiography runs in DICOM: the views of a study from its files."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import DT

from stence_dist.data.frames import FrameSettings
from stence_dist.data.readers.images.dicom_file import RunFile, open_run
from stence_dist.data.readers.images.dicom_frames import stored_frames
from stence_dist.data.readers.images.dicom_gray import to_gray
from stence_dist.data.readers.images.dicom_header import frame_angles, number, stated
from stence_dist.data.readers.images.run import Run, to_view
from stence_dist.data.readers.images.views_table import read_views_table
from stence_dist.data.readers.record import ImageStudy, study_error


def _gray_frames(run: RunFile, indices: list[int] | None) -> Iterator[NDArray[np.float32]]:
    """Frames (H, W) of gray values 0 ... 255 of a run, by number, or all."""
    for count, frame in enumerate(stored_frames(run, indices)):
        try:
            yield to_gray(frame, run.header, count if indices is None else indices[count])
        except (AttributeError, TypeError, ValueError) as error:  # look-up tables from a damaged header
            raise study_error(f"the gray scale of a run cannot be computed ({type(error).__name__}).") from None


def _frame_time(header: Dataset, frames: int) -> float | None:
    """Milliseconds from frame to frame: as stated, by steps, by rate, or by the points in time of enhanced objects."""
    time, rate = number(header, "FrameTime"), number(header, "CineRate")
    steps = stated(header, "FrameTimeVector")
    try:
        if not time and steps:
            time = float(np.median([float(step) for step in steps[1:]]))  # the first is 0
        if not time and rate:
            time = 1000.0 / rate
        if not time:
            first, last = (DT(stated(header, "FrameReferenceDateTime", place)) for place in (0, frames - 1))
            time = 1000.0 * (last - first).total_seconds() / (frames - 1)
    except (TypeError, ValueError, AttributeError):
        return None
    return time if math.isfinite(time) and time > 0 else None


def _spacing(header: Dataset) -> list[float] | None:
    """Millimeters between rows and columns at the detector; None where absent or malformed, as nothing needs it."""
    try:
        values = [float(value) for value in stated(header, "ImagerPixelSpacing") or ()]
    except (TypeError, ValueError):
        return None
    return values if len(values) == 2 and all(math.isfinite(value) and value > 0 for value in values) else None


def _run(file: RunFile) -> Run:
    header = file.header
    representative = number(header, "RepresentativeFrameNumber")  # from 1
    return Run(
        gray=partial(_gray_frames, file),
        frames=file.frames,
        rows=int(header.Rows),
        columns=int(header.Columns),
        key_frame=None if representative is None else int(representative) - 1,
        angles=partial(frame_angles, header, frames=file.frames),
        frame_time=_frame_time(header, file.frames),
        pixel_spacing=_spacing(header),
    )


def run_of(path: Path) -> Run | None:
    """The run in a DICOM file, none of its frames decoded yet; None for an object that is none. Raises ReaderError."""
    file = open_run(path)
    return None if file is None else _run(file)


def read_runs(folder: Path, paths: list[Path], settings: FrameSettings) -> ImageStudy:
    """The multi-frame XA and RF runs among the DICOM files of a study, by InstanceNumber, then file name.

    Raises ReaderError for a damaged file, a codec that is not installed, or a study without runs.
    """
    notes = read_views_table(folder)
    files = [file for path in paths if (file := open_run(path)) is not None]
    if not files:
        raise study_error(f"zero views: none of {len(paths)} DICOM files is a multi-frame XA or RF run.")

    def name(file: RunFile) -> str:
        return file.path.relative_to(folder).as_posix()

    def place(file: RunFile) -> tuple[float, str]:
        instance = number(file.header, "InstanceNumber")
        return (math.inf if instance is None else instance, name(file))

    files.sort(key=place)
    views = [to_view(_run(file), notes.get(name(file)), settings) for file in files]
    return ImageStudy("pixels", views, len(paths) - len(files))
