"""Pictures, memory maps and masks, against the arrays that they were written from; and hostile files."""

import io
import json
import re
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from stence_dist.check.studies import look_at_study
from stence_dist.data.frames import FrameSettings, mask_bands
from stence_dist.data.readers import ImageStudy, ReaderError, read_study

SIDE = 32
ONE = FrameSettings(image_size=SIDE, frames_per_view=1, frame_spacing=1)
Gray = NDArray[np.uint8]


@pytest.fixture
def gray() -> Gray:
    """(32, 32) uint8 of many levels."""
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def stored(folder: Path) -> Gray:
    """The first frame of the first view."""
    return np.asarray(read_study(folder, ONE).views[0].frames[0])


def refused(folder: Path) -> str:
    """The message of the refusal, which names no path and came in under a second."""
    start = time.process_time()
    with pytest.raises(ReaderError) as caught:
        read_study(folder, ONE)
    assert time.process_time() - start < 1
    assert caught.value.field == "study_path"
    assert str(folder) not in str(caught.value)
    return str(caught.value)


def test_pictures_are_views_by_name(tmp_path: Path, gray: Gray) -> None:
    """PNG and JPEG at any depth, whatever their suffix; angles from views.csv; the rest is counted."""
    Image.fromarray(gray).save(tmp_path / "b.png")
    Image.fromarray(255 - gray).save(tmp_path / "a.data", "PNG")
    (tmp_path / "c").mkdir()
    Image.fromarray(np.full((SIDE, SIDE), 77, dtype=np.uint8)).save(tmp_path / "c" / "d.jpg")
    for name in ("x.gif", "y.tif", "z.bmp"):
        Image.fromarray(gray).save(tmp_path / name)
    still = Image.fromarray(gray)
    still.save(tmp_path / "moving.png", save_all=True, append_images=[Image.fromarray(255 - gray)])
    (tmp_path / "views.csv").write_text("file,key_frame,primary,secondary\nb.png,,-30,20\n")
    study = read_study(tmp_path, ONE)
    assert (study.kind, study.dtype, study.others) == ("pixels", "uint8", 4)
    np.testing.assert_array_equal(study.views[0].frames[0], 255 - gray)
    np.testing.assert_array_equal(study.views[1].frames[0], gray)
    np.testing.assert_array_equal(study.views[1].angulation, np.array([-30, 20], dtype=np.float32))
    assert np.isnan(study.views[0].angulation).all()
    assert np.abs(study.views[2].frames.astype(int) - 77).max() <= 1
    assert study.views[0].meta == {
        "key_frame": 0,
        "key_frame_source": "only frame",
        "frame_time": None,
        "frames": 1,
        "rows": SIDE,
        "columns": SIDE,
        "pixel_spacing": None,
    }


def test_a_picture_fills_a_view_of_several_frames(tmp_path: Path, gray: Gray) -> None:
    """As frames beyond the ends of a run do, it repeats; a key frame other than 0 is refused."""
    Image.fromarray(gray).save(tmp_path / "a.png")
    frames = read_study(tmp_path, FrameSettings(SIDE, 3, 2)).views[0].frames
    np.testing.assert_array_equal(frames, np.stack([gray] * 3))
    (tmp_path / "views.csv").write_text("file,key_frame,primary,secondary\na.png,7,,\n")
    assert "key frame 7 of a run of 1 frames" in refused(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_gray_in_disguise_is_read(tmp_path: Path, gray: Gray, mode: str) -> None:
    """Color channels that are alike, an opaque alpha channel, a palette of grays: the gray values themselves."""
    Image.fromarray(gray).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(stored(tmp_path), gray)


def test_gray_in_disguise_survives_the_color_of_jpeg(tmp_path: Path) -> None:
    """A smooth gray picture stored as a color JPEG of middling quality."""
    smooth = np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.uint8) * 4
    Image.fromarray(smooth).convert("RGB").save(tmp_path / "a.jpg", quality=50)
    assert np.abs(stored(tmp_path).astype(int) - smooth).max() < 20


