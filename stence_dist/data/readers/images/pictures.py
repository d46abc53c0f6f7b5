"""Key frames as PNG or JPEG pictures: every picture in a study folder is a view of one frame.

Animated PNG, GIF, TIFF and the like are no views. A picture in color is read where it is gray in fact (all channels
alike, as exports often store gray frames); any other is refused, because colors are marks that someone drew, and marks
may show what is to be learned. 16-bit PNGs span 0 ... 65535, as their format says.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from stence_dist.data.frames import FrameSettings, to_bytes
from stence_dist.data.readers.images.run import Run, check_size, to_view
from stence_dist.data.readers.images.views_table import read_views_table
from stence_dist.data.readers.record import ImageStudy, study_error

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_ANIMATION = b"acTL"  # stands before the first image data
_ALIKE = 4  # gray levels by which JPEG's chroma may part the channels of a gray picture
_DIM = 4096  # a 16-bit picture below this was hardly spread over its range


def is_picture(_path: Path, start: bytes) -> bool:
    """Whether a file is a JPEG or a PNG that stands still, by its first bytes."""
    if start.startswith(_PNG):
        return _ANIMATION not in start.partition(b"IDAT")[0]
    return start.startswith(_JPEG)


def _gray(image: Image.Image) -> NDArray[np.float32]:
    """The gray values (H, W) 0 ... 255 of an opened picture. Raises ReaderError for one that is not gray."""
    if image.mode == "L":
        return np.asarray(image, dtype=np.float32)
    if image.mode.startswith("I"):  # 16 bits
        values = np.asarray(image)
        if values.max() < _DIM:
            raise study_error(
                f"a 16-bit picture has no value above {values.max()}; white is 65535. Multiply the values of a picture "
                "of 10 or 12 bits accordingly."
            )
        return to_bytes(values, 0.0, 65535.0, inverted=False)
    if image.mode not in ("1", "P", "LA", "PA", "RGB", "RGBA"):
        raise study_error(f"a picture is of the kind {image.mode}; expected gray or RGB.")
    channels = np.asarray(image.convert("RGBA"))
    if (channels[..., 3] < 255).any():
        raise study_error("a picture is transparent in places; expected opaque gray.")
    if np.ptp(channels[..., :3], axis=2).max() > _ALIKE:
        raise study_error(
            "a picture is in color; expected gray. Colored marks on a frame may show what is to be learned."
        )
    return np.asarray(image.convert("RGB").convert("L"), dtype=np.float32)


def _open(path: Path) -> tuple[int, int, NDArray[np.float32]]:
    """Rows, columns and gray values of a picture; its size is checked before it is decoded. Raises ReaderError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                check_size(1, image.height, image.width)
                if getattr(image, "n_frames", 1) != 1:
                    raise study_error("a picture holds several frames; expected one.")
                return image.height, image.width, _gray(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise study_error(f"a picture has more than {Image.MAX_IMAGE_PIXELS} pixels.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, zlib.error, struct.error) as error:
        raise study_error(f"a picture cannot be decoded ({type(error).__name__}); truncated or damaged?") from None


def _one_frame(gray: NDArray[np.float32], _indices: list[int] | None) -> Iterator[NDArray[np.float32]]:
    yield gray


def read_pictures(folder: Path, paths: list[Path], settings: FrameSettings) -> ImageStudy:
    """The pictures of a study, by file name, each a view; angles from views.csv. Raises ReaderError.

    Where a view is to hold several frames, the picture fills them all: such a view stands still.
    """
    notes = read_views_table(folder)
    views = []
    for path in paths:
        rows, columns, gray = _open(path)
        run = Run(partial(_one_frame, gray), 1, rows, columns)
        views.append(to_view(run, notes.get(path.relative_to(folder).as_posix()), settings))
    return ImageStudy("pixels", views)
