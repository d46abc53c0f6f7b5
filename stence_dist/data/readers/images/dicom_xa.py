"""X-ray angiography runs in DICOM, read through pydicom.

Only the SOP class, the transfer syntax and the image pixel module are required; everything else may be absent. No
header field leaves this module but the ones named here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import iter_pixels

from stence_dist.data.frames import (
    FrameSettings,
    contrast_frame,
    fit_square,
    frame_indices,
    to_bytes,
)
from stence_dist.data.readers.images.views_table import ViewNote, read_views_table
from stence_dist.data.readers.record import ImageStudy, ReaderError, View

# X-ray angiographic and radiofluoroscopic image storage, and their enhanced forms.
RUN_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.12.{number}" for number in ("1", "2", "1.1", "2.1"))
_TAGS = [
    "SOPClassUID",
    "InstanceNumber",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "RepresentativeFrameNumber",
    "FrameTime",
    "PositionerPrimaryAngle",
    "PositionerSecondaryAngle",
    "ImagerPixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTSequence",
]
# JPEG lossless and JPEG-LS: what the extra `dicom` decodes beyond pydicom and Pillow.
_IN_EXTRA = (".4.57", ".4.70", ".4.80", ".4.81")
_LARGEST_SIDE = 8192
_MOST_FRAMES = 20_000
_SEARCH_SIZE = 128  # pixels: frames are compared at this size where the key frame must be searched


@dataclass(frozen=True)
class _Run:
    path: Path
    header: Dataset
    frames: int


def is_dicom(path: Path) -> bool:
    """Whether `path` is a DICOM file, by its preamble."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _fail(message: str) -> ReaderError:
    return ReaderError(message, "study_path")


def _number(header: Dataset, name: str) -> float | None:
    """An optional numeric element; None where it is absent, empty or malformed."""
    try:
        value = float(header[name].value)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return value if math.isfinite(value) else None


def _open_run(path: Path) -> _Run | None:
    """The run in a DICOM file, or None for an object that is none. Raises ReaderError for a damaged file."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        sop_class = str(header.get("SOPClassUID", ""))
        frames = int(_number(header, "NumberOfFrames") or 1)
    except Exception as error:  # a damaged header fails in many ways
        raise _fail(f"a DICOM file cannot be parsed ({type(error).__name__}); is it truncated?") from None
    if not sop_class:
        raise _fail("a DICOM file has no SOP class; it is damaged, or no image.")
    if sop_class not in RUN_CLASSES or frames < 2:
        return None
    rows, columns = _number(header, "Rows") or 0, _number(header, "Columns") or 0
    if not (1 <= rows <= _LARGEST_SIDE and 1 <= columns <= _LARGEST_SIDE and frames <= _MOST_FRAMES):
        raise _fail(
            f"a run has {frames} frames of {rows:.0f} x {columns:.0f} pixels; "
            f"at most {_MOST_FRAMES} of {_LARGEST_SIDE} x {_LARGEST_SIDE} are read."
        )
    photometric = str(header.get("PhotometricInterpretation", ""))
    if int(_number(header, "SamplesPerPixel") or 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise _fail(f"a run is {photometric or 'of unknown color'}; expected MONOCHROME1 or MONOCHROME2.")
    return _Run(path, header, frames)


def _decode(run: _Run, indices: list[int] | None) -> Iterator[NDArray[Any]]:
    """Raw frames (H, W) by number, or all. Raises ReaderError for damaged pixels or an absent codec."""
    syntax = run.header.file_meta.get("TransferSyntaxUID")
    try:
        decoder = get_decoder(syntax)
    except (NotImplementedError, TypeError, ValueError):
        raise _fail(f"transfer syntax {syntax} is not one that pydicom decodes; convert the file.") from None
    if not decoder.is_available:
        advice = 'pip install "stence_dist[dicom]"' if str(syntax).endswith(_IN_EXTRA) else "convert the file"
        raise _fail(f"no codec for transfer syntax {syntax} ({syntax.name}): {advice}.")
    number = 0
    try:
        for frame in iter_pixels(run.path, indices=indices, raw=True):
            yield frame
            number += 1
    except Exception as error:  # codecs fail in many ways
        raise _fail(
            f"frame {number if indices is None else indices[number]} of a run cannot be decoded "
            f"({type(error).__name__}); the file is truncated or damaged."
        ) from None


def _gray_range(header: Dataset) -> tuple[float, float]:
    """The stored values that mean black and white, through the modality transformation; never those of one frame."""
    if header.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** int(header.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits = int(header.BitsStored)
    shift = 2.0 ** (bits - 1) if header.get("PixelRepresentation") else 0.0
    low, high = -shift, 2.0**bits - 1 - shift
    slope, intercept = _number(header, "RescaleSlope"), _number(header, "RescaleIntercept")
    if slope is not None and intercept is not None:
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    return low, high


def _first(value: Any) -> float:
    """The first of a possibly multi-valued window element."""
    return float(value[0] if isinstance(value, (list, pydicom.multival.MultiValue)) else value)


def _to_gray(frame: NDArray[Any], header: Dataset) -> NDArray[np.float32]:
    """A raw frame (H, W) as gray values 0 ... 255: modality look-up, then VOI look-up, window, or the full range."""
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    values = apply_modality_lut(frame, header)
    if header.get("VOILUTSequence"):
        looked_up = apply_voi_lut(np.rint(values).astype(np.int64), header, prefer_lut=True)
        top = 2.0 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
        return to_bytes(looked_up, 0.0, top, inverted=inverted)
    if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        center, width = _first(header.WindowCenter), _first(header.WindowWidth)
        if width > 1:  # PS3.3 C.11.2.1.2: the linear window's ends
            low = center - 0.5 - (width - 1) / 2
            return to_bytes(values, low, low + width - 1, inverted=inverted)
    low, high = _gray_range(header)
    return to_bytes(values, low, high, inverted=inverted)


def _gray_frames(run: _Run, indices: list[int] | None, size: int) -> Iterator[NDArray[np.uint8]]:
    """Frames (size, size) uint8 of a run, by number, or all."""
    for frame in _decode(run, indices):
        try:
            gray = _to_gray(frame, run.header)
        except Exception as error:  # look-up tables from a damaged header
            raise _fail(f"the gray scale of a run cannot be computed ({type(error).__name__}).") from None
        yield fit_square(gray, size)


def _key_frame(run: _Run, note: ViewNote | None) -> tuple[int, str]:
    """The key frame's number from 0, and where it comes from: views.csv, the header, or the contrast."""
    if note is not None and note.key_frame is not None:
        if not 0 <= note.key_frame < run.frames:
            raise _fail(f"views.csv states key frame {note.key_frame} of a run of {run.frames} frames (from 0).")
        return note.key_frame, "views.csv"
    stated = _number(run.header, "RepresentativeFrameNumber")
    if stated is not None and 1 <= stated <= run.frames:
        return int(stated) - 1, "header"
    return contrast_frame(_gray_frames(run, None, _SEARCH_SIZE)), "contrast"


