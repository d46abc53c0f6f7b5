"""X-ray angiography runs in DICOM, read through pydicom.

Only the SOP class, the transfer syntax and the image pixel module are required; everything else may be absent. No
header field leaves this module but the ones named here. Frames are found and decoded one at a time, those that nobody
asks for not at all, and none before its codestream and the header agree on its size. `codecs` says what decodes them.
"""

import contextlib
import io
import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames, get_frame, parse_basic_offsets, parse_fragments
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
    RLELossless,
)
from pydicom.valuerep import DT

from stence_dist.data.frames import FrameSettings
from stence_dist.data.readers.images.codecs import advice, codec_of, gdcm_module
from stence_dist.data.readers.images.codestream import check_runs, jpeg2000_size, jpeg2000_stream, jpeg_size
from stence_dist.data.readers.images.dicom_gray import to_gray
from stence_dist.data.readers.images.dicom_header import frame_angles, number, stated
from stence_dist.data.readers.images.run import Run, check_size, to_view
from stence_dist.data.readers.images.views_table import read_views_table
from stence_dist.data.readers.record import ImageStudy, ReaderError

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
_ICON = 0x0088_0200
_UNDEFINED = 0xFFFF_FFFF  # length of a sequence that ends with the element below
_SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
_LARGEST_INFLATED = 128 * 1024**2  # bytes, all of them in memory: deflated runs are rare, and small
_CHUNK = 1024**2


@dataclass(frozen=True)
class _File:
    """A run's file: its header, and where the value of its pixel data starts."""

    path: Path
    header: Dataset
    frames: int
    place: int
    vr: str  # OB or OW; "" where the syntax leaves it open


def is_dicom(_path: Path, start: bytes) -> bool:
    """Whether a file is DICOM, by its preamble."""
    return start[128:132] == b"DICM"


