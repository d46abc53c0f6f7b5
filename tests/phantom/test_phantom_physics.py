"""The phantom's physics: lead algebra, signs of the territories, projection, attenuation."""

import dataclasses

import numpy as np
import pytest

from stence_dist.config.phantom import PhantomConfig, PhantomDiseaseConfig, PhantomEcgConfig
from stence_dist.ecg import LEADS
from stence_dist.evaluate.st_features import st_features
from stence_dist.phantom.ecg import draw_ecg
from stence_dist.phantom.frames import path_length, projection
from stence_dist.phantom.patient import patient
from stence_dist.phantom.physiology import LAD, LCX, RCA, Physiology, draw_physiology
from stence_dist.phantom.vessels import Vessel, draw_vessels
from stence_dist.seeds import generator

IMAGE = PhantomConfig(out="", patients=1).image
# Nothing but waves: every spread and noise at 0.
QUIET = PhantomEcgConfig(
    benign_st=0,
    st_coupling=0,
    t_spread=0,
    qrs_spread=0,
    rotation=0,
    t_rotation=0,
    electrode_scale=0,
    electrode_shift=0,
    wander=0,
    muscle=0,
    mains=0,
)


def person() -> Physiology:
    drawn = draw_physiology(generator(0, "test"), PhantomDiseaseConfig())
    return dataclasses.replace(drawn, age=64.0, male=False, diabetes=False, hypertrophy=False, site=0)


def quiet_ecg(ischemia_mv: tuple[float, float, float]) -> np.ndarray:
    return draw_ecg(generator(0, "test", "ecg"), person(), np.array(ischemia_mv), QUIET)


@pytest.mark.parametrize("version", [1, 2])
def test_einthoven_and_goldberger(version: int) -> None:
    """I + III = II, aVR + aVL + aVF = 0 and aVR = -(I + II) / 2, noise included, before rounding."""
    for index in range(5):
        ecg = patient(0, index, PhantomConfig(out="", patients=1, version=version), images=False).ecg
        one, two, three, avr, avl, avf = ecg[:6]
        assert np.abs(one + three - two).max() < 1e-9
        assert np.abs(avr + avl + avf).max() < 1e-9
        assert np.abs(avr + (one + two) / 2).max() < 1e-9


def test_r_wave_progression() -> None:
    """R grows from V1 to V4, S shrinks from V2 to V6, aVR points down: the signs of Dower's matrix and of Z."""
    ecg = quiet_ecg((0, 0, 0))
    r_wave, s_wave = dict(zip(LEADS, ecg.max(axis=1))), dict(zip(LEADS, -ecg.min(axis=1)))
    assert r_wave["V1"] < r_wave["V3"] < r_wave["V4"]
    assert s_wave["V2"] > s_wave["V4"] > s_wave["V6"]
    assert r_wave["V1"] < s_wave["V1"]
    assert r_wave["V6"] > s_wave["V6"]
    assert r_wave["aVR"] < s_wave["aVR"]


@pytest.mark.parametrize(
    ("artery", "down", "best"),
    [(LAD, ("V1", "V2", "V3", "V4"), "V2"), (LCX, ("I", "aVL", "V5", "V6"), "V4"), (RCA, ("II", "III", "aVF"), "II")],
)
def test_territories(artery: int, down: tuple[str, ...], best: str) -> None:
    """Ischemia of one artery lowers ST in its leads, by the given mV in the best measured one, and flattens T."""
    size = 0.1
    ischemia = [0.0, 0.0, 0.0]
    ischemia[artery] = size
    config = dataclasses.replace(QUIET, cross_talk=0.0)
    signals = [draw_ecg(generator(0, "t"), person(), np.array(value), config) for value in ([0.0] * 3, ischemia)]
    calm, ill = (st_features(signal, 500) for signal in signals)
    shift = dict(zip(LEADS, ill[:12] - calm[:12]))
    assert all(shift[lead] < -0.02 for lead in down)
    assert shift[best] == pytest.approx(-size, abs=0.015)
    assert min(shift[lead] for lead in ("I", "II", *LEADS[6:])) >= shift[best] - 0.01
    assert ill[12 + LEADS.index("V4")] / calm[12 + LEADS.index("V4")] == pytest.approx(np.exp(-4 * size), abs=0.05)


def test_projection() -> None:
    """Radiological convention: the spine lies on the image's left in RAO, right in LAO; cranial looks from above."""
    left, back, up = np.eye(3)
    np.testing.assert_allclose(
        projection(0, 0) @ np.stack([left, up, back], axis=1), [[1, 0, 0], [0, 1, 0]], atol=1e-12
    )
    assert (projection(-30, 0) @ back)[0] < 0 < (projection(30, 0) @ back)[0]
    plane = projection(40, 25)
    np.testing.assert_allclose(plane @ plane.T, np.eye(2), atol=1e-12)
    assert (projection(0, 30) @ -back)[1] < 0  # seen from above, what is in front slides down


def test_path_length_of_a_tube() -> None:
    """The cross-section of a straight tube integrates to pi r^2, its middle is 2 r; two crossing tubes add up."""
    line = np.linspace(-15, 15, 400)
    tube = Vessel(points=np.stack([0 * line, 0 * line, line], axis=1), radius=np.full(400, 1.5))
    image = path_length([tube], 0, 0, IMAGE)
    pixel = IMAGE.field_of_view / IMAGE.size
    assert image[32].sum() * pixel == pytest.approx(np.pi * 1.5**2, rel=0.03)
    assert image[32].max() == pytest.approx(3.0, rel=0.03)
    crossing = Vessel(points=np.stack([line, 0 * line, 0 * line], axis=1), radius=np.full(400, 1.5))
    assert path_length([tube, crossing], 0, 0, IMAGE).max() == pytest.approx(6.0, rel=0.03)


def test_stenosis_narrows_its_place() -> None:
    """At the lesion the radius falls by the stenosis, before it not at all; behind it by up to the distal loss."""
    healthy = dataclasses.replace(person(), stenosis=np.zeros(3), lesion_place=(0.5, 0.5, 0.5))
    ill = dataclasses.replace(healthy, stenosis=np.array([0.8, 0.0, 0.0]))
    calm, narrowed = (draw_vessels(generator(1, "v"), one, IMAGE) for one in (healthy, ill))
    share = narrowed["lad"].radius / calm["lad"].radius
    assert share[:40] == pytest.approx(1.0, abs=0.02)
    assert 0.17 < share.min() < 0.23
    assert abs(int(share.argmin()) - 80) <= 8
    assert share[-1] == pytest.approx(1 - 0.35 * 0.8, abs=0.02)
    np.testing.assert_array_equal(narrowed["rca"].radius, calm["rca"].radius)
