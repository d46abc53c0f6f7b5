"""XA runs in every transfer syntax that is read, written here, against the uncompressed file; and hostile ones."""

import io
import json
import re
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import peak_memory
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import UID
from scipy.fft import dctn

from stence_dist.check.studies import look_at_view
from stence_dist.data.frames import FrameSettings
from stence_dist.data.readers import ReaderError, read_study
from stence_dist.data.readers.images.codecs import advice, codec_of
from stence_dist.data.readers.images.views_table import read_views_table

SIDE = 32
THREE = FrameSettings(image_size=SIDE, frames_per_view=3, frame_spacing=1)
ONE = FrameSettings(image_size=SIDE, frames_per_view=1, frame_spacing=1)
JPEG = "1.2.840.10008.1.2.4."
RLE = "1.2.840.10008.1.2.5"
Frames = NDArray[np.integer]
Write = Callable[..., None]
# Lowest of the 256 neighboring values that a run of so many bits (negative: signed) is made of.
LOWEST = {8: 0, 10: 600, 12: 1700, 16: 40000, -8: -128, -12: -900, -16: -30000}


def band(bits: int, frames: int = 3) -> Frames:
    """Smooth, noisy frames with a dark vessel that span 256 neighboring values somewhere in the range of the bits."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    gray = 150 + 60 * np.sin(x / 5 + y / 9) + rng.normal(0, 4, (frames, SIDE, SIDE))
    gray[:, :, 14:17] -= 80
    gray[:, 0, :2] = 0, 255
    kind = ("i" if bits < 0 else "u") + str(1 if abs(bits) == 8 else 2)
    return (np.clip(np.rint(gray), 0, 255).astype(np.int64) + LOWEST[bits]).astype(kind)


def write_band(make_run: Write, path: Path, bits: int, **elements: object) -> Frames:
    """An uncompressed run whose window shows each value of the band as a gray value of its own; the gray values."""
    frames = band(bits)
    stated = {
        "BitsStored": abs(bits),
        "HighBit": abs(bits) - 1,
        "PixelRepresentation": int(bits < 0),
        "WindowCenter": LOWEST[bits] + 128,
        "WindowWidth": 256,
        "RepresentativeFrameNumber": 2,
        "SOPInstanceUID": "1.2.3",
    }
    make_run(path, frames, **{**stated, **elements})
    return frames.astype(np.int64) - LOWEST[bits]


def restored(path: Path, syntax: str, encoded: list[bytes], **elements: object) -> None:
    """The file with other pixel data: `encoded` frames in `syntax`."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate(encoded)
    dataset["PixelData"].VR = "OB"
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=False)


def each_frame(path: Path, syntax: str, encode: Callable[[Frames], bytes]) -> None:
    """The uncompressed file with every frame encoded by `encode`."""
    restored(path, syntax, [encode(frame) for frame in pydicom.dcmread(path).pixel_array])


def by_pillow(path: Path, syntax: str, kind: str, **options: object) -> None:
    def encode(frame: Frames) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, kind, **options)
        return buffer.getvalue()

    each_frame(path, syntax, encode)


def by_pydicom(path: Path, syntax: str, plugin: str, **options: object) -> None:
    if plugin != "pydicom":
        pytest.importorskip("jpeg_ls")
    dataset = pydicom.dcmread(path)
    dataset.compress(UID(syntax), encoding_plugin=plugin, generate_instance_uid=False, **options)
    dataset.save_as(path, enforce_file_format=False)


def by_gdcm(path: Path, syntax: str, precision: int | None = None) -> None:
    """The file in another syntax, its codestream of another precision than the header then states."""
    gdcm = pytest.importorskip("gdcm")
    dataset = pydicom.dcmread(path)
    bits = dataset.BitsStored
    dataset.BitsStored = precision or bits
    dataset.HighBit = dataset.BitsStored - 1
    dataset.save_as(path, enforce_file_format=False)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    dataset = pydicom.dcmread(path)
    assert dataset.file_meta.TransferSyntaxUID == syntax
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.save_as(path, enforce_file_format=False)


def uncompressed(path: Path, syntax: str, vr: str | None = None) -> None:
    """The file in another uncompressed syntax, its words turned round where that is big endian."""
    source, dataset = pydicom.dcmread(path), Dataset()
    for element in source:
        dataset.add(element)
    dataset.file_meta = source.file_meta
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset["PixelData"].VR = vr or source["PixelData"].VR
    if not UID(syntax).is_little_endian and dataset["PixelData"].VR == "OW":
        dataset.PixelData = np.frombuffer(source.PixelData, dtype=np.uint16).byteswap().tobytes()
    dataset.save_as(path, enforce_file_format=True)


