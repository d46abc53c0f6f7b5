"""Preparation of ECGs, against float64 references that share no code with it."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from stence_dist.ecg import CLEANING, LEADS, NORMALIZE, EcgSpec, compile_kernel, prepare_ecg, prepare_windows
from stence_dist.errors import SpecMismatchError

SPEC = EcgSpec()
RAW = EcgSpec(cleaning="none", normalize="none")


def drifting_ecg(samples: int, seed: int = 0) -> np.ndarray:
    """(12, samples) float32 mV: narrow beats, a slow drift per lead, noise."""
    draws = np.random.default_rng(seed)
    t = np.arange(samples) / 500
    beats = np.exp(-(((t % 0.8) - 0.4) ** 2) / (2 * 0.015**2))
    gains = draws.uniform(-1.5, 1.5, (12, 1))
    drift = draws.uniform(-0.4, 0.4, (12, 1)) * np.sin(2 * np.pi * 0.3 * t + draws.uniform(0, 6, (12, 1)))
    return (gains * beats + drift + 0.02 * draws.standard_normal((12, samples))).astype(np.float32)


def sparse_baseline(y: np.ndarray) -> np.ndarray:
    """Asymmetric least squares of one lead by general sparse LU, written from Eilers & Boelens' formula."""
    count = len(y)
    second_difference = scipy.sparse.diags([1.0, -2.0, 1.0], [0, 1, 2], shape=(count - 2, count))
    penalty = 1e7 * (second_difference.T @ second_difference)
    w = np.ones(count)
    for _ in range(5):
        z = scipy.sparse.linalg.spsolve((scipy.sparse.diags(w) + penalty).tocsc(), w * y)
        w = np.where(y > z, 0.3, 0.7)
    return z


def reference(window: np.ndarray) -> np.ndarray:
    """StenCE's chain on one 12-lead window in float64: NaN to 0, clip, baseline, groups."""
    x = np.nan_to_num(window.astype(np.float64))
    limit = 4 * np.std(x)
    x = np.minimum(np.maximum(x, -limit), limit)
    x = x - np.stack([sparse_baseline(lead) for lead in x])
    for group in (slice(0, 3), slice(3, 6), slice(6, 12)):
        x[group] = (x[group] - np.mean(x[group])) / np.sqrt(np.var(x[group]) + 1e-12)
    return x


def edge_case(name: str) -> np.ndarray:
    """A 12 x 1500 window with one of the defects that real records have."""
    window = drifting_ecg(1500, seed=3)
    if name == "zero lead":
        window[4] = 0.0
    elif name == "missing lead":
        window[7] = np.nan
    elif name == "constant lead":
        window[1] = 0.7
    elif name == "missing samples":
        window[2:9, 300:340] = np.nan
    elif name == "spike":
        window[0, 700] = 40.0
    elif name == "half padded":
        window = window[:, :750]
    elif name == "all zero":
        window[:] = 0.0
    return window


@pytest.mark.parametrize(
    "name",
    ["clean", "zero lead", "missing lead", "constant lead", "missing samples", "spike", "half padded", "all zero"],
)
def test_preparation_equals_sparse_solver(name: str) -> None:
    """Against sparse LU in float64, to 1e-6, on a sound window and on each defect; always finite."""
    window = edge_case(name)
    prepared = prepare_ecg(window, leads=LEADS, sampling_rate=500, spec=SPEC)
    padded = np.zeros((12, 1500))
    padded[:, : window.shape[1]] = window
    assert prepared.dtype == np.float32
    assert prepared.shape == (12, 1500)
    assert np.isfinite(prepared).all()
    np.testing.assert_allclose(prepared, reference(padded), rtol=0, atol=1e-6)


def test_ten_seconds_equal_sparse_solver() -> None:
    """Against sparse LU on a long window, where the system is conditioned worst."""
    signal = drifting_ecg(5000, seed=5)
    prepared = prepare_ecg(signal, leads=LEADS, sampling_rate=500, spec=EcgSpec(seconds=10))
    np.testing.assert_allclose(prepared, reference(signal), rtol=0, atol=2e-6)


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5])
def test_shortest_windows(samples: int) -> None:
    """Windows too short for a second difference keep nothing (the signal is its own baseline); others equal the
    reference's solver."""
    window = drifting_ecg(samples, seed=1).astype(np.float64)
    cleaned = CLEANING["stence"](window)
    limit = 4 * window.std()
    clipped = np.clip(window, -limit, limit)
    expected = (
        clipped - np.stack([sparse_baseline(lead) for lead in clipped]) if samples > 2 else np.zeros((12, samples))
    )
    np.testing.assert_allclose(cleaned, expected, rtol=0, atol=1e-7)