def test_sixteen_bits_span_their_range(tmp_path: Path) -> None:
    """PNG's 65535 is white; a picture that leaves the upper bits unused is refused, as it would be black."""
    values = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(stored(tmp_path), np.rint(values / 257).astype(np.uint8))
    Image.fromarray(values // 17).save(tmp_path / "a.png")
    assert "no value above 3855; white is 65535" in refused(tmp_path)


def test_pictures_that_are_not_gray_are_refused(tmp_path: Path, gray: Gray) -> None:
    """One colored pixel, one transparent pixel, inks."""
    marked = np.repeat(gray[..., None], 3, axis=2)
    marked[3, 4] = 255, 0, 0
    Image.fromarray(marked).save(tmp_path / "a.png")
    assert "a picture is in color; expected gray" in refused(tmp_path)
    opaque = np.dstack([gray] * 3 + [np.full_like(gray, 255)])
    opaque[5, 5, 3] = 254
    Image.fromarray(opaque).save(tmp_path / "a.png")
    assert "transparent in places" in refused(tmp_path)
    Image.fromarray(gray).convert("CMYK").save(tmp_path / "a.png", "JPEG")
    assert "a picture is of the kind CMYK" in refused(tmp_path)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))


def png(columns: int, rows: int, *chunks: bytes) -> bytes:
    """A PNG of 8-bit gray that states this size."""
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", columns, rows, 8, 0, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *chunks, chunk(b"IEND", b"")])


def test_hostile_pictures_are_refused(tmp_path: Path, gray: Gray) -> None:
    """Sizes beyond the limits, data that unfold without end, a text that does, and files cut short."""
    path = tmp_path / "a.png"
    zeros = zlib.compress(b"\0" * 50_000_000, 9)
    for columns, rows in ((5000, 10), (10, 5000)):
        path.write_bytes(png(columns, rows, chunk(b"IDAT", zeros)))
        assert f"frames of {rows} x {columns} pixels; at most" in refused(tmp_path)
    for columns, rows in ((12_000, 12_000), (100_000, 100_000)):
        path.write_bytes(png(columns, rows, chunk(b"IDAT", zeros)))
        assert "a picture has more than 89478485 pixels" in refused(tmp_path)
    path.write_bytes(png(0, 0))
    assert refused(tmp_path)
    path.write_bytes(png(SIDE, SIDE, chunk(b"zTXt", b"a\0\0" + zeros)))
    assert "cannot be decoded" in refused(tmp_path)
    buffer = io.BytesIO()
    for kind in ("PNG", "JPEG"):
        buffer.seek(0)
        Image.fromarray(gray).save(buffer, kind)
        for end in (12, 60, len(buffer.getvalue()) // 2):
            path.write_bytes(buffer.getvalue()[:end])
            assert "a picture cannot be decoded" in refused(tmp_path)


def test_kinds_do_not_mix_in_a_study(tmp_path: Path, gray: Gray, make_run: Callable[..., None]) -> None:
    """Any two kinds, but pictures beside a run: the message counts both and says why."""
    frames = np.stack([gray] * 3)

    def write_map(name: str) -> None:
        frames.tofile(tmp_path / f"{name}.dat")
        (tmp_path / f"{name}.json").write_text(json.dumps({"shape": [3, SIDE, SIDE], "dtype": "uint8"}))

    make_run(tmp_path / "single", frames[:1])
    Image.fromarray(gray).save(tmp_path / "a.png")
    assert "1 DICOM images and 1 pictures; one kind only, as a picture may be a thumbnail" in refused(tmp_path)
    make_run(tmp_path / "single", frames)
    np.save(tmp_path / "c.npy", np.zeros((1, 3, 8), dtype=np.float32))
    assert "1 DICOM images and 1 pictures and 1 stored features" in refused(tmp_path)
    (tmp_path / "a.png").unlink()
    assert "1 DICOM images and 1 stored features" in refused(tmp_path)
    for name in ("c.npy", "single"):
        (tmp_path / name).unlink()
    Image.fromarray(gray).save(tmp_path / "a.png")
    write_map("b")
    assert "1 pictures and 1 memory maps of frames" in refused(tmp_path)
    (tmp_path / "a.png").unlink()
    np.save(tmp_path / "c.npy", np.zeros((1, 3, 8), dtype=np.float32))
    assert "1 stored features and 1 memory maps of frames" in refused(tmp_path)


def test_pictures_beside_runs_are_counted(tmp_path: Path, gray: Gray, make_run: Callable[..., None]) -> None:
    """The icons of a disc's viewer, whatever they show, in color and cut short; a check says the same."""
    make_run(tmp_path / "run", np.stack([gray] * 3))
    make_run(tmp_path / "single", gray[None])
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8) + np.uint8([255, 0, 0])).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff")
    study = read_study(tmp_path, ONE)
    assert (len(study.views), study.others) == (1, 3)
    np.testing.assert_array_equal(study.views[0].frames[0], gray)
    seen, others, reason = look_at_study(tmp_path)
    assert (sorted(file.name for file, _ in seen), others, reason) == (["run", "single"], 2, None)
    (tmp_path / "run").unlink()
    assert look_at_study(tmp_path)[2] is not None