def jpeg(frame: Frames, precision: int) -> bytes:
    """A frame (H, W) as sequential JPEG of 8 or 12 bits in steps of 1, after ITU-T T.81, all codes of equal length."""
    height, width = frame.shape
    padded = np.pad(frame.astype(float), ((0, -height % 8), (0, -width % 8)), mode="edge") - 2 ** (precision - 1)
    places = [(y, x) for y in range(8) for x in range(8)]
    zigzag = sorted(places, key=lambda p: (sum(p), p[0] if sum(p) % 2 else p[1]))
    symbols = [0x00, 0xF0, *((run << 4) + size for run in range(16) for size in range(1, 15))]

    def code(run: int, value: int) -> str:
        size = abs(value).bit_length()
        extra = value if value >= 0 else value + 2**size - 1
        return format(symbols.index((run << 4) + size), "08b") + (format(extra, f"0{size}b") if size else "")

    bits, previous = [], 0
    for top in range(0, padded.shape[0], 8):
        for left in range(0, padded.shape[1], 8):
            block = np.rint(dctn(padded[top : top + 8, left : left + 8], norm="ortho")).astype(int)
            first, *others = (int(block[place]) for place in zigzag)
            size = abs(first - previous).bit_length()
            extra = first - previous + (2**size - 1 if first < previous else 0)
            bits.append(format(size, "05b") + (format(extra, f"0{size}b") if size else ""))
            previous, run = first, 0
            while others and others[-1] == 0:
                others.pop()
            for value in others:
                if value == 0:
                    run += 1
                    continue
                bits.append(format(1, "08b") * (run // 16) + code(run % 16, value))
                run = 0
            if len(others) < 63:
                bits.append(code(0, 0))
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content

    return b"".join(
        [
            b"\xff\xd8",
            segment(0xDB, b"\0" + bytes([1] * 64)),
            segment(0xC1, struct.pack(">BHHB", precision, height, width, 1) + b"\1\x11\0"),
            segment(0xC4, b"\0" + bytes([0, 0, 0, 0, 16, *[0] * 11]) + bytes(range(16))),
            segment(0xC4, b"\x10" + bytes([*[0] * 7, len(symbols), *[0] * 8]) + bytes(symbols)),
            segment(0xDA, b"\1\1\0\0\x3f\0"),
            scan,
            b"\xff\xd9",
        ]
    )


def in_jpeg(path: Path, syntax: str, precision: int) -> None:
    each_frame(path, syntax, partial(jpeg, precision=precision))


J2K = {"kind": "JPEG2000", "no_jp2": True}
LOSSLESS = [
    *((bits, uncompressed, {"syntax": "1.2.840.10008.1.2"}) for bits in (8, 12, -12)),
    *((bits, uncompressed, {"syntax": "1.2.840.10008.1.2.2"}) for bits in (8, 16, -12)),
    (8, uncompressed, {"syntax": "1.2.840.10008.1.2.2", "vr": "OW"}),
    *((bits, uncompressed, {"syntax": "1.2.840.10008.1.2.1.99"}) for bits in (8, 16)),
    *((bits, by_pydicom, {"syntax": RLE, "plugin": "pydicom"}) for bits in (8, 12, 16, -12)),
    *((bits, by_pillow, {"syntax": f"{JPEG}90", **J2K}) for bits in (8, 12, 16)),  # 12 bits in a stream of 16
    (8, by_pillow, {"syntax": f"{JPEG}90", "kind": "JPEG2000"}),  # in the boxes of a .jp2 file
    *((bits, by_gdcm, {"syntax": f"{JPEG}90"}) for bits in (12, 16, -12)),
    *((bits, by_gdcm, {"syntax": f"{JPEG}57"}) for bits in (8, 16)),
    *((bits, by_gdcm, {"syntax": f"{JPEG}70"}) for bits in (8, 10, 12, 16, -8, -12, -16)),
    (12, by_gdcm, {"syntax": f"{JPEG}70", "precision": 16}),
    *((bits, by_gdcm, {"syntax": f"{JPEG}80"}) for bits in (8, 12, 16, -12)),
    *((bits, by_pydicom, {"syntax": f"{JPEG}80", "plugin": "pyjpegls"}) for bits in (8, 12, 16)),
]
LOSSY = [
    (8, by_pillow, {"syntax": f"{JPEG}50", "kind": "JPEG", "quality": 95}, 8),
    (8, in_jpeg, {"syntax": f"{JPEG}50", "precision": 8}, 1),
    (8, in_jpeg, {"syntax": f"{JPEG}51", "precision": 8}, 1),
    (10, in_jpeg, {"syntax": f"{JPEG}51", "precision": 12}, 1),
    (12, in_jpeg, {"syntax": f"{JPEG}51", "precision": 12}, 1),
    *((b, by_pydicom, {"syntax": f"{JPEG}81", "plugin": "pyjpegls", "jls_error": 3}, 3) for b in (8, 12, 16)),
    *((b, by_pillow, {"syntax": f"{JPEG}91", **J2K, "irreversible": True}, 3) for b in (8, 16)),
]


def name_of(value: object) -> str:
    if isinstance(value, dict):
        return str(value["syntax"]).removeprefix("1.2.840.10008.")
    if isinstance(value, bytes):
        return f"{len(value)}_bytes"
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("bits", "change", "how"), LOSSLESS, ids=name_of)
def test_lossless_syntaxes(
    tmp_path: Path, make_run: Write, bits: int, change: Callable[..., None], how: dict[str, object]
) -> None:
    """Three stored frames equal the values that were written, each value of the band a gray value of its own."""
    expected = write_band(make_run, tmp_path / "a.dcm", bits)
    np.testing.assert_array_equal(read_study(tmp_path, THREE).views[0].frames, expected)
    change(tmp_path / "a.dcm", **how)
    np.testing.assert_array_equal(read_study(tmp_path, THREE).views[0].frames, expected)


@pytest.mark.parametrize(("bits", "change", "how", "bound"), LOSSY, ids=name_of)
def test_lossy_syntaxes(
    tmp_path: Path, make_run: Write, bits: int, change: Callable[..., None], how: dict[str, object], bound: int
) -> None:
    """No pixel differs from what was written by more than the encoder may lose."""
    expected = write_band(make_run, tmp_path / "a.dcm", bits)
    change(tmp_path / "a.dcm", **how)
    frames = read_study(tmp_path, THREE).views[0].frames
    assert 0 < np.abs(frames.astype(int) - expected).max() <= bound


def test_twelve_bit_jpeg_of_another_encoder(tmp_path: Path, make_run: Write) -> None:
    """pydicom's own 12-bit file, its one frame stored twice; two pixels of it as pydicom's tests state them."""
    pytest.importorskip("gdcm")
    source = pydicom.dcmread(pydicom.data.get_testdata_file("JPGExtended.dcm", download=False))
    frame = next(generate_frames(source.PixelData, number_of_frames=1))
    path = tmp_path / "a.dcm"
    make_run(path, np.zeros((2, source.Rows, source.Columns), np.uint16), WindowCenter=128, WindowWidth=256)
    restored(path, f"{JPEG}51", [frame, frame], BitsStored=12, HighBit=11)
    square = read_study(tmp_path, FrameSettings(1024, 1, 1)).views[0].frames[0]
    left = (1024 - source.Columns) // 2
    assert (square[420, left + 140], square[230, left + 120]) == (244, 95)


@pytest.mark.parametrize("bits", [12, -12])
@pytest.mark.parametrize(
    "change",
    [
        None,
        partial(by_pydicom, syntax=RLE, plugin="pydicom"),
        *(partial(by_gdcm, syntax=f"{JPEG}{number}", precision=16) for number in (57, 70, 80, 90)),
    ],
)
def test_unused_bits_play_no_part(
    tmp_path: Path, make_run: Write, bits: int, change: Callable[..., None] | None
) -> None:
    """The four bits above those stored are noise, as where they hold an overlay."""
    expected = write_band(make_run, tmp_path / "a.dcm", bits)
    noise = np.random.default_rng(1).integers(0, 16, (3, SIDE, SIDE)).astype(np.uint16) << 12
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.PixelData = ((band(bits).view(np.uint16) & 0x0FFF) | noise).tobytes()
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    if change:
        change(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_study(tmp_path, THREE).views[0].frames, expected)


@pytest.fixture
def without_gdcm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has not got the package, whatever else of the extra is there."""
    monkeypatch.setitem(sys.modules, "gdcm", None)  # an import of it then fails
    for number in (50, 51, 57, 70, 80, 81, 90, 91):
        monkeypatch.delitem(get_decoder(f"{JPEG}{number}")._available, "gdcm", raising=False)


@pytest.mark.usefixtures("without_gdcm")
@pytest.mark.parametrize("syntax", [f"{JPEG}{number}" for number in (51, 57, 70, 80, 81)])
def test_an_absent_codec_is_named(tmp_path: Path, make_run: Write, syntax: str) -> None:
    """Without the extra: a named error, no other codec's attempt; a check of the file says the same beforehand."""
    write_band(make_run, tmp_path / "a.dcm", 12)
    in_jpeg(tmp_path / "a.dcm", syntax, 12)
    with pytest.raises(ReaderError, match=r'no codec for .*pip install "stence_dist\[dicom\]"'):
        read_study(tmp_path, THREE)
    seen = look_at_view(tmp_path / "a.dcm")
    assert seen is not None
    assert not seen.decodes
    assert advice(syntax) == 'pip install "stence_dist[dicom]"'


@pytest.mark.parametrize("bits", [8, 12])
def test_what_decodes_a_syntax(bits: int, request: pytest.FixtureRequest) -> None:
    """The table of `codecs`, with the extra and without: pyjpegls decodes nothing, pydicom alone no 12-bit JPEG."""
    pytest.importorskip("gdcm")
    syntaxes = (*(f"{JPEG}{number}" for number in (50, 51, 57, 70, 80, 91, 102)), RLE, "1.2.840.10008.1.2.1.99", "")
    decoded = ("pillow", "pillow" if bits == 8 else "gdcm", *["gdcm"] * 3, "pillow", None, "pydicom", "pydicom", None)
    assert tuple(codec_of(syntax, bits) for syntax in syntaxes) == decoded
    request.getfixturevalue("without_gdcm")
    left = tuple(None if codec == "gdcm" else codec for codec in decoded)
    assert tuple(codec_of(syntax, bits) for syntax in syntaxes) == left


def test_unknown_syntaxes_are_named(tmp_path: Path, make_run: Write) -> None:
    """Video, and high-throughput JPEG 2000 without its codec: convert the file."""
    write_band(make_run, tmp_path / "a.dcm", 8)
    restored(tmp_path / "a.dcm", f"{JPEG}102", [b"\0\0"] * 3)
    with pytest.raises(ReaderError, match=r"4\.102 .* is not one that pydicom decodes; convert the file"):
        read_study(tmp_path, THREE)
    if not get_decoder(f"{JPEG}201").available_plugins:
        restored(tmp_path / "a.dcm", f"{JPEG}201", [b"\0\0"] * 3)
        with pytest.raises(ReaderError, match=r"no codec for .*4\.201.*convert the file"):
            read_study(tmp_path, THREE)


@pytest.mark.parametrize("table", ["basic", "none", "extended"])
def test_only_the_frames_asked_for_are_decoded(
    tmp_path: Path, make_run: Write, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """The codec is called three times for a run of forty frames, of which all others are no JPEG at all."""
    path = tmp_path / "a.dcm"
    expected = write_band(make_run, path, 8)
    encoded = [b"\0" * 64] * 40
    encoded[18:21] = [jpeg(frame, 8) for frame in band(8)]
    restored(path, f"{JPEG}50", encoded, NumberOfFrames=40, RepresentativeFrameNumber=20)
    if table != "basic":
        dataset = pydicom.dcmread(path)
        dataset.PixelData = encapsulate(encoded, has_bot=False)
        if table == "extended":
            # A fragment that the table leaves out: frames counted by fragments would be one off.
            dataset.PixelData = encapsulate([b"\0" * 64, *encoded], has_bot=False)
            lengths = [len(frame) for frame in encoded]
            starts = np.cumsum([72, *(8 + length + length % 2 for length in lengths[:-1])])  # padded to even
            dataset.ExtendedOffsetTable = starts.astype("<u8").tobytes()
            dataset.ExtendedOffsetTableLengths = np.array(lengths, dtype="<u8").tobytes()
        dataset.save_as(path, enforce_file_format=False)
    codec, calls = get_decoder(f"{JPEG}50")._available["pillow"], []

    def counting(frame: bytes, runner: object) -> object:
        calls.append(len(frame))
        return codec(frame, runner)

    monkeypatch.setitem(get_decoder(f"{JPEG}50")._available, "pillow", counting)
    frames = read_study(tmp_path, THREE).views[0].frames
    assert len(calls) == 3
    assert np.abs(frames.astype(int) - expected).max() <= 1


def test_uncompressed_frames_beyond_those_asked_for_may_be_missing(tmp_path: Path, make_run: Write) -> None:
    """A header that promises 15,000 frames, of which three are there: those are read."""
    expected = write_band(make_run, tmp_path / "a.dcm", 12, NumberOfFrames=15000)
    np.testing.assert_array_equal(read_study(tmp_path, THREE).views[0].frames, expected)
    write_band(make_run, tmp_path / "a.dcm", 12, NumberOfFrames=15000, RepresentativeFrameNumber=9)
    with pytest.raises(ReaderError, match="frame 7 of a run cannot be decoded"):
        read_study(tmp_path, THREE)


def test_frames_may_lie_in_several_fragments(tmp_path: Path, make_run: Write) -> None:
    """Four fragments per frame, found by the offset table, or by the end markers where there is none."""
    expected = write_band(make_run, tmp_path / "a.dcm", 8)
    encoded = [jpeg(frame, 8) for frame in band(8)]
    for has_table in (True, False):
        restored(tmp_path / "a.dcm", f"{JPEG}50", encoded)
        dataset = pydicom.dcmread(tmp_path / "a.dcm")
        dataset.PixelData = encapsulate(encoded, fragments_per_frame=4, has_bot=has_table)
        dataset.save_as(tmp_path / "a.dcm", enforce_file_format=False)
        frames = read_study(tmp_path, THREE).views[0].frames
        assert np.abs(frames.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("offsets", [[0], [0, 0, 0], [8, 16, 24], [0, 10**6, 10**7], [4, 2, 0, 1]])
@pytest.mark.parametrize("end", [b"", b"\xfe\xff\xdd\xe0\0\0\0\0", b"\0" * 24, b"\xfe\xff\0\xe0\0\0\0\0"])
def test_a_fragment_per_frame_needs_no_table(tmp_path: Path, make_run: Write, offsets: list[int], end: bytes) -> None:
    """Tables of offsets that fit nothing; nothing, zeros or an empty fragment where the mark of the end should be."""
    expected = write_band(make_run, tmp_path / "a.dcm", 8)
    by_pydicom(tmp_path / "a.dcm", RLE, "pydicom")
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    frames = list(generate_frames(dataset.PixelData, number_of_frames=3))
    dataset.PixelData = b"".join(
        b"\xfe\xff\0\xe0" + len(item).to_bytes(4, "little") + item
        for item in (np.array(offsets, "<u4").tobytes(), *frames)
    )
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    whole = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(whole.removesuffix(b"\xfe\xff\xdd\xe0\0\0\0\0") + end)
    np.testing.assert_array_equal(read_study(tmp_path, THREE).views[0].frames, expected)


def relabelled(path: Path, syntax: str) -> None:
    """The file under another transfer syntax, its bytes as they were."""
    meta = pydicom.filereader.read_file_meta_info(path)
    old, new = (text.encode() + b"\0" * (len(text) % 2) for text in (meta.TransferSyntaxUID, syntax))
    whole = path.read_bytes()
    start = b"\x02\0\x10\0UI"
    assert whole.count(start) == 1
    whole = whole.replace(start + len(old).to_bytes(2, "little") + old, start + len(new).to_bytes(2, "little") + new)
    group = whole.find(b"\x02\0\0\0UL\4\0") + 8  # states the length of what is changed here; not in all files
    if group >= 8:
        length = int.from_bytes(whole[group : group + 4], "little") + len(new) - len(old)
        whole = whole[:group] + length.to_bytes(4, "little") + whole[group + 4 :]
    path.write_bytes(whole)


def test_pixels_stored_otherwise_than_stated_are_refused(tmp_path: Path, make_run: Write) -> None:
    """Fragments under an uncompressed syntax, and plain values under JPEG: archives change one of the two."""
    path = tmp_path / "a.dcm"
    write_band(make_run, path, 8)
    relabelled(path, f"{JPEG}50")
    assert "not stored as its transfer syntax says" in refused(tmp_path)
    for bits in (8, 12):
        write_band(make_run, path, bits)
        by_pydicom(path, RLE, "pydicom")
        relabelled(path, "1.2.840.10008.1.2.1")
        assert "not stored as its transfer syntax says" in refused(tmp_path)


def test_files_written_with_another_representation_than_stated(tmp_path: Path, make_run: Write) -> None:
    """Values with their representation in a file that states implicit ones, and vice versa: 70,000 bytes of pixels."""
    path = tmp_path / "a.dcm"
    frames = np.random.default_rng(0).integers(0, 256, (70, SIDE, SIDE)).astype(np.uint8)
    implicit, explicit = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
    for written, stated in ((explicit, implicit), (implicit, explicit)):
        make_run(path, frames, RepresentativeFrameNumber=2, SOPInstanceUID="1.2.3")
        uncompressed(path, written)
        relabelled(path, stated)
        np.testing.assert_array_equal(read_study(tmp_path, THREE).views[0].frames, frames[:3])


def test_more_pixels_than_stated_are_refused(tmp_path: Path, make_run: Write) -> None:
    """Other rows, other depth, a byte after each frame; a few zeros at the end do no harm."""
    path = tmp_path / "a.dcm"
    expected = write_band(make_run, path, 12)
    whole = pydicom.dcmread(path)
    for elements in ({"Rows": 30}, {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, {"NumberOfFrames": 2}):
        write_band(make_run, path, 12)
        dataset = pydicom.dcmread(path)
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset.save_as(path, enforce_file_format=False)
        assert "its header promises" in refused(tmp_path)
    size = 2 * SIDE * SIDE
    pixels = whole.PixelData
    whole.PixelData = b"".join(pixels[n : n + size] + b"\0\0" for n in range(0, 3 * size, size))
    whole.save_as(path, enforce_file_format=False)
    assert "its header promises" in refused(tmp_path)
    whole.PixelData = pixels + bytes(100)
    whole.save_as(path, enforce_file_format=False)
    np.testing.assert_array_equal(read_study(tmp_path, THREE).views[0].frames, expected)


def test_what_all_runs_have_alike_may_be_left_out(tmp_path: Path, make_run: Write) -> None:
    """Samples per pixel, the sign; and the gray scale's name in small letters."""
    expected = write_band(make_run, tmp_path / "a.dcm", 12)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    del dataset.SamplesPerPixel, dataset.PixelRepresentation
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    whole = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(whole.replace(b"MONOCHROME2 ", b" monochrome2"))
    np.testing.assert_array_equal(read_study(tmp_path, THREE).views[0].frames, expected)


def test_frames_of_another_depth_than_the_header_are_refused(tmp_path: Path, make_run: Write) -> None:
    """12 bits in bytes, and JPEG of 8 bits under the header of the 12 that it was made from."""
    path = tmp_path / "a.dcm"
    write_band(make_run, path, 12)
    by_gdcm(path, f"{JPEG}70")
    dataset = pydicom.dcmread(path)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.save_as(path, enforce_file_format=False)
    assert "16 bits; the header states 32 x 32 gray pixels of 8 in 8 bits" in refused(tmp_path)
    write_band(make_run, path, 8)
    in_jpeg(path, f"{JPEG}50", 8)
    dataset = pydicom.dcmread(path)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.save_as(path, enforce_file_format=False)
    assert "8 bits; the header states 32 x 32 gray pixels of 12 in 16 bits" in refused(tmp_path)


@pytest.mark.parametrize("frames", [2, 0])
def test_fragments_without_end_are_refused(tmp_path: Path, make_run: Write, frames: int) -> None:
    """16 MB of two million empty fragments, the number of frames stated or not."""
    write_band(make_run, tmp_path / "a.dcm", 8)
    restored(tmp_path / "a.dcm", f"{JPEG}50", [b"\0" * 8], NumberOfFrames=frames)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.PixelData = b"\xfe\xff\0\xe0\0\0\0\0" * 2_000_000
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    assert "cannot be" in refused(tmp_path)


def test_files_that_do_not_state_the_number_of_frames(tmp_path: Path, make_run: Write) -> None:
    """Their pixel data tell: by length, by the offset table, by the frames' first bytes, by RLE's fragments."""
    path = tmp_path / "a.dcm"
    expected = write_band(make_run, path, 8)
    encoded = [jpeg(frame, 8) for frame in band(8)]

    def frames(pixels: bytes | None = None) -> NDArray[np.int64]:
        dataset = pydicom.dcmread(path)
        if "NumberOfFrames" in dataset:
            del dataset.NumberOfFrames
        if pixels is not None:
            dataset.PixelData = pixels
        dataset.save_as(path, enforce_file_format=False)
        view = read_study(tmp_path, THREE).views[0]
        assert view.meta["frames"] == 3
        return view.frames.astype(int)

    np.testing.assert_array_equal(frames(), expected)
    write_band(make_run, path, 8)
    by_pydicom(path, RLE, "pydicom")
    pixels = pydicom.dcmread(path).PixelData
    for has_table in (True, False):
        planes = encapsulate(list(generate_frames(pixels, number_of_frames=3)), has_bot=has_table)
        np.testing.assert_array_equal(frames(planes), expected)
    restored(path, f"{JPEG}50", encoded)
    assert np.abs(frames(encapsulate(encoded, fragments_per_frame=4)) - expected).max() <= 1
    assert np.abs(frames(encapsulate(encoded, has_bot=False)) - expected).max() <= 1
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate(encoded[:1])
    dataset.save_as(path, enforce_file_format=False)
    with pytest.raises(ReaderError, match="zero views"):  # a single image
        read_study(tmp_path, THREE)


def item(**elements: object) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def test_enhanced_runs(tmp_path: Path, make_run: Write) -> None:
    """Angles and times of each frame, window and spacing of all, from functional groups; nothing else comes out."""
    frames = np.repeat(np.array([10, 20, 30], dtype=np.uint8), SIDE * SIDE).reshape(3, SIDE, SIDE)
    own = [
        item(
            PositionerPositionSequence=Sequence(
                [item(PositionerPrimaryAngle=-10.0 * place, PositionerSecondaryAngle=place)]
            ),
            FrameContentSequence=Sequence(
                [item(FrameReferenceDateTime=f"202001020304{5 + place // 10:02d}.{place * 80:03d}000")]
            ),
        )
        for place in range(3)
    ]
    shared = item(
        FrameVOILUTSequence=Sequence([item(WindowCenter=20.5, WindowWidth=21)]),
        FramePixelDataPropertiesSequence=Sequence([item(ImagerPixelSpacing=[0.2, 0.3])]),
    )
    private = shared.private_block(0x0009, "MAKER", create=True)  # a sequence of the maker's, before all others
    private.add_new(0x01, "SQ", Sequence([item(WindowCenter=5000, WindowWidth=1)]))
    for sop_class in ("12.1.1", "12.2.1"):
        make_run(
            tmp_path / "a.dcm",
            frames,
            SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{sop_class}",
            RepresentativeFrameNumber=3,
            SharedFunctionalGroupsSequence=Sequence([shared]),
            PerFrameFunctionalGroupsSequence=Sequence(own),
            PatientName="Doe^Jane",
        )
        view = read_study(tmp_path, THREE).views[0]
        np.testing.assert_array_equal(view.angulation, np.array([-20, 2], dtype=np.float32))
        assert view.frames[:, 5, 5].tolist() == [128, 255, 255]  # the window is 10 ... 30
        assert view.meta == {
            "key_frame": 2,
            "key_frame_source": "header",
            "frame_time": pytest.approx(80.0),
            "frames": 3,
            "rows": SIDE,
            "columns": SIDE,
            "pixel_spacing": [0.2, 0.3],
            "saturated": True,
        }
        assert "2020" not in json.dumps(view.meta)


@pytest.mark.parametrize(
    ("primary", "secondary", "expected"),
    [
        ([0, 6, 12], [0, 0, 0], (-48, 5)),
        (6, 0.5, (-48, 6)),
        ([0, 6, 12], None, (-48, 5)),
        ("", [0, -1, -2], (-60, 3)),
        ([0, 6], [0, -1, -2], (np.nan, 3)),
        ([-60, -58.5, -57], [5, 5.5, 6], (-57, 6)),  # not by the standard: the angles themselves
        ([0, -60, -121], [0, 60, 120], (np.nan, 125)),
        ([0, 6, 12, 18], b"0\\\\1", (np.nan, np.nan)),
        (b"0\\inf\\12", b"nan ", (np.nan, np.nan)),
    ],
)
def test_a_rotating_positioner(
    tmp_path: Path, make_run: Write, primary: object, secondary: object, expected: tuple[float, float]
) -> None:
    """PS3.3 C.8.7.5.1.3 by hand at the last of three frames from -60 and 5 degrees; NaN for what is unclear."""
    write_band(make_run, tmp_path / "a.dcm", 8, PositionerPrimaryAngle=-60, PositionerSecondaryAngle=5)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.RepresentativeFrameNumber = 3
    for name, value in (("Primary", primary), ("Secondary", secondary)):
        if isinstance(value, bytes):  # what pydicom would not write
            tag = pydicom.tag.Tag(f"Positioner{name}AngleIncrement")
            dataset[tag] = pydicom.dataelem.RawDataElement(tag, "DS", len(value), value, 0, False, True)
        elif value is not None:
            setattr(dataset, f"Positioner{name}AngleIncrement", value)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    np.testing.assert_array_equal(read_study(tmp_path, ONE).views[0].angulation, np.float32(expected))
    seen = look_at_view(tmp_path / "a.dcm")
    assert seen is not None
    assert seen.angles == (None if np.isnan(expected).any() else expected)


def test_a_positioner_that_stands_still(tmp_path: Path, make_run: Write) -> None:
    """Steps of a static positioner do not count; 9999 is no angle."""
    angles = {"PositionerPrimaryAngle": -60, "PositionerSecondaryAngle": 9999, "PositionerPrimaryAngleIncrement": 6}
    write_band(make_run, tmp_path / "a.dcm", 8, PositionerMotion="STATIC", **angles)
    np.testing.assert_array_equal(read_study(tmp_path, ONE).views[0].angulation, np.float32([-60, np.nan]))


def test_the_table_of_views_goes_before_a_rotating_positioner(tmp_path: Path, make_run: Write) -> None:
    """Its angles as they are; its key frame where it states no angles."""
    turning = {"PositionerPrimaryAngle": -60, "PositionerSecondaryAngle": 5, "PositionerPrimaryAngleIncrement": 6}
    write_band(make_run, tmp_path / "a.dcm", 8, **turning)
    for angles, expected in ((",", (-48, 5)), ("-30,20", (-30, 20))):
        (tmp_path / "views.csv").write_text(f"file,key_frame,primary,secondary\na.dcm,2,{angles}\n")
        np.testing.assert_array_equal(read_study(tmp_path, ONE).views[0].angulation, np.float32(expected))
        seen = look_at_view(tmp_path / "a.dcm", read_views_table(tmp_path)["a.dcm"])
        assert seen is not None
        assert seen.angles == expected


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"FrameTime": 66.5, "CineRate": 30}, 66.5),
        ({"FrameTimeVector": [0, 40, 40, 90], "CineRate": 30}, 40.0),
        ({"CineRate": 15}, 1000 / 15),
        ({"CineRate": 0}, None),
        ({"FrameTime": 0, "FrameTimeVector": [0, 0, 0], "CineRate": 20}, 50.0),
        ({"FrameTime": -1}, None),
        ({}, None),
    ],
)
def test_frame_time(tmp_path: Path, make_run: Write, elements: dict[str, object], expected: float | None) -> None:
    """PS3.3 C.7.6.5 by hand: the time before the vector before the rate."""
    make_run(tmp_path / "a.dcm", band(8), SOPClassUID="1.2.840.10008.5.1.4.1.1.12.2", **elements)
    assert read_study(tmp_path, ONE).views[0].meta["frame_time"] == (expected and pytest.approx(expected))


