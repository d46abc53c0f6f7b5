"""Hand-made ST/T measurements of a 12-lead ECG: what a learned representation has to be compared with."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import find_peaks

# Seconds after the R peak. J is taken at 60 ms; PQ ends where the QRS begins.
_WINDOW = (-0.12, 0.45)
_PQ = (-0.085, -0.055)
_ST = (0.120, 0.140)
_T = (0.200, 0.400)


def st_features(signal: NDArray[np.floating], sampling_rate: float) -> NDArray[np.float32]:
    """ST level of each lead, then T amplitude of each lead (24,), mV against the PQ segment of the median beat.

    signal (12, T) in mV, NaN where missing; a constant offset per lead does not matter. ST is the mean of J + 60 to
    80 ms, T the signed largest deviation from 200 to 400 ms after R. Zeros where no beat is found or a lead is missing.
    """
    filled = np.nan_to_num(np.asarray(signal, dtype=np.float64), posinf=0.0, neginf=0.0)
    before, after = (round(edge * sampling_rate) for edge in _WINDOW)
    peaks = r_peaks(filled, sampling_rate)
    peaks = peaks[(peaks + before >= 0) & (peaks + after < filled.shape[1])]
    if len(peaks) == 0:
        return np.zeros(2 * len(filled), dtype=np.float32)
    beats = filled[:, peaks[:, None] + np.arange(before, after)]  # (12, beats, window)
    level = beats[:, :, _span(_PQ, before, sampling_rate)].mean(axis=2, keepdims=True)
    beat = np.median(beats - level, axis=1)  # (12, window)
    st_level = beat[:, _span(_ST, before, sampling_rate)].mean(axis=1)
    t_wave = uniform_filter1d(beat, max(1, round(0.02 * sampling_rate)), axis=1)[:, _span(_T, before, sampling_rate)]
    t_peak = np.take_along_axis(t_wave, np.abs(t_wave).argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.concatenate([st_level, t_peak]).astype(np.float32)


def r_peaks(signal: NDArray[np.floating], sampling_rate: float) -> NDArray[np.int64]:
    """Sample numbers of the R peaks (beats,), by the energy of the slope over all leads. signal (L, T), no NaN."""
    smooth = uniform_filter1d(signal, max(1, round(0.016 * sampling_rate)), axis=1)
    slope = np.gradient(smooth, axis=1)
    energy = uniform_filter1d((slope**2).sum(axis=0), max(1, round(0.08 * sampling_rate)))
    strongest = float(np.quantile(energy, 0.99)) if energy.size else 0.0
    if strongest <= 0:
        return np.zeros(0, dtype=np.int64)
    found, _ = find_peaks(energy, height=0.3 * strongest, distance=max(1, round(0.3 * sampling_rate)))
    # The complex is centered on its energy; R itself is where the leads together stand farthest from their level.
    reach = round(0.05 * sampling_rate)
    size = np.abs(smooth - np.median(smooth, axis=1, keepdims=True)).sum(axis=0)
    refined = [max(0, peak - reach) + int(size[max(0, peak - reach) : peak + reach + 1].argmax()) for peak in found]
    return np.array(refined, dtype=np.int64)


def _span(seconds: tuple[float, float], before: int, sampling_rate: float) -> slice:
    """The part of a beat window that covers `seconds` after R."""
    first = round(seconds[0] * sampling_rate) - before
    return slice(first, max(first + 1, round(seconds[1] * sampling_rate) - before))
