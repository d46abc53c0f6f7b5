"""Figures: what they compute before they draw, against closed forms; what they give out; and that texts stay texts."""

import base64
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from stence_dist.evaluate.figures.curves import Prediction, lines, precision_recall, running_mean
from stence_dist.evaluate.figures.drawing import Drawing
from stence_dist.evaluate.figures.embeddings import MOST_PAIRS, embedding_maps, principal_plane, similarity_order
from stence_dist.evaluate.figures.recordings import AttendedView, attended_studies, ecg, frame_png

NAN = float("nan")


def test_running_mean_by_hand() -> None:
    """Rows within 10 points of each whole percent, ends included; no mean of fewer than five."""
    percent, probability = np.array([0, 5, 10, 20, 20, 20.0]), np.array([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    x, mean = running_mean(percent, probability)
    assert x.tolist() == list(range(101))
    assert mean[10] == pytest.approx(probability.mean())
    assert mean[15] == pytest.approx(probability[1:].mean())
    assert np.isnan(mean[[9, 16, 100]]).all()


def test_pairs_are_sorted_by_stenosis() -> None:
    """From the least to the most, ties in order, unknown last; of many pairs an even selection with both ends."""
    assert similarity_order(np.array([50, NAN, 10, 50, 0])).tolist() == [4, 2, 0, 3, 1]
    many = np.random.default_rng(0).permutation(3 * MOST_PAIRS).astype(float)
    chosen = many[similarity_order(many)]
    assert len(chosen) == MOST_PAIRS
    assert (np.diff(chosen) > 0).all()
    assert (chosen[0], chosen[-1]) == (0, 3 * MOST_PAIRS - 1)


def test_principal_plane_equals_scikit_learn() -> None:
    """Coordinates, up to the sign of an axis, and shares of variance of its PCA; a collapsed tower has none."""
    rows = np.random.default_rng(1).normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1] + 7
    plane, shares = principal_plane(rows)
    peer = PCA(n_components=2, svd_solver="full").fit(rows)
    expected = peer.transform(rows)
    np.testing.assert_allclose(plane * np.sign((plane * expected).sum(axis=0)), expected, rtol=1e-6)
    np.testing.assert_allclose(shares, peer.explained_variance_ratio_)
    plane, shares = principal_plane(np.ones((5, 3)))
    assert not plane.any()
    assert not shares.any()


def texts(drawing: Drawing) -> tuple[ElementTree.Element, list[str]]:
    """The parsed SVG and its texts."""
    root = ElementTree.fromstring(drawing.svg())
    return root, [element.text or "" for element in root.iter() if element.tag.endswith("text")]


def test_names_from_data_stay_texts() -> None:
    """A site and a folder whose names are markup, quotes and formulas: the SVG parses and shows them as they are."""
    name = """<script>"x"</script> & $\\alpha$"""
    rng = np.random.default_rng(2)
    known = np.array([10.0, NAN, 60, 90])
    site = np.array([name, "", "B", name])
    *_, by_site = embedding_maps(rng.normal(size=(4, 3)), known, known, site)
    root, shown = texts(by_site)
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert f"{name[:23]}…" in shown
    assert {"B", "other or unknown"} <= set(shown)
    root, _ = texts(lines(name, [("y", [1, 2], [3, 4])], xlabel="x", ylabel="y"))
    assert root.get("aria-label") == name


def test_a_figure_follows_its_page_and_has_paper_of_its_own() -> None:
    """SVG in the page's variables; pixels (H, W, 3) of the stated size, mostly white, with something drawn."""
    truth = np.array([0, 1, 1, 0, 1])
    drawing = precision_recall([Prediction("test", "#2f7fd0", truth, np.linspace(0.1, 0.9, 5))], "PR")
    svg = drawing.svg()
    assert "var(--ink)" in svg
    assert "var(--line)" in svg
    assert "#010203" not in svg
    pixels = drawing.pixels()
    assert pixels.shape == (round(drawing.size[1] * drawing.dpi), round(drawing.size[0] * drawing.dpi), 3)
    assert 0.7 < (pixels == 255).all(axis=2).mean() < 0.99
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawing.png()))))
    np.testing.assert_array_equal(decoded, pixels)


def test_an_ecg_is_to_scale() -> None:
    """A step in lead V6: half a second at 0, a second at 1 mV. Two levels 12.5 and 25 mm long, 10 mm apart, at 150 dpi
    in the last column, where the lead begins although the recording of 4 s does not reach that far.
    """
    signal = np.full((12, 1600), NAN, dtype=np.float32)
    signal[11, :200], signal[11, 200:600] = 0.0, 1.0  # 400 Hz
    pixels = ecg(signal, 400.0).pixels().astype(int)
    height, width = pixels.shape[:2]
    dark = (pixels.sum(axis=2) < 200)[height // 2 : 3 * height // 4, 7 * width // 10 :]
    long = dark.sum(axis=1)
    per_mm = 150 / 25.4
    upper = int(np.argmax(long))
    lower = upper + 20 + int(np.argmax(long[upper + 20 :]))
    assert long[upper] / per_mm == pytest.approx(25, abs=0.7)
    assert long[lower] / per_mm == pytest.approx(12.5, abs=0.7)
    assert (lower - upper) / per_mm == pytest.approx(10, abs=0.5)


def test_attention_is_drawn_for_frames_and_for_stored_features() -> None:
    """Studies of unequal views; tokens in a square and tokens that are none."""
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (1, 16, 16), dtype=np.uint8)
    pixel = [AttendedView("LAO 10°, CRA 5°", frames, np.array([[0.2, 0.3]])) for _ in range(2)]
    stored = [AttendedView("angles not known", None, rng.random((2, count))) for count in (9, 7)]
    drawn = attended_studies([("first", pixel), ("second", stored)]).pixels()
    assert (drawn < 250).any(axis=2).mean() > 0.05


def test_a_frame_may_be_smaller_never_larger() -> None:
    """Side lengths of the PNG."""
    frame = np.random.default_rng(4).integers(0, 256, (40, 30), dtype=np.uint8)
    sizes = [Image.open(io.BytesIO(base64.b64decode(frame_png(frame, most)))).size for most in (None, 20, 400)]
    assert sizes == [(30, 40), (15, 20), (30, 40)]