def test_flat_leads_become_exact_zeros() -> None:
    """A record of constants has no signal: exact zeros, not rounding errors blown up by the normalization."""
    constants = np.repeat(np.linspace(-1, 1, 12, dtype=np.float32)[:, None], 1500, axis=1)
    prepared = prepare_ecg(constants, leads=LEADS, sampling_rate=500, spec=SPEC)
    np.testing.assert_array_equal(prepared, 0.0)


def test_infinite_samples_count_as_missing() -> None:
    """Against the same record with NaN there."""
    signal = drifting_ecg(1500)
    signal[3, 10], signal[5, 20] = np.inf, -np.inf
    missing = np.where(np.isfinite(signal), signal, np.nan)
    got, expected = (prepare_ecg(x, leads=LEADS, sampling_rate=500, spec=SPEC) for x in (signal, missing))
    np.testing.assert_array_equal(got, expected)


def test_leads_are_chosen_by_name() -> None:
    """A shuffled record with an extra lead gives what the ordered one gives."""
    signal = drifting_ecg(1500)
    order = np.random.default_rng(2).permutation(12)
    shuffled = np.concatenate([signal[order], signal[:1] + 3])
    names = [*(LEADS[lead] for lead in order), "X"]
    got = prepare_ecg(shuffled, leads=names, sampling_rate=500, spec=SPEC)
    np.testing.assert_array_equal(got, prepare_ecg(signal, leads=LEADS, sampling_rate=500, spec=SPEC))


@pytest.mark.parametrize("rate", [100.0, 128.0, 250.0, 257.0, 360.0, 1000.0, 1024.0])
def test_resampled_sine_is_the_analytic_sine(rate: float) -> None:
    """A 7 Hz sine recorded at other rates, against the sine itself at 500 Hz, away from the ends."""
    signal = np.tile(np.sin(2 * np.pi * 7 * np.arange(int(4 * rate)) / rate), (12, 1))
    prepared = prepare_ecg(signal, leads=LEADS, sampling_rate=rate, spec=RAW)
    expected = np.sin(2 * np.pi * 7 * np.arange(1500) / 500)
    np.testing.assert_allclose(prepared[:, 150:], np.tile(expected, (12, 1))[:, 150:], rtol=0, atol=2.5e-3)


def test_resampling_does_not_alias() -> None:
    """A 320 Hz tone at 1,000 Hz lies above the new Nyquist frequency: it vanishes, where plain decimation keeps all of
    it (as 180 Hz); a 40 Hz tone stays."""
    t = np.arange(4000) / 1000
    high, low = np.sin(2 * np.pi * 320 * t), np.sin(2 * np.pi * 40 * t)
    assert np.abs(high[::2]).max() > 0.9
    kept = [
        np.abs(prepare_ecg(np.tile(tone, (12, 1)), leads=LEADS, sampling_rate=1000, spec=RAW)[:, 100:1400]).max()
        for tone in (high, low)
    ]
    assert kept[0] < 5e-3
    assert kept[1] == pytest.approx(1, abs=5e-3)


def test_drift_does_not_ring_at_the_ends() -> None:
    """A ramp that ends 2 mV away from 0, against its own line up to the last sample; zeros beyond the ends would bend
    it by more than 1 mV."""
    ramp = np.tile(np.linspace(1, 2, 1000), (12, 1))
    spec = EcgSpec(seconds=4, cleaning="none", normalize="none")
    prepared = prepare_ecg(ramp, leads=LEADS, sampling_rate=250, spec=spec)
    np.testing.assert_allclose(prepared[0], 1 + np.arange(2000) / 1998, rtol=0, atol=2e-3)


def test_almost_equal_rate_is_left_alone() -> None:
    """A header's 500.0001 Hz is 500 Hz: not one bit is filtered."""
    signal = drifting_ecg(1500)
    np.testing.assert_array_equal(prepare_ecg(signal, leads=LEADS, sampling_rate=500.0001, spec=RAW), signal)


def test_place_moves_the_window_through_the_free_room() -> None:
    """Against slices of a ramp: 0 is the first window, 1 the last, 0.5 the middle."""
    ramp = np.tile(np.arange(5000, dtype=np.float64), (12, 1))
    for place, start in ((0.0, 0), (0.5, 1750), (1.0, 3500)):
        window = prepare_ecg(ramp, leads=LEADS, sampling_rate=500, spec=RAW, place=place)
        np.testing.assert_array_equal(window[0], np.arange(start, start + 1500))