def write_frames(folder: Path, frames: NDArray[np.generic], **declared: object) -> None:
    """a.dat and a.json."""
    frames.tofile(folder / "a.dat")
    stated = {"shape": list(frames.shape), "dtype": str(frames.dtype), **declared}
    (folder / "a.json").write_text(json.dumps(stated))


def test_frame_maps(tmp_path: Path) -> None:
    """Key frame by contrast or from views.csv, angles from there; the declaration is no other file."""
    frames = np.random.default_rng(0).integers(150, 250, (9, SIDE, SIDE), dtype=np.uint8)
    frames[6, 10:20, 10:20] = 5
    write_frames(tmp_path, frames)
    (tmp_path / "notes.json").write_text("{}")
    study = read_study(tmp_path, ONE)
    assert study.others == 1
    assert study.views[0].meta["key_frame"] == 6
    np.testing.assert_array_equal(study.views[0].frames, frames[6:7])
    (tmp_path / "views.csv").write_text("file,key_frame,primary,secondary\na.dat,8,-30,20\n")
    view = read_study(tmp_path, FrameSettings(SIDE, 3, 2)).views[0]
    np.testing.assert_array_equal(view.frames, frames[[6, 8, 8]])
    np.testing.assert_array_equal(view.angulation, np.array([-30, 20], dtype=np.float32))
    assert (view.meta["frames"], view.meta["rows"], view.meta["pixel_spacing"]) == (9, SIDE, None)


