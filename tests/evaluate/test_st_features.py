"""Hand-made ST/T features on drawn beats whose levels are known, and on input without beats."""

import numpy as np
import pytest

from stence_dist.evaluate.st_features import r_peaks, st_features


def drawn(rate: float, st_level: float, t_wave: float, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """12 equal leads of 10 s: a QRS bell every 0.8 s, an ST plateau, a T bell at 300 ms. Also the R times."""
    time = np.arange(int(10 * rate)) / rate
    lead = np.full(len(time), offset)
    times = np.arange(0.5, 9.4, 0.8)
    for beat in times:
        near = time - beat
        lead += np.exp(-0.5 * (near / 0.012) ** 2) + st_level * np.exp(-(((near - 0.13) / 0.06) ** 4))
        lead += t_wave * np.exp(-0.5 * ((near - 0.3) / 0.03) ** 2)
    return np.tile(lead, (12, 1)), times


@pytest.mark.parametrize("rate", [250.0, 500.0, 1000.0])
@pytest.mark.parametrize(("st_level", "t_wave"), [(-0.1, 0.4), (0.05, -0.3)])
def test_known_levels(rate: float, st_level: float, t_wave: float) -> None:
    """ST and T come back to 0.02 mV at any rate, whatever constant each lead stands on."""
    signal, times = drawn(rate, st_level, t_wave, offset=1.7)
    np.testing.assert_allclose(r_peaks(signal, rate) / rate, times, atol=0.006)
    features = st_features(signal, rate)
    assert features.shape == (24,)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[:12], st_level, atol=0.02)
    np.testing.assert_allclose(features[12:], t_wave, atol=0.02)
    moved = signal - np.median(signal, axis=1, keepdims=True)
    np.testing.assert_allclose(st_features(moved, rate), features, atol=1e-6)


def test_missing_lead_and_no_beats() -> None:
    """A lead of NaN gives zeros for that lead alone; flat, missing or too short signals give zeros, never NaN."""
    signal, _ = drawn(500, -0.1, 0.4)
    signal[3] = np.nan
    features = st_features(signal, 500)
    assert features[3] == features[15] == 0
    assert features[4] == pytest.approx(-0.1, abs=0.02)
    for empty in (np.zeros((12, 5000)), np.full((12, 5000), np.nan), signal[:, :30]):
        np.testing.assert_array_equal(st_features(empty, 500), np.zeros(24))
