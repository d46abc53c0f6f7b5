"""From stored values of an X-ray run to the gray values that a display shows.

The steps are those of PS3.4 N.2.1: rescale, VOI look-up table or window, inversion of MONOCHROME1. Nothing depends on
the values of the frame at hand.

Pixel Intensity Relationship (LIN, LOG or DISP) plays no part, and a Modality LUT *table* is never applied. Runs in
logarithmic values must carry one (PS3.3 A.14.3, A.16.3), but it leads back to beam intensity, for measurements; such
tables are no part of the display pipeline (PS3.17 FFF.2.3.1.3.4), and windows refer to the values without them.
Applied, it would make the vessels of those runs darker than those of all others.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy.special import expit

from stence_dist.data.frames import to_bytes
from stence_dist.data.readers.images.dicom_header import number, stated


def _stored_range(header: Dataset) -> tuple[float, float]:
    """The smallest and the largest value that the stored bits can hold."""
    bits = int(header.BitsStored)
    shift = 2.0 ** (bits - 1) if header.get("PixelRepresentation") else 0.0
    return -shift, 2.0**bits - 1 - shift


def _looked_up(values: NDArray[Any], lowest: float, table: Dataset, little_endian: bool) -> tuple[NDArray[Any], float]:
    """values, `lowest` or more, through one item of a VOI LUT Sequence, and what is white (PS3.3 C.11.2.1.1).

    The bits per entry that files state are often those of the stored word (16 for entries up to 4095), or too few. So
    white is the largest value of the bits that the largest entry takes, and of 8 or more. The first value that a table
    maps is as signed as the values are, whatever representation it is stored in.
    """
    count, first, bits = (int(entry) for entry in table.LUTDescriptor)
    count = count % 65536 or 65536
    if lowest >= 0:
        first %= 65536
    elif first >= 32768:
        first -= 65536
    if not 8 <= bits <= 16:
        raise ValueError("unusual depth")
    data = table.LUTData
    if isinstance(data, bytes):
        wide = "<u2" if little_endian else ">u2"
        packed = bits == 8 and len(data) in (count, count + 1)
        entries = np.frombuffer(data, dtype=np.uint8 if packed else wide)
    else:
        entries = np.asarray(data, dtype=np.int64)
    if len(entries) < count:
        raise ValueError("too few entries")
    places = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    top = 2 ** max(8, int(entries[:count].max()).bit_length()) - 1
    return entries[places], float(top)


def to_gray(frame: NDArray[Any], header: Dataset, place: int) -> NDArray[np.float32]:
    """Stored values (H, W) of frame number `place` as gray values 0 ... 255: by VOI table, window, or the full range.

    Of several tables or windows the first counts. Raises ValueError, TypeError or AttributeError for malformed ones.
    """
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    values = frame
    low, high = _stored_range(header)
    slope, intercept = (number(header, name, place) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope and intercept is not None:
        values = frame.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    tables = stated(header, "VOILUTSequence", place)
    if tables and tables[0].get("LUTDescriptor") and tables[0].get("LUTData"):  # some leave an empty one
        looked_up, top = _looked_up(values, low, tables[0], header.original_encoding[1] is not False)
        return to_bytes(looked_up, 0.0, top, inverted=inverted)
    center, width = (number(header, name, place) for name in ("WindowCenter", "WindowWidth"))
    function = str(stated(header, "VOILUTFunction", place) or "LINEAR").upper()
    if center is None or width is None or width <= (1 if function == "LINEAR" else 0):
        return to_bytes(values, low, high, inverted=inverted)
    if function == "LINEAR":  # PS3.3 C.11.2.1.2.1
        low = center - 0.5 - (width - 1) / 2
        return to_bytes(values, low, low + width - 1, inverted=inverted)
    if function == "LINEAR_EXACT":  # C.11.2.1.3.2
        return to_bytes(values, center - width / 2, center + width / 2, inverted=inverted)
    if function == "SIGMOID":  # C.11.2.1.3.1
        return to_bytes(expit(4.0 * (values.astype(np.float32) - center) / width), 0.0, 1.0, inverted=inverted)
    raise ValueError("unknown VOI LUT function")