def level(tmp_path: Path) -> int:
    """The stored gray value of a run of one value."""
    return int(read_study(tmp_path, ONE).views[0].frames[0, 5, 5])


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"VOILUTFunction": "LINEAR_EXACT", "WindowCenter": 1000, "WindowWidth": 1000}, 127.5),
        ({"VOILUTFunction": "LINEAR_EXACT", "WindowCenter": 1000, "WindowWidth": 0.5}, 127.5),
        ({"VOILUTFunction": "SIGMOID", "WindowCenter": 1000, "WindowWidth": 500}, 127.5),
        ({"VOILUTFunction": "SIGMOID", "WindowCenter": 1250, "WindowWidth": 1000}, 255 / (1 + np.exp(1))),
        ({"VOILUTFunction": "SIGMOID", "WindowCenter": 4000, "WindowWidth": 1}, 0),
        ({"WindowCenter": 1000, "WindowWidth": 0}, 1000 / 4095 * 255),
        ({"WindowCenter": "", "WindowWidth": ""}, 1000 / 4095 * 255),
        ({"PixelIntensityRelationship": "LIN"}, 1000 / 4095 * 255),
        ({"PixelIntensityRelationship": "DISP"}, 1000 / 4095 * 255),
    ],
)
def test_windows(tmp_path: Path, make_run: Write, elements: dict[str, object], expected: float) -> None:
    """12-bit values of 1000 against PS3.3 C.11.2.1.3 by hand."""
    frames = np.full((2, SIDE, SIDE), 1000, dtype=np.uint16)
    make_run(tmp_path / "a.dcm", frames, BitsStored=12, HighBit=11, **elements)
    assert level(tmp_path) == pytest.approx(expected, abs=0.51)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_logarithmic_runs_look_as_displays_show_them(tmp_path: Path, make_run: Write, photometric: str) -> None:
    """The table back to beam intensity that runs of LOG carry changes no gray value; the window is applied."""
    frames = band(12)
    table = item(LUTDescriptor=[4096, 0, 16], ModalityLUTType="US")
    table.add_new("LUTData", "OW", np.arange(4096, dtype="<u2")[::-1].tobytes())
    elements = {
        "BitsStored": 12,
        "HighBit": 11,
        "WindowCenter": 1828,
        "WindowWidth": 256,
        "RepresentativeFrameNumber": 1,
    }
    make_run(tmp_path / "lin" / "a.dcm", frames, PhotometricInterpretation=photometric, **elements)
    make_run(
        tmp_path / "log" / "a.dcm",
        frames,
        PhotometricInterpretation=photometric,
        PixelIntensityRelationship="LOG",
        ModalityLUTSequence=Sequence([table]),
        **elements,
    )
    linear, logarithmic = (read_study(tmp_path / name, ONE).views[0].frames for name in ("lin", "log"))
    gray = frames[:1].astype(int) - 1700
    np.testing.assert_array_equal(linear, 255 - gray if photometric == "MONOCHROME1" else gray)
    np.testing.assert_array_equal(logarithmic, linear)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
