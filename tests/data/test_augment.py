"""Training augmentation: each draw alone, its range, and its order."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, rotate

from stence_dist.config.data import AugmentConfig
from stence_dist.data.augment import (
    augment_ecg,
    augment_frames,
    change_contrast,
    crop_and_rotate,
    keep_branches,
    keep_views,
    shift_frames,
    stretch,
    turn_phases,
)
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


def test_what_is_off_draws_nothing() -> None:
    """After StenCE's four at probability 0 their generator has given four numbers, whatever else could be on; frames
    that nothing changes are the same array."""
    draws, expected = generator(0, "test"), generator(0, "test")
    augment_ecg(ECG, OFF, RATE, draws)
    expected.random(4)
    assert draws.random() == expected.random()
    frames = np.zeros((1, 8, 8), dtype=np.uint8)
    assert augment_frames(frames, OFF, draws) is frames
    assert not OFF.changes_frames
    assert draws.random() == expected.random()


@pytest.mark.parametrize(
    "name",
    [
        "amplitude_probability",
        "mask_probability",
        "phase_probability",
        "phase_noise",
        "drop_views",
        "shift_frames",
        "stretch",
        "crop_frames",
        "contrast_frames",
        "blur_frames",
    ],
)
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_shares_outside_0_to_1_are_refused(name: str, value: float) -> None:
    """The error names key and value."""
    with pytest.raises(ConfigError, match=rf"augment\.{name}={value:g} .* Use 0 to 1"):
        AugmentConfig(**{name: value})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stretch": 0.0}, "above 0; 1 = off"),
        ({"crop_frames": 0.0}, "above 0; 1 = off"),
        ({"jitter": -0.1}, "jitter=-0.1"),
        ({"rescale": float("inf")}, "rescale=inf"),
        ({"rotate_frames": float("nan")}, "rotate_frames=nan"),
    ],
)
def test_other_values_that_mean_nothing_are_refused(keys: dict[str, float], message: str) -> None:
    """The error names key and value, or says what 1 means."""
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**keys)


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
    """10,000 branches each at rates of 0.2 and 0.5, within 4.5 standard deviations; 0 keeps all; none gives none."""
    kept = keep_branches([0.2] * 10_000 + [0.5] * 10_000, generator(0, "path"))
    assert kept.dtype == bool
    assert abs(kept[:10_000].sum() - 8000) < 180
    assert abs(kept[10_000:].sum() - 5000) < 225
    assert keep_branches([0.0] * 7, generator(0, "path")).all()
    assert keep_branches([], generator(0, "path")).shape == (0,)


def test_stretch_is_a_part_resized_as_torch_does() -> None:
    """Each result is torch's linear interpolation of one part of the drawn length, and many parts occur."""
    starts = set()
    for number in range(40):
        found = stretch(ECG, 1125, generator(0, "stretch", number))
        assert found.dtype == np.float32
        for start in range(1500 - 1125 + 1):
            if np.isclose(found[0, 0], ECG[0, start], atol=0.3):  # the first value lies near the part's first sample
                part = torch.from_numpy(ECG[None, :, start : start + 1125])
                resized = torch.nn.functional.interpolate(part, size=1500, mode="linear")[0].numpy()
                if np.allclose(found, resized, atol=1e-5):
                    starts.add(start)
                    break
        else:
            pytest.fail("not a part of the ECG")
    assert len(starts) > 30
    assert min(starts) < 60
    assert max(starts) > 315
    np.testing.assert_array_equal(stretch(ECG, 1500, generator(0, "stretch")), ECG)


def test_stretch_draws_its_length_down_to_the_share() -> None:
    """A ramp comes back with the slope length / 1500: over 200 draws within [0.75, 1], and near both ends."""
    ramp = np.tile(np.arange(1500, dtype=np.float32), (2, 1))
    config = dataclasses.replace(OFF, stretch=0.75)
    slopes = []
    for number in range(200):
        found = augment_ecg(ramp, config, RATE, generator(0, "slope", number))
        slopes.append(float(found[0, 800] - found[0, 700]) / 100)
    assert 0.7499 <= min(slopes) < 0.76
    assert 0.99 < max(slopes) <= 1


