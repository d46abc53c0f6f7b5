"""DICOM files of X-ray runs, as files: their headers, deflated or not, and where their pixel data start.

Only the SOP class, the transfer syntax and the image pixel module are required; everything else may be absent. No
header field leaves the DICOM readers but the ones named here.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import parse_basic_offsets
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

from stence_dist.data.readers.images.dicom_header import number, stated
from stence_dist.data.readers.images.run import check_size
from stence_dist.data.readers.record import ReaderError, study_error

# X-ray angiographic and radiofluoroscopic image storage, and their enhanced forms.
RUN_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.12.{kind}" for kind in ("1", "2", "1.1", "2.1"))
_GRAY = ("MONOCHROME1", "MONOCHROME2")
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
    "HighBit",
    "PixelRepresentation",
    "RepresentativeFrameNumber",
    "FrameTime",
    "FrameTimeVector",
    "CineRate",
    "PositionerMotion",
    "PositionerPrimaryAngle",
    "PositionerSecondaryAngle",
    "PositionerPrimaryAngleIncrement",
    "PositionerSecondaryAngleIncrement",
    "ImagerPixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]
_PIXEL_DATA = (0x7FE0, 0x0010)
_FRAGMENT = b"\xfe\xff\x00\xe0"  # with which encapsulated pixel data begin
_MOST_FRAGMENTS = 200_000
_ICON = 0x0088_0200
_UNDEFINED = 0xFFFF_FFFF  # length of a sequence that ends with the element below
_SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
_LARGEST_INFLATED = 128 * 1024**2  # bytes, all of them in memory: deflated runs are rare, and small
_CHUNK = 1024**2


@dataclass(frozen=True)
class RunFile:
    """A run's file: its header, and where the value of its pixel data starts."""

    path: Path
    header: Dataset
    frames: int
    place: int
    vr: str  # OB or OW; "" where the syntax leaves it open


def is_dicom(_path: Path, start: bytes) -> bool:
    """Whether a file is DICOM, by its preamble."""
    return start[128:132] == b"DICM"