def _angulation(run: _Run, note: ViewNote | None) -> NDArray[np.float32]:
    """Primary and secondary angle (2,) in degrees from views.csv, else from the header; NaN = unknown."""
    if note is not None and not np.isnan(note.angulation).all():
        return note.angulation
    names = ("PositionerPrimaryAngle", "PositionerSecondaryAngle")
    angles = [_number(run.header, name) for name in names]
    return np.array([float("nan") if angle is None else angle for angle in angles], dtype=np.float32)


def _spacing(header: Dataset) -> list[float] | None:
    """Millimeters between rows and columns at the detector; None where absent or malformed, as nothing needs it."""
    try:
        values = [float(value) for value in header.get("ImagerPixelSpacing") or ()]
    except (TypeError, ValueError):
        return None
    return values if len(values) == 2 else None


def _read_view(run: _Run, note: ViewNote | None, settings: FrameSettings) -> View:
    key_frame, source = _key_frame(run, note)
    indices = frame_indices(key_frame, settings.frames_per_view, settings.frame_spacing, run.frames)
    wanted = sorted(set(indices))
    decoded = dict(zip(wanted, _gray_frames(run, wanted, settings.image_size), strict=True))
    meta = {
        "key_frame": key_frame,
        "key_frame_source": source,
        "frame_time": _number(run.header, "FrameTime"),
        "frames": run.frames,
        "rows": int(run.header.Rows),
        "columns": int(run.header.Columns),
        "pixel_spacing": _spacing(run.header),
    }
    return View(np.stack([decoded[number] for number in indices]), _angulation(run, note), meta)


def read_runs(folder: Path, files: list[Path], settings: FrameSettings) -> ImageStudy:
    """The multi-frame XA and RF runs among the DICOM `files` of a study, by InstanceNumber, then file name.

    Raises ReaderError for a damaged file, a codec that is not installed, or a study without runs.
    """
    notes = read_views_table(folder)
    runs = [run for path in files if (run := _open_run(path)) is not None]
    if not runs:
        raise _fail(f"zero views: none of {len(files)} DICOM files is a multi-frame XA or RF run.")

    def place(run: _Run) -> tuple[float, str]:
        number = _number(run.header, "InstanceNumber")
        return (math.inf if number is None else number, run.path.relative_to(folder).as_posix())

    runs.sort(key=place)
    views = [_read_view(run, notes.get(run.path.relative_to(folder).as_posix()), settings) for run in runs]
    return ImageStudy("pixels", views, len(files) - len(runs))
