"""ECG signals: leads, what an encoder expects of a signal, and the one preprocessing function."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stence_dist.errors import SpecMismatchError

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LEAD_GROUPS = (LEADS[:3], LEADS[3:6], LEADS[6:])  # normalized together: Einthoven, Goldberger, precordial

CLIP_DEVIATIONS = 4.0
BASELINE_STIFFNESS = 1e7
BASELINE_ASYMMETRY = 0.3
BASELINE_ITERATIONS = 5
VARIANCE_FLOOR = 1e-12

LOWEST_RATE, HIGHEST_RATE = 25.0, 50_000.0  # Hz; anything outside is a wrong header, not an ECG
LARGEST_RATIO_TERM = 1000  # rates are matched to a ratio of integers up to this: 1 ppm, or 10 us in 10 s
FILTER_HALF_LENGTH = 10  # of the anti-aliasing filter, in samples of the lower rate
FILTER_WINDOW = ("kaiser", 5.0)

Signal = NDArray[np.float64]
_Preset = TypeVar("_Preset")


@dataclass(frozen=True)
class EcgSpec:
    """What an encoder expects of a signal. It travels in weights, checkpoints and bundles; nothing adapts in silence.

    `windows` is how many crops of `seconds` an evaluation takes from a record, evenly spread (1 = the first).
    """

    leads: tuple[str, ...] = LEADS
    sampling_rate: float = 500.0
    seconds: float = 3.0
    cleaning: str = "stence"
    normalize: str = "lead_groups"
    units: str = "mV"
    windows: int = 1

    @property
    def samples(self) -> int:
        """T: samples of one window."""
        return round(self.seconds * self.sampling_rate)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {**dataclasses.asdict(self), "leads": list(self.leads)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EcgSpec":
        """The inverse of `to_dict`. Raises SpecMismatchError on unknown or missing keys."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise SpecMismatchError(
                f"An ECG spec has the keys {sorted(values)}, expected {sorted(names)}. "
                "It was written by another version of stence_dist."
            )
        return cls(**{**values, "leads": tuple(values["leads"])})


def prepare_ecg(
    signal: NDArray[np.floating[Any]],
    *,
    leads: Sequence[str],
    sampling_rate: float,
    spec: EcgSpec,
    place: float = 0.0,
) -> NDArray[np.float32]:
    """One window (L, T) float32 as `spec` wants it: leads, rate, length, cleaned, normalized.

    signal (leads, samples) in mV at `sampling_rate` Hz, rows named by `leads` in any order, NaN = missing. `place` in
    [0, 1] says where in the free room the window lies: 0 the first, 1 the last. A record shorter than the window gets
    zeros appended. Raises SpecMismatchError for a missing lead, an impossible rate, or a preset that does not exist.
    """
    record = _at_spec_rate(signal, leads, sampling_rate, spec)
    return _window(record, spec, place)


def prepare_windows(
    signal: NDArray[np.floating[Any]], *, leads: Sequence[str], sampling_rate: float, spec: EcgSpec
) -> NDArray[np.float32]:
    """`spec.windows` windows (windows, L, T) at evenly spread places; one window is the first. See `prepare_ecg`."""
    record = _at_spec_rate(signal, leads, sampling_rate, spec)
    places = np.linspace(0.0, 1.0, spec.windows) if spec.windows > 1 else [0.0]
    return np.stack([_window(record, spec, place) for place in places])


