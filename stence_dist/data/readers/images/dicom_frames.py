"""The stored values of a DICOM run's frames, as pydicom and its codecs decode them.

Frames are found and decoded one at a time, those that nobody asks for not at all, and none before its codestream and
the header agree on its size. `codecs` says what decodes them.
"""

import itertools
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, generate_frames, get_frame
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    JPEG2000,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
    RLELossless,
)

from stence_dist.data.readers.images.codecs import advice, codec_of, gdcm_module
from stence_dist.data.readers.images.codestream import check_runs, jpeg2000_size, jpeg2000_stream, jpeg_size
from stence_dist.data.readers.images.dicom_file import RunFile, fragments, opened
from stence_dist.data.readers.record import ReaderError, study_error

# Values beyond the stored bits are ringing there; a window cuts them off.
_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000)


def _decoder(syntax: Any) -> tuple[Decoder, str]:
    """The decoder of a transfer syntax, and which of its codecs to use. Raises ReaderError."""
    try:
        decoder = get_decoder(syntax)
    except (NotImplementedError, TypeError, ValueError):
        known = bool(syntax) and syntax.name != syntax  # an unknown one may be any text
        name = f"transfer syntax {syntax} ({syntax.name})" if known else "an unknown transfer syntax"
        raise study_error(f"{name} is not one that pydicom decodes; convert the file.") from None
    codec = codec_of(syntax)
    if codec is None:
        raise _absent(syntax)
    return decoder, codec


def _absent(syntax: Any) -> ReaderError:
    return study_error(f"no codec for transfer syntax {syntax} ({syntax.name}): {advice(syntax)}.")


def _encoded_frames(file: BinaryIO, run: RunFile, indices: list[int] | None) -> Iterator[bytes]:
    """The frames of an encapsulated file as they are stored, by number, or all."""
    found = fragments(file, run.place)
    if len(found) == run.frames:  # as nearly all files have them; no table of offsets is needed
        for start, length in found if indices is None else map(found.__getitem__, indices):
            file.seek(start)
            yield file.read(length)
        return
    tables = [run.header.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    offsets = (tables[0], tables[1]) if all(tables) else None
    file.seek(run.place)
    if indices is None:
        frames = generate_frames(file, number_of_frames=run.frames, extended_offsets=offsets)
        yield from itertools.islice(frames, run.frames)
    for index in indices or ():
        yield get_frame(file, index, number_of_frames=run.frames, extended_offsets=offsets)


def _decode_frame(encoded: bytes, run: RunFile, decoder: Decoder, codec: str) -> NDArray[Any]:
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
        # A header of more bits than 8-bit JPEG has is that of the frames before they were made so, as is its window.
        too_few = syntax in (JPEGBaseline8Bit, JPEGExtended12Bit) and size.precision < min(options["bits_stored"], 9)
        fits = (size.rows, size.columns, size.components) == (rows, columns, 1)
        if not fits or size.precision > options["bits_allocated"] or too_few:
            raise study_error(
                f"a frame is encoded as {size.rows} x {size.columns} pixels of {size.components} components and "
                f"{size.precision} bits; the header states {rows} x {columns} gray pixels of {options['bits_stored']} "
                f"in {options['bits_allocated']} bits."
            )
        if syntax == JPEGExtended12Bit and size.precision > 8:
            return _decode_extended(encoded, options, syntax)
        options["bits_allocated"] = 8 if size.precision <= 8 else 16
        options["bits_stored"] = min(options["bits_stored"], options["bits_allocated"])
    values = decoder.as_array(encapsulate([encoded]), index=0, raw=True, decoding_plugin=codec, **options)[0]
    return values if syntax in _LOSSY else _stored_bits(values, options["bits_stored"])


def _stored_bits(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """values without what some machines keep above the stored bits, overlays say; the sign is of the highest stored."""
    unused = 8 * values.dtype.itemsize - bits
    return values << unused >> unused


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


def stored_frames(run: RunFile, indices: list[int] | None) -> Iterator[NDArray[Any]]:
    """Stored frames (H, W) by number, or all. Raises ReaderError for damaged pixels or an absent codec."""
    decoder, codec = _decoder(run.header.file_meta.get("TransferSyntaxUID"))
    count = 0
    try:
        with opened(run.path) as file:
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
        raise study_error(
            f"frame {count if indices is None else indices[count]} of a run cannot be decoded "
            f"({type(error).__name__}); the file is truncated or damaged."
        ) from None