def _fail(message: str) -> ReaderError:
    return ReaderError(message, "study_path")


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
            raise _fail(f"a deflated file unfolds to more than {_LARGEST_INFLATED} bytes; convert it.")
    whole.seek(0)
    return whole


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
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

    with _opened(path) as file:

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

    None where the file ends.
    """
    implicit, little_endian = header.original_encoding
    order, size = "<" if little_endian else ">", 8 if implicit else 12
    start = file.read(size)
    if len(start) < size:
        return None
    if struct.unpack_from(f"{order}HH", start) != _PIXEL_DATA:
        raise _fail("the pixel data of a run are no integers, or stand elsewhere; convert the file.")
    return "" if implicit else start[4:6].decode("latin-1"), struct.unpack_from(f"{order}L", start, size - 4)[0]


def _count_frames(file: BinaryIO, header: Dataset, length: int) -> int:
    """The frames that the pixel data hold, where the header does not say: the file stands at their first byte."""
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return int(length // (header.Rows * header.Columns * header.BitsAllocated // 8))
    offsets = parse_basic_offsets(file)
    if offsets:
        return len(offsets)
    starts = 0
    for place in parse_fragments(file)[1]:
        file.seek(place + 8)
        starts += syntax == RLELossless or file.read(2) in (b"\xff\xd8", b"\xff\x4f")
    return starts


def _open_run(path: Path) -> _File | None:
    """The run in a DICOM file, or None for an object that is none. Raises ReaderError for a damaged file."""
    try:
        with _opened(path) as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            sop_class = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))
            if not sop_class:
                raise _fail("a DICOM file has no SOP class; it is damaged, or no image.")
            frames = int(number(header, "NumberOfFrames") or 0)
            if sop_class not in RUN_CLASSES or frames == 1:
                return None
            element = _pixel_element(file, header)
            if element is None:
                if is_icon_only(path):
                    return None
                raise _fail("a DICOM run ends before its pixel data; is it truncated?")
            vr, length = element
            place = file.tell()
            frames = frames or _count_frames(file, header, length)
    except ReaderError:
        raise
    except Exception as error:  # a damaged header fails in many ways
        raise _fail(f"a DICOM file cannot be parsed ({type(error).__name__}); is it truncated?") from None
    if frames < 2:
        return None
    check_size(frames, int(number(header, "Rows") or 0), int(number(header, "Columns") or 0))
    if number(header, "SamplesPerPixel") not in (None, 1) or stated(header, "PhotometricInterpretation") not in _GRAY:
        raise _fail(f"a run is in color, or does not say that it is gray; expected {' or '.join(_GRAY)}.")
    allocated, stored, high = (int(number(header, name) or 0) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high >= stored:
        raise _fail(f"a run stores {stored} of {allocated} bits up to bit {high}; expected the lowest of 8 or of 16.")
    return _File(path, header, frames, place, vr)


def is_run(path: Path) -> bool:
    """Whether a DICOM file is a multi-frame XA or RF run, by its header. Raises ReaderError for a damaged file."""
    return _open_run(path) is not None


def _decoder(syntax: Any) -> tuple[Decoder, str]:
    """The decoder of a transfer syntax, and which of its codecs to use. Raises ReaderError."""
    try:
        decoder = get_decoder(syntax)
    except (NotImplementedError, TypeError, ValueError):
        known = bool(syntax) and syntax.name != syntax  # an unknown one may be any text
        name = f"transfer syntax {syntax} ({syntax.name})" if known else "an unknown transfer syntax"
        raise _fail(f"{name} is not one that pydicom decodes; convert the file.") from None
    codec = codec_of(syntax)
    if codec is None:
        raise _absent(syntax)
    return decoder, codec


def _absent(syntax: Any) -> ReaderError:
    return _fail(f"no codec for transfer syntax {syntax} ({syntax.name}): {advice(syntax)}.")


def _encoded_frames(file: BinaryIO, run: _File, indices: list[int] | None) -> Iterator[bytes]:
    """The frames of an encapsulated file as they are stored, by number, or all."""
    tables = [run.header.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    offsets = (tables[0], tables[1]) if all(tables) else None
    file.seek(run.place)
    if indices is None:
        found = generate_frames(file, number_of_frames=run.frames, extended_offsets=offsets)
        yield from itertools.islice(found, run.frames)
    for index in indices or ():
        yield get_frame(file, index, number_of_frames=run.frames, extended_offsets=offsets)


def _decode_frame(encoded: bytes, run: _File, decoder: Decoder, codec: str) -> NDArray[Any]:
    """The stored values (H, W) of one encapsulated frame. Raises ReaderError for a size other than the header's."""
    options = {**as_pixel_options(run.header), "number_of_frames": 1, "pixel_keyword": "PixelData"}
    options.pop("extended_offsets", None)
    rows, columns, syntax = options["rows"], options["columns"], decoder.UID
    if syntax == RLELossless:
        check_runs(encoded, rows * columns, options["bits_allocated"] // 8)
    else:
        if syntax in JPEG2000TransferSyntaxes:
            encoded = jpeg2000_stream(encoded)
        size = jpeg2000_size(encoded) if syntax in JPEG2000TransferSyntaxes else jpeg_size(encoded)
        if (size.rows, size.columns, size.components) != (rows, columns, 1) or size.precision > 16:
            raise _fail(
                f"a frame is encoded as {size.rows} x {size.columns} pixels of {size.components} components and "
                f"{size.precision} bits; the header states {rows} x {columns} gray pixels."
            )
        if syntax == JPEGExtended12Bit and size.precision > 8:
            return _decode_extended(encoded, options, syntax)
        options["bits_allocated"] = 8 if size.precision <= 8 else 16
        options["bits_stored"] = min(options["bits_stored"], options["bits_allocated"])
    return decoder.as_array(encapsulate([encoded]), index=0, raw=True, decoding_plugin=codec, **options)[0]


def _decode_extended(encoded: bytes, options: dict[str, Any], syntax: Any) -> NDArray[Any]:
    """The stored values (H, W) of a 12-bit JPEG frame."""
    gdcm: Any = gdcm_module()
    if gdcm is None:
        raise _absent(syntax)
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(encoded)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((options["columns"], options["rows"], 1))
    image.SetDataElement(element)
    gray = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gray))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    image.SetPixelFormat(gdcm.PixelFormat(1, 12, 12, 11, 0))  # 12 bits allocated: its 12-bit codec from the start
    buffer = image.GetBuffer().encode("utf-8", "surrogateescape")  # the package hands bytes out as text
    return np.frombuffer(buffer, dtype="<u2").reshape(options["rows"], options["columns"])


