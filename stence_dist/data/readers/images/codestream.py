"""What an encoded frame says of its own size, read before any codec sees it.

A few bytes may ask a codec for gigabytes, or for more pixels than the header's arrays hold; so nothing is decoded
unless both agree. The functions raise ValueError, struct.error or IndexError for bytes that are no such frame.
"""

import itertools
import struct
from dataclasses import dataclass

_NO_SIZE = {0xC4, 0xC8, 0xCC}  # among the markers of frames, those of tables, extensions and conditioning
_FRAMES = (set(range(0xC0, 0xD0)) - _NO_SIZE) | {0xF7}  # the last is JPEG-LS
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_START_OF_SCAN = 0xDA
_J2K_START = b"\xff\x4f\xff\x51"
_MOST_TILES = 4096  # a tile costs a decoder kilobytes before it is read


@dataclass(frozen=True)
class Stated:
    """Size of an encoded frame: rows and columns, components per pixel, bits per sample."""

    rows: int
    columns: int
    components: int
    precision: int


def jpeg_size(encoded: bytes) -> Stated:
    """What the one frame header of a JPEG or JPEG-LS stream says (ITU-T T.81 B.2.2, T.87 C.2.2)."""
    if encoded[:2] != b"\xff\xd8":
        raise ValueError("no start of image")
    found: list[Stated] = []
    place = 2
    while True:
        if encoded[place] != 0xFF:
            raise ValueError("no marker")
        marker = encoded[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker in _ALONE:
            place += 2
            continue
        if marker in _FRAMES:
            precision, rows, columns, components = struct.unpack_from(">BHHB", encoded, place + 4)
            found.append(Stated(rows, columns, components, precision))
        if marker == _START_OF_SCAN:
            break
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
    if len(found) != 1:
        raise ValueError("not one frame header")
    return found[0]


def jpeg2000_stream(encoded: bytes) -> bytes:
    """The codestream of a JPEG 2000 frame: writers wrap some in the boxes of a .jp2 file, which DICOM does not know."""
    return encoded[encoded.index(_J2K_START) :]


def jpeg2000_size(stream: bytes) -> Stated:
    """What the size marker at the start of a codestream says (ITU-T T.800 A.5.1). Raises for far too many tiles."""
    values = struct.unpack_from(">8IH3B", stream, 8)
    right, bottom, left, top, tile_columns, tile_rows, tile_left, tile_top, components, depth, *steps = values
    if not tile_columns or not tile_rows or steps != [1, 1]:
        raise ValueError("unusual tiles or sampling")
    if -(-(right - tile_left) // tile_columns) * -(-(bottom - tile_top) // tile_rows) > _MOST_TILES:
        raise ValueError("too many tiles")
    return Stated(bottom - top, right - left, components, (depth & 0x7F) + 1)


def check_runs(encoded: bytes, pixels: int, segments: int) -> None:
    """Raise ValueError unless an RLE frame unfolds to `segments` planes of `pixels` bytes (PS3.5 annex G).

    Some writers pad a plane; more than twice its size is none of them.
    """
    count, *offsets = struct.unpack_from("<16L", encoded)
    if count != segments:
        raise ValueError("other number of segments")
    for place, end in itertools.pairwise([*offsets[:count], len(encoded)]):
        if not 64 <= place <= end <= len(encoded):
            raise ValueError("segments out of order")
        unfolded = 0
        while place < end - 1 and unfolded <= 2 * pixels:
            code = encoded[place]
            if code < 128:  # so many bytes and one more follow
                unfolded, place = unfolded + code + 1, place + code + 2
            elif code > 128:  # one byte, repeated
                unfolded, place = unfolded + 257 - code, place + 2
            else:
                place += 1
        if not pixels <= unfolded <= 2 * pixels:
            raise ValueError("a segment of another size")
