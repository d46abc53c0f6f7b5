"""Training augmentation: each draw alone, its range, and its order."""

import dataclasses

import numpy as np
import pytest

from stence_dist.config.data import AugmentConfig
from stence_dist.data.augment import augment_ecg, keep_branches, keep_views, shift_frames
from stence_dist.errors import ConfigError
from stence_dist.seeds import generator

RATE = 500.0
ECG = np.random.default_rng(0).standard_normal((12, 1500)).astype(np.float32) + 5
OFF = AugmentConfig(shift_probability=0, amplitude_probability=0, noise_probability=0, mask_probability=0, drop_views=0)


def draw(config: AugmentConfig, number: int) -> np.ndarray:
    """The augmented ECG of one seed."""
    return augment_ecg(ECG, config, RATE, generator(0, "test", number))


def test_nothing_happens_at_probability_zero() -> None:
    """Against the input; and the input is never written to."""
    before = ECG.copy()
    np.testing.assert_array_equal(draw(OFF, 0), before)
    for number in range(20):
        draw(AugmentConfig(), number)
    np.testing.assert_array_equal(ECG, before)


@pytest.mark.parametrize("name", ["amplitude_probability", "mask_probability", "drop_views", "shift_frames"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_shares_outside_0_to_1_are_refused(name: str, value: float) -> None:
    """The error names key and value."""
    with pytest.raises(ConfigError, match=rf"augment\.{name}={value:g} .* Use 0 to 1"):
        AugmentConfig(**{name: value})


def test_draws_follow_the_generator() -> None:
    """Equal generators give equal bits, another one does not; float32 stays."""
    first, again, other = draw(AugmentConfig(), 1), draw(AugmentConfig(), 1), draw(AugmentConfig(), 2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.float32


def test_shift_is_circular_and_bounded() -> None:
    """Each result is a rotation of the input by at most 0.5 s; over 200 draws both directions come near the bound."""
    config = dataclasses.replace(OFF, shift_probability=1.0, shift_seconds=0.5)
    shifts = []
    for number in range(200):
        shifted = draw(config, number)
        shift = int(np.flatnonzero(shifted[0] == ECG[0, 0])[0])
        np.testing.assert_array_equal(np.roll(ECG, shift, axis=1), shifted)
        shifts.append(shift if shift < 750 else shift - 1500)
    assert -250 <= min(shifts) < -200
    assert 200 < max(shifts) <= 250


def test_amplitude_is_one_factor_for_all_leads() -> None:
    """The ratio to the input is constant, within [0.6, 1.3], and fills that range."""
    config = dataclasses.replace(OFF, amplitude_probability=1.0)
    factors = []
    for number in range(200):
        ratio = draw(config, number) / ECG
        assert np.ptp(ratio) < 1e-6
        factors.append(float(ratio.mean()))
    assert 0.6 <= min(factors) < 0.65
    assert 1.25 < max(factors) <= 1.3


def test_noise_has_the_level_that_the_config_says() -> None:
    """Mean and standard deviation of what was added, over 18,000 draws (0.03, 5 standard errors)."""
    noise = draw(dataclasses.replace(OFF, noise_probability=1.0), 0) - ECG
    assert abs(noise.mean()) < 5 * 0.03 / np.sqrt(noise.size)
    assert noise.std() == pytest.approx(0.03, rel=5 / np.sqrt(2 * noise.size))


def test_masks_are_windows_over_all_leads() -> None:
    """One window: exactly 150 zeros at the same place of all leads. Five may overlap: 150 to 750 zeros."""
    one = draw(dataclasses.replace(OFF, mask_probability=1.0, mask_count=1), 0) == 0
    assert one.sum(axis=1).tolist() == [150] * 12
    assert np.flatnonzero(one[0]).tolist() == list(range(np.argmax(one[0]), np.argmax(one[0]) + 150))
    for number in range(20):
        five = draw(dataclasses.replace(OFF, mask_probability=1.0), number) == 0
        assert (five == five[0]).all()
        assert 150 <= five[0].sum() <= 750


def test_mask_longer_than_the_window() -> None:
    """A mask of 10 s blanks a window of 3 s; nothing more goes wrong."""
    assert (draw(dataclasses.replace(OFF, mask_probability=1.0, mask_seconds=10), 0) == 0).all()


def test_probabilities_are_met() -> None:
    """A probability of 0.3 fires in 300 of 1,000 draws, give or take 4.5 standard deviations."""
    config = dataclasses.replace(OFF, amplitude_probability=0.3)
    fired = sum(
        not np.array_equal(augment_ecg(ECG[:1, :4], config, RATE, generator(0, "test", number)), ECG[:1, :4])
        for number in range(1000)
    )
    assert abs(fired - 300) < 65


def test_order_is_stence_s() -> None:
    """On whole numbers scaled by 100: masked samples are exact zeros (nothing is added after), kept ones lie within 7
    standard deviations of the unscaled noise from a multiple of 100."""
    ramp = np.tile(np.arange(1, 1501, dtype=np.float32), (12, 1))
    config = AugmentConfig(amplitude_low=100, amplitude_high=100, mask_count=1)
    config = dataclasses.replace(config, amplitude_probability=1, noise_probability=1, mask_probability=1)
    result = augment_ecg(ramp, config, RATE, generator(0, "test"))
    masked = (result == 0).all(axis=0)
    assert masked.sum() == 150
    away = np.abs(result[:, ~masked] / 100 - np.round(result[:, ~masked] / 100)) * 100
    assert 0 < away.max() < 7 * 0.03


def test_frames_of_a_view_move_together_within_the_bound() -> None:
    """Frames that hold their own column (then row) number: every pixel is its place less one common shift, clipped at
    the edges; over 200 draws shifts of -3 to 3 of 32 pixels (a tenth) all occur, and nothing else does."""
    places = np.arange(32, dtype=np.uint8)
    columns = np.broadcast_to(places, (2, 32, 32))
    found = set()
    for number in range(200):
        across = shift_frames(columns, 0.1, generator(2, "frames", number))
        along = shift_frames(columns.transpose(0, 2, 1), 0.1, generator(2, "frames", number))
        shifts = 16 - int(along[0, 16, 0]), 16 - int(across[0, 0, 16])
        np.testing.assert_array_equal(across[:, 0], np.tile(np.clip(np.arange(32) - shifts[1], 0, 31), (2, 1)))
        np.testing.assert_array_equal(along[:, :, 0], np.tile(np.clip(np.arange(32) - shifts[0], 0, 31), (2, 1)))
        assert (across == across[:1, :1]).all()
        found.update(shifts)
    assert found == set(range(-3, 4))


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_views_are_dropped_up_to_the_share(count: int) -> None:
    """Kept views are distinct, in order, at least max(1, int(0.7 count)); over 300 draws each view is dropped and kept
    (where more than one is there) and no count outside the range occurs."""
    kept = [keep_views(count, 0.3, generator(1, "views", number)) for number in range(300)]
    sizes = {len(views) for views in kept}
    assert min(sizes) >= max(1, int(0.7 * count))
    assert all((np.diff(views) > 0).all() for views in kept)
    assert set(np.concatenate(kept).tolist()) == set(range(count))
    if count == 10:
        assert sizes == {7, 8, 9}  # int() rounds down, as StenCE's does: all 10 stay only at a draw of exactly 0
    if count == 1:
        assert sizes == {1}


def test_no_view_is_dropped_at_share_zero() -> None:
    """All views, in order."""
    assert keep_views(6, 0.0, generator(0, "views")).tolist() == list(range(6))


def test_branches_are_kept_at_their_probability() -> None:
    """10,000 branches at a drop probability of 0.2, within 4.5 standard deviations; 0 keeps all; none gives none."""
    kept = keep_branches(10_000, 0.2, generator(0, "path"))
    assert kept.dtype == bool
    assert abs(kept.sum() - 8000) < 180
    assert keep_branches(7, 0.0, generator(0, "path")).all()
    assert keep_branches(0, 0.5, generator(0, "path")).shape == (0,)