def _inflated(file: BinaryIO, start: int) -> BinaryIO:
    """A file whose data set is deflated from byte `start` on, as an uncompressed one in memory. Raises ReaderError."""
    whole = io.BytesIO()
    syntax = ExplicitVRLittleEndian.encode() + b"\0"
    whole.write(b"\0" * 128 + b"DICM" + struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", len(syntax)) + syntax)
    file.seek(start)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while not inflater.eof and (chunk := inflater.unconsumed_tail or file.read(_CHUNK)):
        whole.write(inflater.decompress(chunk, _CHUNK))
        if whole.tell() > _LARGEST_INFLATED:
            raise study_error(f"a deflated file unfolds to more than {_LARGEST_INFLATED} bytes; convert it.")
    whole.seek(0)
    return whole


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A DICOM file, its data set not deflated."""
    meta = read_file_meta_info(path)
    with open(path, "rb") as file:
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            # 132 bytes of preamble and 12 of the element that counts the bytes of its group from there on.
            yield _inflated(file, 144 + int(meta.FileMetaInformationGroupLength))
        else:
            yield file


def is_icon_only(path: Path) -> bool:
    """Whether an object ends, whole, without pixels but those of its icon: no run, whatever number of frames it states.

    Raises whatever pydicom raises for a damaged file.
    """
    ends = [0]  # of each element, by its stated length; the pixel data, where the search stops, have none

    with opened(path) as file:

        def stops(tag: Any, _vr: str | None, length: int) -> bool:
            found = bool(tag == _PIXEL_DATA)
            ends.append(0 if found else length if length == _UNDEFINED else file.tell() + length)
            return found

        header = read_partial(file, stops, specific_tags=[_ICON])
        size = file.seek(0, io.SEEK_END)
        file.seek(-len(_SEQUENCE_END), io.SEEK_END)
        whole = ends[-1] == size or (ends[-1] == _UNDEFINED and file.read() == _SEQUENCE_END)
    return whole and any("PixelData" in icon for icon in header.get("IconImageSequence") or ())


def _pixel_element(file: BinaryIO, header: Dataset) -> tuple[str, int] | None:
    """Value representation and stated length of the pixel data, before whose element the file stands, then value.

    Some files are written otherwise than they state: two letters tell whether there is a representation, as a length
    is even and the first letters of all that pixels can have are odd. None where the file ends.
    """
    implicit, little_endian = header.original_encoding
    order = "<" if little_endian else ">"
    start = file.read(8)
    if len(start) < 8:
        return None
    if struct.unpack_from(f"{order}HH", start) != _PIXEL_DATA:
        raise study_error("the pixel data of a run are no integers, or stand elsewhere; convert the file.")
    if start[4:6] not in (b"OB", b"OW", b"OF", b"UN") and (implicit or (little_endian and start[6:8] != b"\0\0")):
        return "", struct.unpack_from(f"{order}L", start, 4)[0]
    length = file.read(4)
    return (start[4:6].decode("latin-1"), struct.unpack(f"{order}L", length)[0]) if len(length) == 4 else None


def _complete_header(header: Dataset, frames: int) -> None:
    """Add to a run's header what all runs have alike and some leave out. Raises ReaderError for other pixels."""
    check_size(frames, int(number(header, "Rows") or 0), int(number(header, "Columns") or 0))
    photometric = str(stated(header, "PhotometricInterpretation") or "").strip().upper()
    if number(header, "SamplesPerPixel") not in (None, 1) or photometric not in _GRAY:
        raise study_error(f"a run is in color, or does not say that it is gray; expected {' or '.join(_GRAY)}.")
    header.PhotometricInterpretation = photometric
    header.SamplesPerPixel = 1
    if "PixelRepresentation" not in header:
        header.PixelRepresentation = 0  # PS3.3 C.8.7.1.1: unsigned
    allocated, stored, high = (int(number(header, name) or 0) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high >= stored:
        raise study_error(
            f"a run stores {stored} of {allocated} bits up to bit {high}; expected the lowest of 8 or of 16."
        )


def _check_length(file: BinaryIO, header: Dataset, frames: int, length: int) -> None:
    """Refuse pixel data, at whose first byte the file stands, that are stored otherwise than the header says.

    A run may be cut short, and end with a few zeros, but not hold more than it states: its frames lie elsewhere then.
    """
    syntax = header.file_meta.get("TransferSyntaxUID")
    if not syntax or not syntax.is_transfer_syntax:
        return  # whoever decodes the frames says so
    start = file.tell()
    is_encapsulated = file.read(4) == _FRAGMENT
    if syntax.is_encapsulated != is_encapsulated:
        raise study_error(
            "the pixel data of a run are not stored as its transfer syntax says: fragments of encoded frames where "
            "it has none, or none where it has; the header was changed and the pixels were not, or vice versa."
        )
    if is_encapsulated:
        return
    frame = header.Rows * header.Columns * header.BitsAllocated // 8
    surplus = length - frames * frame
    file.seek(start + frames * frame)
    if surplus > 1 and (surplus >= frame or any(file.read(surplus))):
        raise study_error(
            f"the pixel data of a run have {length} bytes, its header promises {frames} frames of {frame}; are frames "
            "padded one by one, or is the header another's?"
        )


def fragments(file: BinaryIO, place: int) -> list[tuple[int, int]]:
    """First byte and length of each fragment of the encapsulated pixel data at `place`, empty ones aside.

    The item of offsets, the first, is none; many writers fill it wrongly, and some put zeros for the mark of the end.
    Raises ValueError for more than any run has.
    """
    found: list[tuple[int, int]] = []
    file.seek(place)
    while len(head := file.read(8)) == 8 and head.startswith(_FRAGMENT):
        length = int.from_bytes(head[4:], "little")
        found.append((file.tell(), length))
        file.seek(length, io.SEEK_CUR)
        if len(found) > _MOST_FRAGMENTS:
            raise ValueError("too many fragments")
    return [(start, length) for start, length in found[1:] if length]


def _count_frames(file: BinaryIO, header: Dataset, length: int) -> int:
    """The frames that the pixel data hold, where the header does not say: the file stands at their first byte."""
    place = file.tell()
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return int(length // (header.Rows * header.Columns * header.BitsAllocated // 8))
    offsets = parse_basic_offsets(file)
    if offsets:
        return len(offsets)
    starts = 0
    for start, _ in fragments(file, place):
        file.seek(start)
        starts += syntax == RLELossless or file.read(2) in (b"\xff\xd8", b"\xff\x4f")
    return starts


def open_run(path: Path) -> RunFile | None:
    """The run in a DICOM file, or None for an object that is none. Raises ReaderError for a damaged file."""
    try:
        with opened(path) as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            sop_class = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))
            if not sop_class:
                raise study_error("a DICOM file has no SOP class; it is damaged, or no image.")
            frames = int(number(header, "NumberOfFrames") or 0)
            if sop_class not in RUN_CLASSES or frames == 1:
                return None
            element = _pixel_element(file, header)
            if element is None:
                if is_icon_only(path):
                    return None
                raise study_error("a DICOM run ends before its pixel data; is it truncated?")
            vr, length = element
            place = file.tell()
            frames = frames or _count_frames(file, header, length)
            if frames < 2:
                return None
            _complete_header(header, frames)
            file.seek(place)
            _check_length(file, header, frames, length)
    except ReaderError:
        raise
    except Exception as error:  # a damaged header fails in many ways
        raise study_error(f"a DICOM file cannot be parsed ({type(error).__name__}); is it truncated?") from None
    return RunFile(path, header, frames, place, vr)


def is_run(path: Path) -> bool:
    """Whether a DICOM file is a multi-frame XA or RF run, by its header. Raises ReaderError for a damaged file."""
    return open_run(path) is not None