def test_voi_tables(tmp_path: Path, make_run: Write, syntax: str) -> None:
    """A 12-bit value through the first of two tables, whose entries are 8-bit or 16-bit words, before any window."""
    frames = np.full((2, SIDE, SIDE), 1000, dtype=np.uint16)
    entries = (np.arange(600) * 90) % 65536
    words = "<u2" if UID(syntax).is_little_endian else ">u2"
    for bits, data in ((16, entries.astype(words)), (8, (entries % 256).astype("u1"))):
        table = item(LUTDescriptor=[600, 500, bits])
        table.add_new("LUTData", "OW", data.tobytes())
        make_run(
            tmp_path / "a.dcm",
            frames,
            BitsStored=12,
            HighBit=11,
            VOILUTSequence=Sequence([table, item(LUTDescriptor=[1, 0, 8])]),
            WindowCenter=5,
            WindowWidth=5,
            SOPInstanceUID="1.2.3",
        )
        uncompressed(tmp_path / "a.dcm", syntax)
        assert level(tmp_path) == pytest.approx(int(data[500]) / (2**bits - 1) * 255, abs=0.51)


@pytest.mark.parametrize("bits", [12, -12])
@pytest.mark.parametrize("kind", ["US", "SS"])
def test_the_first_value_of_a_table_is_as_signed_as_the_values(
    tmp_path: Path, make_run: Write, bits: int, kind: str
) -> None:
    """From the lowest value of signed runs, from 2 ** 15 and more of others, in a descriptor of either kind."""
    first = -900 if bits < 0 else 40000
    frames = np.full((2, SIDE, SIDE), first + 10, dtype=np.int16 if bits < 0 else np.uint16)
    table = item()
    entry = (first + 65536) % 65536 if kind == "US" else (first + 32768) % 65536 - 32768
    table.add_new("LUTDescriptor", kind, [600, entry, 16])
    table.add_new("LUTData", "OW", np.arange(0, 60000, 100).astype("<u2").tobytes())
    stored = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": int(bits < 0)}
    make_run(tmp_path / "a.dcm", frames, VOILUTSequence=Sequence([table]), **stored)
    assert level(tmp_path) == pytest.approx(1000 / 65535 * 255, abs=0.51)