@pytest.mark.parametrize(
    ("dtype", "ends", "expected"),
    [("uint16", [0, 4095], 1000 / 4095), ("float32", [0.0, 2000.0], 0.5), ("uint8", [0, 200], 100 / 200)],
)
def test_the_range_of_a_frame_map(tmp_path: Path, dtype: str, ends: list[float], expected: float) -> None:
    """Black and white as declared, by the closed form; values beyond are clipped."""
    frames = np.full((2, SIDE, SIDE), 100 if dtype == "uint8" else 1000, dtype=dtype)
    frames[:, 0, 0] = 250 if dtype == "uint8" else 5000
    write_frames(tmp_path, frames, range=ends)
    assert stored(tmp_path)[5, 5] == round(expected * 255)
    assert stored(tmp_path)[0, 0] == 255


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"shape": [3, SIDE, SIDE - 1]}, "holds 3072 bytes; its shape .* asks for 2976"),
        ({"shape": [3, SIDE]}, "without a shape of 3 whole numbers"),
        ({"shape": [3, SIDE, -SIDE]}, "without a shape"),
        ({"shape": [3, SIDE, 32.0]}, "without a shape"),
        ({"shape": [3, SIDE, True]}, "without a shape"),
        ({"shape": "3,32,32"}, "without a shape"),
        ({"shape": [2**40, 2**40, 2**40]}, "without a shape"),
        ({"shape": None}, "without a shape"),
        ({"shape": [3072, 1, 1]}, None),
        ({"dtype": "object"}, "unknown dtype; expected one of uint8, uint16, float32"),
        ({"dtype": ["uint8"]}, "unknown dtype"),
        ({"range": [5, 5]}, '"range": \\[black, white\\]'),
        ({"range": [0, "white"]}, '"range"'),
        ({"range": [0, float("nan")]}, '"range"'),
        ({"dtype": "uint16", "shape": [3, SIDE, SIDE // 2]}, 'uint16 or float32 need "range"'),
        ({"shape": [1, 1, 3072]}, None),
    ],
)
def test_bad_declarations_are_refused(tmp_path: Path, declared: dict[str, object], message: str | None) -> None:
    """What does not fit the file, no shape, no known type, no range; two unusual but true shapes are read."""
    write_frames(tmp_path, np.zeros((3, SIDE, SIDE), dtype=np.uint8), **declared)
    if message is None:
        assert read_study(tmp_path, ONE).views
    else:
        assert re.search(message, refused(tmp_path))


def test_hostile_memory_maps_are_refused(tmp_path: Path) -> None:
    """JSON that is none, too deep, or no object; frames too large, empty, or of NaN; a lone .dat is no view."""
    write_frames(tmp_path, np.zeros((3, SIDE, SIDE), dtype=np.uint8))
    for text in ("{", "[" * 100_000, "[]", '{"shape": ' + "9" * 5000 + "}"):
        (tmp_path / "a.json").write_text(text)
        assert re.search("not valid JSON|holds no object", refused(tmp_path))
    (tmp_path / "a.json").unlink()
    assert "zero views: none of 1 files" in refused(tmp_path)
    with open(tmp_path / "a.dat", "wb") as file:
        file.truncate(5000 * 5000 * 3)  # sparse: takes no space
    (tmp_path / "a.json").write_text('{"shape": [3, 5000, 5000], "dtype": "uint8"}')
    assert "3 frames of 5000 x 5000 pixels; at most" in refused(tmp_path)
    (tmp_path / "a.dat").write_bytes(b"")
    (tmp_path / "a.json").write_text('{"shape": [0, 32, 32], "dtype": "uint8"}')
    assert "without a shape" in refused(tmp_path)
    write_frames(tmp_path, np.full((3, SIDE, SIDE), np.nan, dtype=np.float32), range=[0, 1])
    assert "NaN or infinity" in refused(tmp_path)


def write_tokens(folder: Path, tokens: NDArray[np.generic], entry: object = None, above: int = 0) -> Path:
    """k1.dat of `tokens`, and a shapes.json for it and another patient, `above` folders higher."""
    path = folder.joinpath(*["train", "0"][2 - above :]) / "k1.dat"
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens.tofile(path)
    shapes = {"k0": [1, 2, 3], "k1": list(tokens.shape) if entry is None else entry}
    (folder / "shapes.json").write_text(json.dumps(shapes))
    return path


@pytest.mark.parametrize(("shape", "above"), [((4, 5, 8), 2), ((4, 2, 5, 8), 1), ((5, 8), 0)])
def test_token_maps(tmp_path: Path, shape: tuple[int, ...], above: int) -> None:
    """StenCE's layout: one file per study, (V, N, D), (V, F, N, D) or (N, D); shapes.json up to two folders above."""
    tokens = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = write_tokens(tmp_path, tokens, above=above)
    (path.parent / "views.csv").write_text("file,key_frame,primary,secondary\nk1.dat#0,,-30,20\n")
    study = read_study(path, ONE)
    assert (study.kind, study.dtype, study.others) == ("tokens", "float16", 0)
    views = tokens[None, None] if tokens.ndim == 2 else tokens[:, None] if tokens.ndim == 3 else tokens
    np.testing.assert_array_equal(np.stack([view.frames for view in study.views]), views)
    np.testing.assert_array_equal(study.views[0].angulation, np.array([-30, 20], dtype=np.float32))
    assert all(np.isnan(view.angulation).all() for view in study.views[1:])
    assert study.views[0].meta["frames"] == views.shape[1]


def test_token_maps_of_other_types(tmp_path: Path) -> None:
    """bfloat16 against torch, bit by bit, and half floats, both named in the entry."""
    brain = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    path = write_tokens(tmp_path, brain.view(torch.int16).numpy(), {"shape": [3, 4, 8], "dtype": "bfloat16"})
    study = read_study(path, ONE)
    assert study.dtype == "bfloat16"
    np.testing.assert_array_equal(np.stack([view.frames[0] for view in study.views]), brain.float().numpy())
    half = np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float16)
    path = write_tokens(tmp_path, half, {"shape": [3, 4, 8], "dtype": "float16"})
    time.sleep(0.01)  # the entry is parsed again once the file has changed
    study = read_study(path, ONE)
    np.testing.assert_array_equal(np.stack([view.frames[0] for view in study.views]), half)