def _decode(run: _File, indices: list[int] | None) -> Iterator[NDArray[Any]]:
    """Stored frames (H, W) by number, or all. Raises ReaderError for damaged pixels or an absent codec."""
    decoder, codec = _decoder(run.header.file_meta.get("TransferSyntaxUID"))
    count = 0
    try:
        with _opened(run.path) as file:
            if decoder.is_encapsulated:
                for encoded in _encoded_frames(file, run, indices):
                    yield _decode_frame(encoded, run, decoder, codec)
                    count += 1
            else:
                file.seek(run.place)
                options = {**as_pixel_options(run.header), "number_of_frames": run.frames, "pixel_vr": run.vr}
                options["pixel_keyword"] = "PixelData"
                for frame, _ in decoder.iter_array(file, indices=indices, raw=True, **options):
                    yield frame
                    count += 1
        if count < (run.frames if indices is None else len(indices)):
            raise ValueError("too few frames")
    except ReaderError:
        raise
    except Exception as error:  # codecs fail in many ways
        raise _fail(
            f"frame {count if indices is None else indices[count]} of a run cannot be decoded "
            f"({type(error).__name__}); the file is truncated or damaged."
        ) from None


def _gray_frames(run: _File, indices: list[int] | None) -> Iterator[NDArray[np.float32]]:
    """Frames (H, W) of gray values 0 ... 255 of a run, by number, or all."""
    for count, frame in enumerate(_decode(run, indices)):
        try:
            yield to_gray(frame, run.header, count if indices is None else indices[count])
        except (AttributeError, TypeError, ValueError) as error:  # look-up tables from a damaged header
            raise _fail(f"the gray scale of a run cannot be computed ({type(error).__name__}).") from None


def _frame_time(header: Dataset, frames: int) -> float | None:
    """Milliseconds from frame to frame: as stated, by steps, by rate, or by the points in time of enhanced objects."""
    time, rate = number(header, "FrameTime"), number(header, "CineRate")
    steps = stated(header, "FrameTimeVector")
    try:
        if time is None and steps:
            time = float(np.median([float(step) for step in steps[1:]]))  # the first is 0
        elif time is None and rate:
            time = 1000.0 / rate
        elif time is None:
            first, last = (DT(stated(header, "FrameReferenceDateTime", place)) for place in (0, frames - 1))
            time = 1000.0 * (last - first).total_seconds() / (frames - 1)
    except (TypeError, ValueError, AttributeError):
        return None
    return time if math.isfinite(time) else None


def _spacing(header: Dataset) -> list[float] | None:
    """Millimeters between rows and columns at the detector; None where absent or malformed, as nothing needs it."""
    try:
        values = [float(value) for value in stated(header, "ImagerPixelSpacing") or ()]
    except (TypeError, ValueError):
        return None
    return values if len(values) == 2 and all(map(math.isfinite, values)) else None


def _run(file: _File) -> Run:
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
    file = _open_run(path)
    return None if file is None else _run(file)


def read_runs(folder: Path, paths: list[Path], settings: FrameSettings) -> ImageStudy:
    """The multi-frame XA and RF runs among the DICOM files of a study, by InstanceNumber, then file name.

    Raises ReaderError for a damaged file, a codec that is not installed, or a study without runs.
    """
    notes = read_views_table(folder)
    files = [file for path in paths if (file := _open_run(path)) is not None]
    if not files:
        raise _fail(f"zero views: none of {len(paths)} DICOM files is a multi-frame XA or RF run.")

    def name(file: _File) -> str:
        return file.path.relative_to(folder).as_posix()

    def place(file: _File) -> tuple[float, str]:
        instance = number(file.header, "InstanceNumber")
        return (math.inf if instance is None else instance, name(file))

    files.sort(key=place)
    views = [to_view(_run(file), notes.get(name(file)), settings) for file in files]
    return ImageStudy("pixels", views, len(paths) - len(files))
