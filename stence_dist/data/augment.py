"""Training augmentation as pure functions of a generator: StenCE's four of the prepared ECG, and two of the views."""

import numpy as np
from numpy.typing import NDArray

from stence_dist.config.data import AugmentConfig


def augment_ecg(
    ecg: NDArray[np.float32], config: AugmentConfig, sampling_rate: float, draws: np.random.Generator
) -> NDArray[np.float32]:
    """A prepared ECG (L, T) shifted in a circle, scaled, made noisy and masked, in StenCE's order; (L, T) float32."""
    samples = ecg.shape[1]
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


def keep_branches(blocks: int, drop_path: float, draws: np.random.Generator) -> NDArray[np.bool_]:
    """Which of an encoder's residual branches (blocks,) drop-path leaves in for one sample."""
    return draws.random(blocks) >= drop_path