def _at_spec_rate(
    signal: NDArray[np.floating[Any]], leads: Sequence[str], sampling_rate: float, spec: EcgSpec
) -> NDArray[np.floating[Any]]:
    """The whole record (L, samples) at the spec's rate, rows in the spec's order; at equal rates with its gaps."""
    if signal.ndim != 2 or signal.shape[0] != len(leads) or signal.shape[1] == 0:
        raise SpecMismatchError(
            f"The signal has shape {signal.shape} for {len(leads)} lead names. Expected (leads, samples), not empty."
        )
    if spec.units != "mV":
        raise SpecMismatchError(f"The ECG spec wants units={spec.units}. Signals are in mV: use a spec with units=mV.")
    missing = [lead for lead in spec.leads if lead not in leads]
    if missing:
        raise SpecMismatchError(
            f"lead {', '.join(missing)} missing (found {' '.join(leads)}); the encoder needs {' '.join(spec.leads)}."
        )
    order = [list(leads).index(lead) for lead in spec.leads]
    chosen = signal if order == list(range(len(signal))) else signal[order]
    ratio = _rate_ratio(sampling_rate, spec.sampling_rate)
    if ratio == 1:
        return chosen
    chosen = _filled(chosen)
    from scipy.signal import resample_poly  # only here: a second of import that most ranks and workers never need

    # Lines through the ends keep a drifting record from ringing there, as zeros beyond its ends would make it.
    resampled: Signal = resample_poly(
        chosen,
        ratio.numerator,
        ratio.denominator,
        axis=1,
        window=_low_pass(max(ratio.numerator, ratio.denominator)),
        padtype="line",
    )
    return resampled


def _filled(signal: NDArray[np.floating[Any]]) -> Signal:
    """A float64 copy with 0 mV where something is missing."""
    return np.where(np.isfinite(signal), signal, 0.0).astype(np.float64, copy=False)


def _rate_ratio(sampling_rate: float, wanted: float) -> Fraction:
    """wanted / sampling_rate as a ratio of small integers. Raises SpecMismatchError where a rate cannot be an ECG's."""
    for rate, whose in ((sampling_rate, "The signal"), (wanted, "The ECG spec")):
        if not (math.isfinite(rate) and LOWEST_RATE <= rate <= HIGHEST_RATE):
            raise SpecMismatchError(
                f"{whose} has a sampling rate of {rate:g} Hz. Expected {LOWEST_RATE:g} to {HIGHEST_RATE:g} Hz: check "
                "the header, or declare the rate."
            )
    return Fraction(wanted / sampling_rate).limit_denominator(LARGEST_RATIO_TERM)


@functools.cache
def _low_pass(factor: int) -> Signal:
    """FIR coefficients that cut off at the lower of two Nyquist frequencies, `factor` below the filter's own."""
    from scipy.signal import firwin

    coefficients: Signal = firwin(2 * FILTER_HALF_LENGTH * factor + 1, 1.0 / factor, window=FILTER_WINDOW)
    return coefficients


def _window(record: NDArray[np.floating[Any]], spec: EcgSpec, place: float) -> NDArray[np.float32]:
    """The cleaned and normalized window (L, T) float32 at `place` of a record at the spec's rate."""
    assert 0.0 <= place <= 1.0, "place is a share of the free room"
    free = max(0, record.shape[1] - spec.samples)
    start = int(place * free + 0.5)
    window = np.zeros((record.shape[0], spec.samples))
    piece = record[:, start : start + spec.samples]
    window[:, : piece.shape[1]] = _filled(piece)
    cleaned = _preset(CLEANING, "cleaning", spec.cleaning)(window)
    return _preset(NORMALIZE, "normalize", spec.normalize)(cleaned, spec.leads).astype(np.float32)


def _preset(table: dict[str, _Preset], field: str, name: str) -> _Preset:
    if name not in table:
        raise SpecMismatchError(
            f"The ECG spec has {field}={name}, which does not exist. Use one of: {', '.join(table)}."
        )
    return table[name]


def clip_and_remove_baseline(window: Signal) -> Signal:
    """The window (L, T) clipped about 0 to 4 standard deviations (over all leads and samples), without its baseline.

    The constants are StenCE's.
    """
    limit = CLIP_DEVIATIONS * window.std()
    return _without_baseline(np.clip(window, -limit, limit))