@pytest.mark.parametrize("windows, starts", [(1, [0]), (2, [0, 3500]), (3, [0, 1750, 3500])])
def test_windows_are_evenly_spread(windows: int, starts: list[int]) -> None:
    """Against slices of a ramp."""
    ramp = np.tile(np.arange(5000, dtype=np.float64), (12, 1))
    spec = EcgSpec(cleaning="none", normalize="none", windows=windows)
    prepared = prepare_windows(ramp, leads=LEADS, sampling_rate=500, spec=spec)
    assert prepared.shape == (windows, 12, 1500)
    assert prepared[:, 0, 0].tolist() == starts


def test_short_record_is_padded_in_every_window() -> None:
    """1 s in a spec of 3 s: signal, then zeros, in all windows alike."""
    signal = drifting_ecg(500)
    prepared = prepare_windows(
        signal, leads=LEADS, sampling_rate=500, spec=EcgSpec(cleaning="none", normalize="none", windows=3)
    )
    for window in prepared:
        np.testing.assert_array_equal(window[:, :500], signal)
        np.testing.assert_array_equal(window[:, 500:], 0.0)


def test_eight_leads_are_normalized_by_name() -> None:
    """Leads of the group that a spec leaves out are not replaced by others: against each group's own mean and sd."""
    leads = ("V1", "I", "V6", "II")
    spec = EcgSpec(leads=leads, cleaning="none")
    signal = drifting_ecg(1500)
    prepared = prepare_ecg(signal, leads=LEADS, sampling_rate=500, spec=spec)
    for rows in ([0, 2], [1, 3]):
        part = signal[[LEADS.index(leads[row]) for row in rows]].astype(np.float64)
        np.testing.assert_allclose(prepared[rows], (part - part.mean()) / part.std(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes, leads, rate, words",
    [
        ({}, (*LEADS[:8], "X", "Y", "V5", "V6"), 500, ["V3, V4", "found I II"]),
        ({"cleaning": "wavelet"}, LEADS, 500, ["cleaning=wavelet", "stence, none"]),
        ({"normalize": "batch"}, LEADS, 500, ["normalize=batch", "lead_groups, none"]),
        ({"units": "uV"}, LEADS, 500, ["units=uV", "mV"]),
        ({"leads": ("I", "X")}, ("I", "X", *LEADS[2:]), 500, ["no group for lead X"]),
        ({}, LEADS, 0, ["0 Hz", "25"]),
        ({}, LEADS, 1e6, ["1e+06 Hz"]),
        ({}, LEADS, float("nan"), ["nan Hz"]),
        ({}, LEADS[:11], 500, ["(12, 1500)", "11 lead names"]),
    ],
)
def test_mismatches_are_refused(changes: dict, leads: tuple[str, ...], rate: float, words: list[str]) -> None:
    """Each message names what was found and what would do."""
    with pytest.raises(SpecMismatchError) as refused:
        prepare_ecg(drifting_ecg(1500), leads=leads, sampling_rate=rate, spec=EcgSpec(**changes))
    assert all(word in str(refused.value) for word in words), refused.value


def test_empty_signal_is_refused() -> None:
    """No sample at all is not a record of zeros."""
    with pytest.raises(SpecMismatchError, match="not empty"):
        prepare_ecg(np.zeros((12, 0)), leads=LEADS, sampling_rate=500, spec=SPEC)


def test_spec_travels_as_json() -> None:
    """Round trip, and an unknown or missing key is refused."""
    spec = EcgSpec(leads=LEADS[:3], seconds=2.5, windows=3)
    assert EcgSpec.from_dict(spec.to_dict()) == spec
    assert spec.samples == 1250
    with pytest.raises(SpecMismatchError, match="polarity"):
        EcgSpec.from_dict({**spec.to_dict(), "polarity": 1})


def test_presets_leave_their_input_alone() -> None:
    """Preparation never writes into the record that it was given."""
    window = drifting_ecg(1500).astype(np.float64)
    before = window.copy()
    for clean in CLEANING.values():
        clean(window)
    for normalize in NORMALIZE.values():
        normalize(window, LEADS)
    np.testing.assert_array_equal(window, before)


def test_kernel_works_without_a_cache_folder() -> None:
    """numba refuses to cache what has no file; the kernel is then compiled in memory."""
    scope: dict = {}
    exec(compile("def double(x):\n    return x + x\n", "<no file>", "exec"), scope)
    np.testing.assert_array_equal(compile_kernel(scope["double"])(np.ones((2, 3))), np.full((2, 3), 2.0))