def test_an_empty_table_leaves_the_window(tmp_path: Path, make_run: Write) -> None:
    """Tables without entries, or without what describes them, beside a window that shows the values."""
    for table in (item(), item(LUTDescriptor=[256, 0, 16]), item(LUTDescriptor=None)):
        expected = write_band(make_run, tmp_path / "a.dcm", 12, VOILUTSequence=Sequence([table]))
        np.testing.assert_array_equal(read_study(tmp_path, THREE).views[0].frames, expected)


@pytest.mark.parametrize(
    ("bits", "top", "white"),
    [(16, 65535, 65535), (16, 4095, 4095), (16, 255, 255), (8, 4095, 4095), (12, 4095, 4095), (16, 100, 255)],
)
def test_the_largest_entry_of_a_table_counts(tmp_path: Path, make_run: Write, bits: int, top: int, white: int) -> None:
    """A ramp up to `top`, against its own arithmetic, whatever bits per entry the table states."""
    table = item(LUTDescriptor=[4096, 0, bits])
    table.add_new("LUTData", "OW", np.rint(np.linspace(0, top, 4096)).astype("<u2").tobytes())
    frames = np.full((2, SIDE, SIDE), 1000, dtype=np.uint16)
    make_run(tmp_path / "a.dcm", frames, BitsStored=12, HighBit=11, VOILUTSequence=Sequence([table]))
    assert level(tmp_path) == pytest.approx(1000 / 4095 * top / white * 255, abs=1)