@pytest.mark.parametrize("samples", [1500, 1499])
def test_phases_turn_alike_for_all_leads(samples: int) -> None:
    """Power and mean of every lead stay; the turns of all leads are the generator's, within the share of a circle."""
    ecg = ECG[:, :samples]
    found = turn_phases(ecg, 0.075, generator(3, "phases"))
    before, after = np.fft.fft(ecg.astype(np.float64)), np.fft.fft(found.astype(np.float64))
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-3)
    turned = (samples - 1) // 2
    turns = np.angle(after[:, 1 : turned + 1] / before[:, 1 : turned + 1])
    expected = 2 * np.pi * 0.075 * generator(3, "phases").random(turned)
    np.testing.assert_allclose(turns, np.tile(expected, (12, 1)), atol=1e-3)
    np.testing.assert_allclose(after[:, 0], before[:, 0], rtol=1e-6)
    if samples % 2 == 0:
        np.testing.assert_allclose(after[:, samples // 2], before[:, samples // 2], atol=1e-3)
    np.testing.assert_allclose(turn_phases(ecg, 0.0, generator(3, "phases")), ecg, atol=1e-5)


def test_jitter_is_a_factor_per_value() -> None:
    """Ratios to the input have mean 1 and the deviation that the config says (5 standard errors)."""
    ratio = draw(dataclasses.replace(OFF, jitter=0.12), 0) / ECG
    assert abs(ratio.mean() - 1) < 5 * 0.12 / np.sqrt(ratio.size)
    assert ratio.std() == pytest.approx(0.12, rel=5 / np.sqrt(2 * ratio.size))


def test_rescale_is_one_factor_and_never_turns_an_ecg_over() -> None:
    """Over 300 draws: one ratio each, as |N(1, 0.5)| has them; a negative one would occur in 2.3 % of StenCE's."""
    factors = []
    for number in range(300):
        ratio = draw(dataclasses.replace(OFF, rescale=0.5), number) / ECG
        assert np.ptp(ratio) < 1e-5
        factors.append(float(ratio.mean()))
    assert min(factors) > 0
    assert np.mean(factors) == pytest.approx(1.0, abs=5 * 0.5 / np.sqrt(300))
    assert np.std(factors) == pytest.approx(0.5, rel=0.25)


def test_crop_is_a_part_of_the_area_blown_up() -> None:
    """Ramps down and across: the slopes are the crop's sides, its area is 0.5 to 1 of the frame's and its shape 3:4 to
    4:3 where no side is cut; it lies inside, so that nothing black comes in."""
    ramps = (
        np.stack([np.tile(np.arange(64), (64, 1)), np.tile(np.arange(64)[:, None], (1, 64))]).astype(np.uint8) * 3 + 9
    )
    areas = []
    for number in range(100):
        across, down = crop_and_rotate(ramps, 0.5, 0.0, generator(4, "crop", number)).astype(float)
        assert min(across.min(), down.min()) >= 9
        width, height = np.ptp(across) / 3 / 63, np.ptp(down) / 3 / 63
        areas.append(width * height)
        if max(width, height) < 0.99:
            assert 3 / 4 - 0.03 < width / height < 4 / 3 + 0.03
    assert 0.48 < min(areas) < 0.58
    assert 0.9 < max(areas) < 1.03


def test_rotation_is_about_the_center() -> None:
    """Against scipy's rotate at the angle of the generator, within one gray level; the corners turn black."""
    frames = gaussian_filter(np.random.default_rng(0).uniform(0, 255, (2, 41, 41)), (0, 3, 3))
    frames = np.rint(frames).astype(np.uint8)
    for number in range(5):
        found = crop_and_rotate(frames, 1.0, 10.0, generator(5, "rotate", number))
        draws = generator(5, "rotate", number)
        draws.random(2)  # the place of the crop
        angle = draws.uniform(-10, 10)
        expected = rotate(frames.astype(np.float32), angle, axes=(1, 2), reshape=False, order=1, mode="grid-constant")
        assert np.abs(found - expected).max() <= 0.51
        if abs(angle) > 2:
            assert not np.array_equal(found, frames)


def test_contrast_is_two_factors() -> None:
    """Within the range nothing is clipped, and the result is an affine function of the input by the drawn factors."""
    frames = np.random.default_rng(0).integers(60, 120, (2, 16, 16)).astype(np.uint8)
    draws = generator(6, "contrast")
    brightness, contrast = draws.uniform(0.8, 1.2, size=2)
    mean = frames.mean() * brightness
    found = change_contrast(frames, 0.2, generator(6, "contrast"))
    np.testing.assert_allclose(found, mean + contrast * (frames * brightness - mean), atol=0.51)
    assert change_contrast(np.full((1, 4, 4), 250, dtype=np.uint8), 0.8, generator(0, "test")).max() <= 255


def test_blur_is_drawn_up_to_the_deviation() -> None:
    """A point spreads with a variance between 0 and that of 0.05 x 64 pixels, and keeps its mass."""
    frames = np.zeros((1, 64, 64), dtype=np.uint8)
    frames[0, 24:40, 24:40] = 255
    config = dataclasses.replace(OFF, blur_frames=0.05)
    places = np.arange(64) - 31.5
    variances = []
    for number in range(60):
        row = augment_frames(frames, config, generator(7, "blur", number))[0].sum(axis=0, dtype=np.float64)
        assert row.sum() == pytest.approx(255 * 256, rel=0.02)
        variances.append((row * places**2).sum() / row.sum() - (16**2 - 1) / 12)
    assert min(variances) < 0.5
    assert 7 < max(variances) < 3.2**2 * 1.1


def test_frames_are_augmented_by_the_generator_alone() -> None:
    """Everything on: equal draws give equal bits, others do not; type and shape stay; equal frames stay equal."""
    config = AugmentConfig(shift_frames=0.1, crop_frames=0.5, rotate_frames=10, contrast_frames=0.8, blur_frames=0.004)
    assert config.changes_frames
    frames = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 32, 32), dtype=np.uint8), 2, axis=0)
    first, again, other = (augment_frames(frames, config, generator(8, "all", number)) for number in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.array_equal(first, other)
    assert first.dtype == np.uint8
    assert first.shape == frames.shape