def _asymmetric_least_squares(signal: Signal) -> Signal:
    """signal - z (L, T), where z minimizes sum w (y - z)^2 + stiffness |second difference of z|^2 in each lead.

    w is asymmetry above z and 1 - asymmetry below, found by iterating (Eilers & Boelens 2005). Each iteration solves
    one pentadiagonal system per lead as L D L^T in float64 (float32 is useless at this stiffness). Leads are the
    innermost axis, so that they share the processor's vector lanes. Ties count as below: a flat lead then keeps
    weights above 0 and its system stays regular.
    """
    leads, samples = signal.shape
    y = np.empty((samples, leads))
    for lead in range(leads):
        for t in range(samples):
            # A constant passes through z unchanged; taken out first, a flat lead ends as exact zeros.
            y[t, lead] = signal[lead, t] - signal[lead, 0]
    w = np.ones((samples, leads))
    # Row t + 2 of `below1` and `below2` is row t of L's two sub-diagonals, so that rows -2 and -1 read as zeros.
    below1 = np.zeros((samples + 2, leads))
    below2 = np.zeros((samples + 2, leads))
    forward = np.empty((samples, leads))
    z = np.zeros((samples + 2, leads))  # rows T and T + 1 stay zero
    product = np.zeros(leads)  # below1 times the pivot, of the row before
    right1 = np.zeros(leads)  # forward times the pivot, one and two rows before
    right2 = np.zeros(leads)
    for _ in range(BASELINE_ITERATIONS):
        product[:] = 0.0
        right1[:] = 0.0
        right2[:] = 0.0
        for t in range(samples):
            # The second differences in which sample t comes first, in the middle, last.
            first = BASELINE_STIFFNESS if t + 2 < samples else 0.0
            middle = BASELINE_STIFFNESS if 0 < t < samples - 1 else 0.0
            last = BASELINE_STIFFNESS if t >= 2 else 0.0
            diagonal = first + 4.0 * middle + last
            beside = -2.0 * (first + middle)
            for lead in range(leads):
                l1, l2 = below1[t + 1, lead], below2[t, lead]
                inverse = 1.0 / (w[t, lead] + diagonal - l1 * product[lead] - last * l2)
                new_product = beside - product[lead] * below2[t + 1, lead]
                right = w[t, lead] * y[t, lead] - l1 * right1[lead] - l2 * right2[lead]
                below1[t + 2, lead] = new_product * inverse
                below2[t + 2, lead] = first * inverse
                forward[t, lead] = right * inverse
                product[lead] = new_product
                right2[lead] = right1[lead]
                right1[lead] = right
        for t in range(samples - 1, -1, -1):
            for lead in range(leads):
                value = forward[t, lead] - below1[t + 2, lead] * z[t + 1, lead] - below2[t + 2, lead] * z[t + 2, lead]
                z[t, lead] = value
                w[t, lead] = BASELINE_ASYMMETRY if y[t, lead] > value else 1.0 - BASELINE_ASYMMETRY
    residual = np.empty((leads, samples))
    for lead in range(leads):
        for t in range(samples):
            residual[lead, t] = y[t, lead] - z[t, lead]
    return residual


def compile_kernel(function: Callable[[Signal], Signal]) -> Callable[[Signal], Signal]:
    """`function` compiled now, so that forked processes share it, and kept on disk where that is possible.

    It runs free of the interpreter lock and takes C-contiguous arrays.
    """
    signature = "float64[:, ::1](float64[:, ::1])"
    try:
        compiled: Callable[[Signal], Signal] = njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:  # no cache folder can be written: neither beside the source nor in the user's home
        compiled = njit(signature, nogil=True)(function)
    return compiled


_without_baseline = compile_kernel(_asymmetric_least_squares)


def normalize_lead_groups(window: Signal, leads: tuple[str, ...]) -> Signal:
    """Zero mean and unit variance over samples and leads of each of StenCE's three lead groups; (L, T)."""
    foreign = [lead for lead in leads if lead not in LEADS]
    if foreign:
        raise SpecMismatchError(
            f"normalize=lead_groups has no group for lead {', '.join(foreign)}. Use leads out of {' '.join(LEADS)}, "
            "or normalize=none."
        )
    normalized = np.empty_like(window)
    for group in LEAD_GROUPS:
        rows = [row for row, lead in enumerate(leads) if lead in group]
        if rows:
            part = window[rows]
            centered = part - part.mean()
            normalized[rows] = centered / np.sqrt(np.mean(centered * centered) + VARIANCE_FLOOR)
    return normalized


CLEANING: dict[str, Callable[[Signal], Signal]] = {
    "stence": clip_and_remove_baseline,
    "none": lambda window: window,
}
NORMALIZE: dict[str, Callable[[Signal, tuple[str, ...]], Signal]] = {
    "lead_groups": normalize_lead_groups,
    "none": lambda window, _leads: window,
}