def test_views_whose_window_does_not_fit_say_so(tmp_path: Path, make_run: Write) -> None:
    """A run of 12 bits with a window for 8 is white, 256 of its values in the full range are gray: both say so."""
    for elements, expected in (
        ({"WindowCenter": 128, "WindowWidth": 256}, True),
        ({"WindowCenter": 3000, "WindowWidth": 256}, True),
        ({"WindowCenter": 1828, "WindowWidth": 256}, None),
        ({}, True),
    ):
        make_run(tmp_path / "a.dcm", band(12), BitsStored=12, HighBit=11, **elements)
        assert read_study(tmp_path, ONE).views[0].meta.get("saturated") is expected


def test_malformed_tables_and_functions_are_refused(tmp_path: Path, make_run: Write) -> None:
    """Too few entries, also where each had one byte, an unusual depth, a function that the standard does not know."""
    short, deep = item(LUTDescriptor=[600, 0, 12]), item(LUTDescriptor=[2, 0, 64])
    cut = item(LUTDescriptor=[600, 0, 12])
    cut.add_new("LUTData", "OW", bytes(1198))
    for table in (short, deep):
        table.add_new("LUTData", "US", [1, 2, 3])
    for elements in (
        {"VOILUTSequence": Sequence([short])},
        {"VOILUTSequence": Sequence([deep])},
        {"VOILUTSequence": Sequence([cut])},
        {"VOILUTFunction": "CUBIC", "WindowCenter": 5, "WindowWidth": 5},
    ):
        make_run(tmp_path / "a.dcm", band(8), **elements)
        with pytest.raises(ReaderError, match="gray scale of a run cannot be computed"):
            read_study(tmp_path, ONE)


