"""Version 2's signs, one at a time: what each adds to the leads, and that the hand-made features do not see it.

Every expected size is that of a closed form of the sign at 0.1 mV of ischemia in the left anterior territory, seen in
V2, where by definition the ST shift is that size.
"""

import dataclasses

import numpy as np
import pytest

from stence_dist.config.phantom import PhantomDiseaseConfig, PhantomEcgConfig, PhantomMorphologyConfig
from stence_dist.ecg import LEADS
from stence_dist.evaluate.st_features import r_peaks, st_features
from stence_dist.phantom.ecg import draw_ecg
from stence_dist.phantom.morphology import LEFT_BLOCK, RIGHT_BLOCK, Morphology, draw_morphology
from stence_dist.phantom.physiology import draw_physiology
from stence_dist.seeds import generator

SIZE = 0.1
V1, V2, V6 = (LEADS.index(lead) for lead in ("V1", "V2", "V6"))
QUIET = dataclasses.replace(PhantomEcgConfig(), **dict.fromkeys(vars(PhantomEcgConfig()), 0.0))
NO_SIGN = dict.fromkeys(vars(PhantomMorphologyConfig()), 0.0)
PERSON = dataclasses.replace(
    draw_physiology(generator(0, "test"), PhantomDiseaseConfig()),
    age=64.0,
    male=False,
    diabetes=False,
    hypertrophy=False,
    site=0,
)


def ecg(size: float = SIZE, block: object = None, **knobs: float) -> np.ndarray:
    """The quiet ECG of one person whose left anterior territory is ischemic, with `knobs` and nothing else."""
    config = PhantomMorphologyConfig(**{**NO_SIGN, **knobs})
    morphology = Morphology(config, np.zeros((4, 3)), 0.0, 0, block)
    return draw_ecg(generator(0, "test", "ecg"), PERSON, np.array([size, 0.0, 0.0]), QUIET, morphology)


PLAIN = ecg()
PEAKS = r_peaks(PLAIN, 500)[1:-1]


def beats(signal: np.ndarray, lead: int = V2) -> np.ndarray:
    """One lead (beats, 300) from 100 ms before R to 500 ms after it."""
    return signal[lead][PEAKS[:, None] + np.arange(-50, 250)]


def part(seconds: tuple[float, float]) -> slice:
    return slice(50 + round(500 * seconds[0]), 50 + round(500 * seconds[1]))


@pytest.mark.parametrize(
    ("knob", "window", "lowest", "highest"),
    [
        # A burst: cos(2 pi 45 t) under a bell of 15 ms; its side lobes are exp(-0.5 (11.1 / 15)^2) = 0.76 less 4 %.
        ("fragmentation", (-0.050, 0.080), -1.0, 0.74),
        ("terminal", (0.010, 0.090), -1.0, 0.0),  # a bell
        ("st_slope", (0.040, 0.220), -1.0, 1.0),  # x exp(0.5 - 0.5 x^2)
        ("t_notch", (0.280, 0.440), -1.0, 1.0),
    ],
)
def test_a_sign_and_what_hand_made_features_see_of_it(
    knob: str, window: tuple[float, float], lowest: float, highest: float
) -> None:
    """In every beat the closed form's extremes in its window and nothing elsewhere; features move by under a tenth.

    Nothing but what the recorder's high-pass leaves behind a wave that has an area: 4 %.
    """
    signal = ecg(**{knob: 0.5})
    added = beats(signal - PLAIN) / (0.5 * SIZE)
    inside = added[:, part(window)]
    assert inside.min(axis=1) == pytest.approx(lowest, abs=0.05)
    assert inside.max(axis=1) == pytest.approx(highest, abs=0.05)
    added[:, part(window)] = 0
    assert np.abs(added).max() < 0.04
    assert np.abs(st_features(signal, 500) - st_features(PLAIN, 500)).max() < 0.1 * 0.5 * SIZE


def test_no_sign_without_ischemia() -> None:
    """Every ratio large, no ischemia and no benign part: the ECG without signs."""
    ratios = dict.fromkeys(("fragmentation", "terminal", "st_slope", "t_notch", "t_skew", "alternans"), 2.0)
    np.testing.assert_allclose(ecg(size=0.0, rate_dependence=1.0, **ratios), ecg(size=0.0), rtol=0, atol=1e-12)


def test_slope_is_downward() -> None:
    """The added ST is above its place of measurement before that and below it after, where ST is depressed."""
    added = beats(ecg(st_slope=0.5) - PLAIN)
    before, after = added[:, part((0.100, 0.120))], added[:, part((0.140, 0.160))]
    assert (before > 0).all()
    assert (after < 0).all()


