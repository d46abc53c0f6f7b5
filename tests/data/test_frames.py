"""Key frames, gray scale and geometry, on arrays whose answer is known."""

from pathlib import Path

import numpy as np
import pytest

from stence_dist.data.frames import (
    FrameSettings,
    contrast_frame,
    fit_square,
    frame_indices,
    is_saturated,
    key_frame_place,
    mask_bands,
    shown_part,
    to_bytes,
)
from stence_dist.data.readers import ReaderError
from stence_dist.data.readers.images.views_table import read_views_table


@pytest.mark.parametrize(
    ("key_frame", "count", "spacing", "total", "expected"),
    [
        (5, 1, 1, 10, [5]),
        (5, 3, 2, 10, [3, 5, 7]),
        (5, 4, 1, 10, [4, 5, 6, 7]),
        (0, 3, 1, 10, [0, 0, 1]),
        (9, 3, 4, 10, [5, 9, 9]),
        (0, 3, 1, 2, [0, 0, 1]),
    ],
)
def test_frame_indices(key_frame: int, count: int, spacing: int, total: int, expected: list[int]) -> None:
    """Written out by hand, with both ends of the run."""
    assert frame_indices(key_frame, count, spacing, total) == expected
    assert expected[key_frame_place(count)] == key_frame


def test_contrast_frame_is_the_one_with_the_darkest_vessel() -> None:
    """A dark line that fades in until frame 7 and out again, under noise; the peak is known."""
    rng = np.random.default_rng(0)
    frames = rng.integers(140, 160, (12, 64, 64), dtype=np.uint8)
    for number, depth in enumerate([0, 0, 0, 10, 30, 50, 70, 90, 60, 40, 20, 10]):
        frames[number, 30:34] -= np.uint8(depth)
    assert contrast_frame(iter(frames)) == 7


def test_contrast_frame_of_a_run_without_contrast_is_the_middle() -> None:
    """A run in which nothing changes."""
    assert contrast_frame(np.full((9, 16, 16), 100, dtype=np.uint8)) == 4


def test_to_bytes_maps_the_stated_range_and_inverts() -> None:
    """12-bit values against the closed form; the range of the frame itself plays no part."""
    frame = np.array([[0, 2048, 4095]], dtype=np.uint16)
    expected = np.array([[0, 2048 / 4095 * 255, 255]])
    np.testing.assert_allclose(to_bytes(frame, 0, 4095, inverted=False), expected, rtol=1e-6)
    np.testing.assert_allclose(to_bytes(frame, 0, 4095, inverted=True), 255 - expected, rtol=1e-6)


def test_fit_square_keeps_a_frame_of_the_right_size() -> None:
    """Equal size: the very bytes."""
    frame = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.float32)
    np.testing.assert_array_equal(fit_square(frame, 32), frame.astype(np.uint8))


def test_fit_square_keeps_the_aspect_by_padding() -> None:
    """A white 40 x 80 frame becomes a white 16 x 32 band between black ones."""
    square = fit_square(np.full((40, 80), 255, dtype=np.float32), 32)
    assert (square[:8] == 0).all()
    assert (square[8:24] == 255).all()
    assert (square[24:] == 0).all()


def test_fit_square_does_not_alias() -> None:
    """A one-pixel checkerboard averages to gray; picking every fourth pixel would give one of its two colors."""
    board = (np.indices((128, 128)).sum(axis=0) % 2 * 255).astype(np.float32)
    square = fit_square(board, 32).astype(float)
    assert np.abs(square - 127.5).max() < 4


def test_views_table(tmp_path: Path) -> None:
    """Notes by file; an empty cell is unknown; a table of other columns or absent files is refused."""
    (tmp_path / "a.dcm").touch()
    (tmp_path / "b.dcm").touch()
    table = tmp_path / "views.csv"
    table.write_text("file,key_frame,primary,secondary\na.dcm,4,-30,20.5\nb.dcm,,,\n")
    notes = read_views_table(tmp_path)
    assert notes["a.dcm"].key_frame == 4
    np.testing.assert_array_equal(notes["a.dcm"].angulation, np.array([-30, 20.5], dtype=np.float32))
    assert notes["b.dcm"].key_frame is None
    assert np.isnan(notes["b.dcm"].angulation).all()
    table.write_text("name,frame\na.dcm,4\n")
    with pytest.raises(ReaderError, match=r"views\.csv cannot be read"):
        read_views_table(tmp_path)
    table.write_text("file,key_frame,primary,secondary\nc.dcm,4,1,1\n")
    with pytest.raises(ReaderError, match="1 files that are not in the study folder"):
        read_views_table(tmp_path)


@pytest.mark.parametrize(
    ("level", "others", "expected"), [(0, 12, True), (255, 12, True), (255, 13, False), (254, 13, False)]
)
def test_saturation_begins_at_19_of_20_pixels_of_the_middle(level: int, others: int, expected: bool) -> None:
    """A frame of 20 x 20, whose middle has 16 x 16 pixels, 95 % of them 243.2; what is around plays no part."""
    frame = np.full((20, 20), 128, dtype=np.uint8)
    frame[2:18, 2:18] = level
    frame[2, 2 : 2 + others] = 255 - level
    assert is_saturated(frame) is expected


@pytest.mark.parametrize(("grays", "expected"), [(15, True), (18, False)])
def test_a_frame_of_few_gray_values_shows_nothing(grays: int, expected: bool) -> None:
    """What is between black and white, and as good as one gray; a bright catheter tip makes it no picture."""
    frame = np.random.default_rng(0).integers(40, 40 + grays, (100, 100)).astype(np.uint8)
    frame[50, 50:60] = 255
    assert is_saturated(frame) is expected


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (512, 512)])
def test_padding_and_bands_hide_no_saturation(shape: tuple[int, int]) -> None:
    """A white frame, stored with black borders and bands of 20 %, shows nothing but white."""
    settings = FrameSettings(64, 1, 1, mask_top=0.2, mask_bottom=0.2)
    stored = fit_square(mask_bands(np.full(shape, 255.0, dtype=np.float32), settings), 64)
    assert is_saturated(shown_part(stored, *shape, settings))
    assert not is_saturated(stored)