@pytest.mark.parametrize("undefined", [False, True])
def test_pixels_of_an_icon_alone_are_no_run(tmp_path: Path, make_run: Write, undefined: bool) -> None:
    """Such an object is counted; a run with an icon is read, and refused wherever it is cut short."""
    icon = item(Rows=4, Columns=4, BitsAllocated=8)
    icon.add_new("PixelData", "OB", bytes(16))
    write_band(make_run, tmp_path / "a.dcm", 8)
    write_band(make_run, tmp_path / "b.dcm", 8, IconImageSequence=Sequence([icon]), PresentationLUTShape="IDENTITY")
    run = pydicom.dcmread(tmp_path / "b.dcm")
    run["IconImageSequence"].is_undefined_length = undefined
    run.save_as(tmp_path / "b.dcm", enforce_file_format=False)
    seen = look_at_view(tmp_path / "b.dcm")
    assert seen is not None
    assert (len(read_study(tmp_path, ONE).views), seen.what) == (2, "run")
    whole = (tmp_path / "b.dcm").read_bytes()
    del run.PixelData
    for last in ("PresentationLUTShape", "IconImageSequence"):
        run.save_as(tmp_path / "b.dcm", enforce_file_format=False)
        study = read_study(tmp_path, ONE)
        assert (len(study.views), study.others) == (1, 1)
        seen = look_at_view(tmp_path / "b.dcm")
        assert seen is not None
        assert (seen.what, seen.reason) == ("other object", None)
        if last in run:
            del run[last]
    icon_place, shape, pixels = whole.index(b"\x88\0\0\2SQ"), whole.index(b"P  \0CS"), whole.rindex(b"\xe0\x7f\x10\0OB")
    for cut in (*range(icon_place, shape), *range(shape + 1, pixels), *range(pixels + 1, pixels + 12)):
        (tmp_path / "b.dcm").write_bytes(whole[:cut])
        assert "truncated" in refused(tmp_path)


def test_objects_of_other_classes_without_header_are_counted(tmp_path: Path, make_run: Write) -> None:
    """A structure set as it goes over the network, without preamble; a run in that form still refuses the study."""
    write_band(make_run, tmp_path / "a.dcm", 8)
    for kind, expected in ((b"481.3", 1), (b"12.1\0", None)):
        sop_class = b"1.2.840.10008.5.1.4.1.1." + kind + b"\0" * (len(kind) % 2)
        (tmp_path / "b.dcm").write_bytes(b"\x08\0\x16\0UI" + len(sop_class).to_bytes(2, "little") + sop_class)
        if expected is None:
            assert "lacks its header" in refused(tmp_path)
        else:
            assert read_study(tmp_path, ONE).others == expected


def test_a_directory_of_a_disc_is_no_view(tmp_path: Path, make_run: Write) -> None:
    """DICOMDIR has a preamble, but its class stands in the meta header only."""
    make_run(tmp_path / "a.dcm", band(8))
    meta = b"\2\0\2\0UI" + struct.pack("<H", 20) + b"1.2.840.10008.1.3.10"
    syntax = b"\2\0\x10\0UI" + struct.pack("<H", 20) + b"1.2.840.10008.1.2.1\0"
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + meta + syntax)
    study = read_study(tmp_path, ONE)
    assert (len(study.views), study.others) == (1, 1)


def refused(folder: Path, megabytes: int = 200) -> str:
    """The message of the refusal, which came in under a second and took no more memory than this."""
    start = time.process_time()
    with peak_memory.less_than(megabytes), pytest.raises(ReaderError) as caught:
        read_study(folder, THREE)
    assert time.process_time() - start < 1
    assert str(folder) not in str(caught.value)
    return str(caught.value)


def j2k_header(rows: int, columns: int, tile: int = 2**16 - 1) -> bytes:
    """The start of a codestream of one component of 8 bits."""
    size = struct.pack(">H8IHBBB", 0, columns, rows, 0, 0, tile, tile, 0, 0, 1, 7, 1, 1)
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size


LARGE = struct.pack(">BHHB", 8, 60000, 60000, 1) + b"\1\x11\0"
TWO_HEADERS = jpeg(band(8)[0], 8).replace(b"\xff\xda", b"\xff\xc0\0\x0b" + LARGE + b"\xff\xda")


