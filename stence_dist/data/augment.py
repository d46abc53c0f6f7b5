"""Training augmentation as pure functions of a generator: of the prepared ECG, of which views, of their frames.

What is off draws nothing, but for the four that StenCE pretrains with.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stence_dist.config.data import AugmentConfig, EcgAugmentConfig

_NARROWEST = 3 / 4  # shape of a crop of frames: width to height, and the reverse


def augment_ecg(
    ecg: NDArray[np.float32], config: EcgAugmentConfig, sampling_rate: float, draws: np.random.Generator
) -> NDArray[np.float32]:
    """A prepared ECG (L, T) as one draw of the configured augmentation makes it; (L, T) float32.

    First OTiS's four in their order, which StenCE fine-tunes with: stretched, phases turned, each value and the whole
    rescaled. Then StenCE's four in theirs: shifted in a circle, scaled, made noisy, masked.
    """
    samples = ecg.shape[1]
    if config.stretch < 1:
        ecg = stretch(ecg, int(samples * draws.uniform(config.stretch, 1.0)), draws)
    if config.phase_probability and draws.random() < config.phase_probability:
        ecg = turn_phases(ecg, config.phase_noise, draws)
    if config.jitter:
        ecg = ecg * (1 + np.float32(config.jitter) * draws.standard_normal(ecg.shape, dtype=np.float32))
    if config.rescale:
        ecg = ecg * np.float32(abs(draws.normal(1.0, config.rescale)))  # a negative factor would be swapped electrodes
    if draws.random() < config.shift_probability:
        ecg = np.roll(ecg, int(draws.uniform(-1.0, 1.0) * config.shift_seconds * sampling_rate), axis=1)
    if draws.random() < config.amplitude_probability:
        ecg = ecg * np.float32(draws.uniform(config.amplitude_low, config.amplitude_high))
    if draws.random() < config.noise_probability:
        ecg = ecg + np.float32(config.noise_level) * draws.standard_normal(ecg.shape, dtype=np.float32)
    if draws.random() < config.mask_probability:
        length = min(samples, int(config.mask_seconds * sampling_rate))
        ecg = ecg.copy()
        for start in draws.integers(0, samples - length + 1, size=config.mask_count):
            ecg[:, start : start + length] = 0.0
    return ecg


def stretch(ecg: NDArray[np.float32], length: int, draws: np.random.Generator) -> NDArray[np.float32]:
    """A random part of `length` samples of ecg (L, T), one or more, brought back to T samples along straight lines."""
    samples = ecg.shape[1]
    length = min(max(length, 1), samples)
    start = int(draws.integers(0, samples - length + 1))
    places = np.clip((np.arange(samples) + 0.5) * length / samples - 0.5, 0, length - 1)  # centers of equal stretches
    before = places.astype(np.int64)
    share = (places - before).astype(np.float32)
    part = ecg[:, start : start + length]
    stretched = part[:, before] * (1 - share) + part[:, np.minimum(before + 1, length - 1)] * share
    return np.asarray(stretched, dtype=np.float32)


def turn_phases(ecg: NDArray[np.float32], noise: float, draws: np.random.Generator) -> NDArray[np.float32]:
    """ecg (L, T) with the phase of each frequency turned by up to `noise` of a full turn, alike for all leads.

    The mean stays, and so does the power of every frequency, and the phase of the highest where T is even.
    """
    spectrum = np.fft.rfft(ecg.astype(np.float64), axis=1)
    turned = (ecg.shape[1] - 1) // 2
    spectrum[:, 1 : turned + 1] *= np.exp(2j * np.pi * noise * draws.random(turned))
    return np.fft.irfft(spectrum, n=ecg.shape[1], axis=1).astype(np.float32)


def keep_views(count: int, drop: float, draws: np.random.Generator) -> NDArray[np.int64]:
    """Which of a pair's `count` views stay, in their order: a share uniform in [0, `drop`] goes, one or more stay."""
    kept = max(1, int(count * (1.0 - draws.uniform(0.0, drop))))
    return np.sort(draws.choice(count, size=kept, replace=False)).astype(np.int64)


def shift_frames(frames: NDArray[np.uint8], largest: float, draws: np.random.Generator) -> NDArray[np.uint8]:
    """One view's frames (F, H, W) moved together by up to `largest` of their side along each axis, edges repeated."""
    moved = frames
    for axis in (1, 2):
        side = frames.shape[axis]
        reach = int(largest * side)
        shift = int(draws.integers(-reach, reach + 1))
        moved = moved.take(np.clip(np.arange(side) - shift, 0, side - 1), axis=axis)
    return moved


def augment_frames(frames: NDArray[np.uint8], config: AugmentConfig, draws: np.random.Generator) -> NDArray[np.uint8]:
    """One view's frames (F, H, W), all alike shifted, cropped and rotated, given another contrast, and blurred."""
    if config.shift_frames:
        frames = shift_frames(frames, config.shift_frames, draws)
    if config.crop_frames < 1 or config.rotate_frames:
        frames = crop_and_rotate(frames, config.crop_frames, config.rotate_frames, draws)
    if config.contrast_frames:
        frames = change_contrast(frames, config.contrast_frames, draws)
    if config.blur_frames:
        from scipy.ndimage import gaussian_filter  # only here: most readers never need it

        deviation = config.blur_frames * frames.shape[2] * draws.random()
        frames = _rounded(gaussian_filter(frames.astype(np.float32), (0, deviation, deviation), mode="nearest"))
    return frames


def crop_and_rotate(
    frames: NDArray[np.uint8], smallest: float, degrees: float, draws: np.random.Generator
) -> NDArray[np.uint8]:
    """Part of the area of frames (F, H, W), `smallest` or more of it, blown up to H x W and rotated by up to `degrees`.

    Interpolated along straight lines; what lies beyond the frame is black.
    """
    from scipy.ndimage import affine_transform

    sides = np.array(frames.shape[1:], dtype=np.float64)
    parts = np.ones(2)
    if smallest < 1:
        area = draws.uniform(smallest, 1.0)
        shape = math.exp(draws.uniform(math.log(_NARROWEST), -math.log(_NARROWEST)))
        parts = np.minimum(1.0, np.sqrt([area / shape, area * shape]))
    center = (sides - 1) / 2 + (draws.random(2) - 0.5) * (1 - parts) * (sides - 1)
    angle = math.radians(draws.uniform(-degrees, degrees))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    matrix = parts[:, None] * turn  # from a place in the result, seen from its center, to one in the frame
    offset = center - matrix @ ((sides - 1) / 2)
    moved = [
        affine_transform(frame.astype(np.float32), matrix, offset, order=1, mode="grid-constant") for frame in frames
    ]
    return _rounded(np.stack(moved))


def change_contrast(frames: NDArray[np.uint8], largest: float, draws: np.random.Generator) -> NDArray[np.uint8]:
    """frames (F, H, W) brighter or darker by a factor, then spread around their mean by another, of 1 +- `largest`."""
    brightness, contrast = (np.float32(factor) for factor in draws.uniform(1 - largest, 1 + largest, size=2))
    values = np.clip(frames.astype(np.float32) * brightness, 0, 255)
    mean = values.mean(dtype=np.float64).astype(np.float32)
    return _rounded(mean + contrast * (values - mean))


def _rounded(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def keep_branches(drop_rates: Sequence[float], draws: np.random.Generator) -> NDArray[np.bool_]:
    """Which of an encoder's residual branches drop-path, with these rates (K,), leaves in for one sample; (K,)."""
    return draws.random(len(drop_rates)) >= np.asarray(drop_rates)