def test_skew_changes_the_pace_of_t_and_not_its_height() -> None:
    """At 2 per mV T falls 1.2 times as slowly and rises 0.8 times as fast from half its height as without."""
    plain, skewed = (beats(signal, V6)[:, part((0.2, 0.5))] for signal in (PLAIN, ecg(t_skew=2.0)))
    assert skewed.max(axis=1) == pytest.approx(plain.max(axis=1), rel=0.02)
    apex = plain.argmax(axis=1)[:, None]
    place = np.arange(plain.shape[1])
    halves = []
    for waves in (plain, skewed):
        high = waves > waves.max(axis=1, keepdims=True) / 2
        halves.append(((high & (place <= apex)).sum(axis=1), (high & (place > apex)).sum(axis=1)))
    assert np.mean(halves[1][0]) / np.mean(halves[0][0]) == pytest.approx(0.8, abs=0.06)
    assert np.mean(halves[1][1]) / np.mean(halves[0][1]) == pytest.approx(1.2, abs=0.06)
    assert np.abs(st_features(ecg(t_skew=2.0), 500) - st_features(PLAIN, 500)).max() < 0.1 * SIZE


def test_alternans() -> None:
    """T of V2 is lower and higher in turn by the ratio; the mean of two neighbors keeps nothing of it."""
    added = beats(ecg(alternans=0.5) - PLAIN)[:, part((0.2, 0.4))]
    extreme = np.take_along_axis(added, np.abs(added).argmax(axis=1)[:, None], axis=1)[:, 0]
    assert np.abs(extreme) == pytest.approx(0.5 * SIZE, rel=0.05)
    assert (np.sign(extreme[1:]) == -np.sign(extreme[:-1])).all()
    assert np.abs(added[1:] + added[:-1]).max() < 0.2 * 0.5 * SIZE  # neighbors differ a little in their RR interval


def test_ischemia_grows_with_the_rate() -> None:
    """10 % faster than 70 is 10 % more ischemia at a dependence of 1, for the ST shift as well."""
    morphology = Morphology(PhantomMorphologyConfig(rate_dependence=1.0), np.zeros((4, 3)), 0.0, 0, None)
    assert [morphology.demand(rate) for rate in (63, 70, 77)] == pytest.approx([0.9, 1.0, 1.1])
    rate = 60 * 500 / np.diff(PEAKS).mean()
    np.testing.assert_allclose(
        ecg(rate_dependence=1.0), ecg(size=SIZE * morphology.demand(rate)), atol=0.02 * SIZE, rtol=0
    )
    assert abs(rate - 70) > 2  # else the comparison says nothing


def test_blocks_widen_qrs_in_their_leads() -> None:
    """60 to 80 ms after R: right block is positive in V1 and negative in V6, left block the reverse; T goes against."""
    for block, sign in ((RIGHT_BLOCK, 1), (LEFT_BLOCK, -1)):
        added = {lead: beats(ecg(block=block) - PLAIN, lead) for lead in (V1, V6)}
        late = {lead: one[:, part((0.060, 0.080))].mean() for lead, one in added.items()}
        assert sign * late[V1] > 0.3
        assert sign * late[V6] < -0.2
        assert sign * added[V1][:, part((0.26, 0.32))].mean() < -0.05


def test_who_has_what() -> None:
    """Blocks by age as Eriksson counted them, two thirds right; benign signs of the knob's size; no word of disease."""
    config = PhantomMorphologyConfig()

    def draws(**changes: object) -> list[Morphology]:
        person = dataclasses.replace(PERSON, **changes)
        return [draw_morphology(generator(3, "who", number), person, config) for number in range(2000)]

    shares = {}
    for age in (50.0, 80.0):
        blocks = [one.block for one in draws(age=age) if one.block is not None]
        shares[age] = len(blocks) / 2000
    assert np.mean([block.center == RIGHT_BLOCK.center for block in blocks]) == pytest.approx(2 / 3, abs=0.08)
    assert shares[50.0] == pytest.approx(0.01, abs=0.007)
    assert shares[80.0] == pytest.approx(0.17, abs=0.03)
    benign = np.stack([one.benign for one in draws()])
    assert benign.std(axis=0) == pytest.approx(config.benign, rel=0.08)
    ill = dataclasses.replace(PERSON, stenosis=np.ones(3), ischemia=np.ones(3))
    first, second = (draw_morphology(generator(3, "who", 0), person, config) for person in (PERSON, ill))
    np.testing.assert_array_equal(first.benign, second.benign)
    assert (first.benign_skew, first.block) == (second.benign_skew, second.block)