@pytest.mark.parametrize(
    ("syntax", "frame", "message"),
    [
        (
            f"{JPEG}50",
            b"\xff\xd8\xff\xc0\0\x0b" + LARGE + b"\xff\xda\0\2",
            "60000 x 60000 pixels .* header states 32 x 32",
        ),
        (f"{JPEG}51", b"\xff\xd8\xff\xc1\0\x0b" + LARGE + b"\xff\xda\0\2", "60000 x 60000"),
        (f"{JPEG}70", b"\xff\xd8\xff\xc3\0\x0b" + LARGE + b"\xff\xda\0\2", "60000 x 60000"),
        (f"{JPEG}80", b"\xff\xd8\xff\xf7\0\x0b" + LARGE + b"\xff\xda\0\2", "60000 x 60000"),
        (f"{JPEG}90", j2k_header(60000, 60000), "60000 x 60000"),
        (f"{JPEG}91", b"\0\0\0\x0cjP  \r\n\x87\n" + j2k_header(2**21, 2**21), "2097152 x 2097152"),
        (f"{JPEG}90", j2k_header(SIDE, SIDE, tile=0), "cannot be decoded"),
        (f"{JPEG}90", j2k_header(2**16, 2**16, tile=1), "cannot be decoded"),
        (f"{JPEG}50", TWO_HEADERS, "cannot be decoded"),  # the first states the header's size
        (f"{JPEG}50", b"\xff\xd8" + b"\xff" * 100, "cannot be decoded"),
        (f"{JPEG}50", b"\xff\xd8" + b"\xff\xe0\0\0" * 100_000, "cannot be decoded"),
        (f"{JPEG}50", b"\xff\xd8\xff\xc0\0\x0b", "cannot be decoded"),
        (f"{JPEG}90", b"\0\0", "cannot be decoded"),
        (RLE, struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\0" * 2_000_000, "cannot be decoded"),
        (RLE, struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\0" * 3, "cannot be decoded"),
        (RLE, struct.pack("<16L", 2, 64, 64, *[0] * 13) + b"\x81\0" * 8, "cannot be decoded"),
        (RLE, struct.pack("<16L", 1, 2**31, *[0] * 14) + b"\x81\0" * 8, "cannot be decoded"),
        (RLE, b"\1\0", "cannot be decoded"),
    ],
    ids=name_of,
)
def test_frames_of_another_size_are_refused(
    tmp_path: Path, make_run: Write, syntax: str, frame: bytes, message: str
) -> None:
    """Before a codec sees them: sizes that the header does not state, and planes that unfold to more or less."""
    pytest.importorskip("gdcm")
    write_band(make_run, tmp_path / "a.dcm", 8)
    restored(tmp_path / "a.dcm", syntax, [frame] * 3)
    with pytest.MonkeyPatch.context() as patch:
        for name in get_decoder(syntax).available_plugins:
            patch.setitem(get_decoder(syntax)._available, name, lambda *_: pytest.fail("a codec was called"))
        assert re.search(message, refused(tmp_path))


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (in_jpeg, {"syntax": f"{JPEG}50", "precision": 8}),
        (by_pillow, {"syntax": f"{JPEG}90", **J2K}),
        (by_pydicom, {"syntax": RLE, "plugin": "pydicom"}),
        (by_gdcm, {"syntax": f"{JPEG}70"}),
        (by_gdcm, {"syntax": f"{JPEG}80"}),
        (in_jpeg, {"syntax": f"{JPEG}51", "precision": 12}),
    ],
    ids=name_of,
)
def test_a_frame_cut_short_is_refused(
    tmp_path: Path, make_run: Write, change: Callable[..., None], how: dict[str, object]
) -> None:
    """Half a frame never becomes a frame with a black half."""
    pytest.importorskip("gdcm")
    path = tmp_path / "a.dcm"
    write_band(make_run, path, 12 if how["syntax"] == f"{JPEG}51" else 8)
    change(path, **how)
    encoded = list(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=3))
    encoded[1] = encoded[1][: len(encoded[1]) // 2 // 2 * 2]
    restored(path, str(how["syntax"]), encoded)
    assert "frame 1 of a run cannot be decoded" in refused(tmp_path)


def test_runs_too_large_are_refused(tmp_path: Path, make_run: Write) -> None:
    """By side, by frames, and by all pixels together, each before anything is decoded."""
    for elements in (
        {"Rows": 5000, "Columns": 10},
        {"NumberOfFrames": 30_000},
        {"Rows": 4096, "Columns": 4096, "NumberOfFrames": 1000},
    ):
        write_band(make_run, tmp_path / "a.dcm", 8, **elements)
        assert "at most 20000 of 4096 x 4096" in refused(tmp_path)


def test_parsers_warn_nobody(tmp_path: Path, make_run: Write, caplog: pytest.LogCaptureFixture) -> None:
    """pydicom quotes the name of an unknown character set; readers keep it to themselves, and none is logged."""
    write_band(make_run, tmp_path / "a.dcm", 8)
    content = (tmp_path / "a.dcm").read_bytes()
    name = b"Mustermann"
    place = content.index(b"\x08\0\x16\0")  # SOPClassUID comes right behind the character set
    element = b"\x08\0\x05\0CS" + len(name).to_bytes(2, "little") + name
    (tmp_path / "a.dcm").write_bytes(content[:place] + element + content[place:])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.warns(UserWarning, match="Mustermann"):
            pydicom.dcmread(tmp_path / "a.dcm", stop_before_pixels=True).get("PatientName")
        read_study(tmp_path, ONE)
    assert caught == []
    assert "Mustermann" not in caplog.text


@pytest.mark.parametrize(
    "elements",
    [{"BitsAllocated": 32}, {"BitsStored": 20}, {"BitsStored": 0}, {"BitsStored": 8, "HighBit": 15}],
)
def test_unusual_bits_are_refused(tmp_path: Path, make_run: Write, elements: dict[str, object]) -> None:
    """Samples of 32 bits, more or fewer stored than allocated, values shifted to the upper bits."""
    write_band(make_run, tmp_path / "a.dcm", 16, **elements)
    assert "expected the lowest of 8 or of 16" in refused(tmp_path)


def test_refusals_quote_nothing_from_the_header(tmp_path: Path, make_run: Write) -> None:
    """Text where a code, a syntax or a number should be does not come out again."""
    for elements in (
        {"PhotometricInterpretation": "DOE JANE"},
        {"BitsStored": 0, "PhotometricInterpretation": "MONOCHROME2"},
        {"VOILUTFunction": "DOE JANE", "WindowCenter": 5, "WindowWidth": 5},
    ):
        write_band(make_run, tmp_path / "a.dcm", 8, **elements)
        assert "DOE" not in refused(tmp_path)
    write_band(make_run, tmp_path / "a.dcm", 8)
    whole = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.826.0.19620117.8"))
    assert refused(tmp_path) == "an unknown transfer syntax is not one that pydicom decodes; convert the file."


def test_a_deflated_file_that_unfolds_without_end_is_refused(tmp_path: Path, make_run: Write) -> None:
    """Megabytes of deflated zeros in place of a data set would be gigabytes in memory; they stop at 128 MB."""
    write_band(make_run, tmp_path / "a.dcm", 8)
    uncompressed(tmp_path / "a.dcm", "1.2.840.10008.1.2.1.99")
    whole = (tmp_path / "a.dcm").read_bytes()
    length = struct.unpack_from("<L", whole, 140)[0]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = deflater.compress(b"\0" * 2**20) + deflater.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "a.dcm").write_bytes(whole[: 144 + length] + block * 1000)
    assert "unfolds to more than 134217728 bytes" in refused(tmp_path, megabytes=300)