def test_bad_token_maps_are_refused(tmp_path: Path) -> None:
    """A folder of many patients' files, a wrong size, rank or type, and values that float16 cannot hold."""
    tokens = np.ones((1, 2, 3), dtype=np.float32)
    path = write_tokens(tmp_path, tokens)
    tokens.tofile(tmp_path / "k0.dat")
    assert "2 .dat files of tokens; shapes.json declares one per study" in refused(tmp_path)
    assert read_study(path, ONE).views
    cases: list[tuple[NDArray[np.generic], object, str]] = [
        (tokens, [1, 2, 4], "holds 24 bytes; its shape"),
        (tokens, [6], "without a shape of 2 or 3 or 4 whole numbers"),
        (tokens, [1, 1, 1, 2, 3], "without a shape"),
        (tokens, "1x2x3", "without a shape"),
        (tokens, {"shape": [1, 2, 3], "dtype": "float64"}, "unknown dtype; expected one of float32, float16"),
        (tokens * np.float32(1e6), None, "values beyond float16"),
        (tokens * np.float32("nan"), None, "NaN, infinity"),
    ]
    for values, entry, message in cases:
        path = write_tokens(tmp_path, values, entry)
        with pytest.raises(ReaderError, match=message):
            read_study(path, ONE)


def test_masked_bands(tmp_path: Path, gray: Gray, make_run: Callable[..., None]) -> None:
    """Every reader of pixels blackens the bands before it resizes; by default none does."""
    rows = 64
    frames = np.full((3, rows, rows), 200, dtype=np.uint8)
    frames[:, :6], frames[:, -13:] = 255, 255  # as if text were burned in
    make_run(tmp_path / "run" / "a", frames, RepresentativeFrameNumber=1)
    (tmp_path / "picture").mkdir()
    Image.fromarray(frames[0]).save(tmp_path / "picture" / "a.png")
    (tmp_path / "map").mkdir()
    write_frames(tmp_path / "map", frames)
    expected = np.full((rows, rows), 200, dtype=np.uint8)
    expected[:6], expected[-13:] = 0, 0
    for kind in ("run", "picture", "map"):
        study: ImageStudy = read_study(tmp_path / kind, FrameSettings(rows, 1, 1, mask_top=0.1, mask_bottom=0.2))
        np.testing.assert_array_equal(study.views[0].frames[0], expected)
        half = read_study(tmp_path / kind, FrameSettings(SIDE, 1, 1, mask_top=0.1, mask_bottom=0.2)).views[0].frames
        assert half.max() <= 200
        whole = read_study(tmp_path / kind, FrameSettings(rows, 1, 1)).views[0].frames[0]
        np.testing.assert_array_equal(whole, frames[0])


def test_bands_leave_the_frame_itself_alone() -> None:
    """round(share * H) rows at either end; the array that came in keeps its values."""
    frame = np.ones((10, 4), dtype=np.float32)
    masked = mask_bands(frame, FrameSettings(SIDE, 1, 1, mask_top=0.24, mask_bottom=0.16))
    assert masked[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
    assert frame.min() == 1
    assert mask_bands(frame, FrameSettings(SIDE, 1, 1, mask_top=0.5))[:, 0].tolist() == [0] * 5 + [1] * 5
    assert mask_bands(frame, ONE) is frame
