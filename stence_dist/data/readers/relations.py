"""What holds between the limb leads of every correctly scaled 12-lead ECG."""

import numpy as np
from numpy.typing import NDArray

_I, _II, _III, _AVR, _AVL, _AVF = range(6)


def _rms(values: NDArray[np.float64]) -> float:
    """Root mean square about the median of the samples that are there; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(np.sqrt(np.mean((known - np.median(known)) ** 2))) if known.size else float("nan")


def einthoven_residual(signal: NDArray[np.float64]) -> float | None:
    """RMS of I + III - II, in the signal's unit, offsets aside. signal (12, T) in `LEADS` order; None = unknown."""
    residual = _rms(signal[_I] + signal[_III] - signal[_II])
    return None if np.isnan(residual) else residual


def relation_error(signal: NDArray[np.float64]) -> float:
    """Largest RMS residual of Einthoven's and Goldberger's relations over the largest RMS of I, II and III.

    signal (12, T) in `LEADS` order, any unit. About 0 where one gain holds for all limb leads; infinite where nothing
    can be said.
    """
    one, two, three = signal[_I], signal[_II], signal[_III]
    residuals = (
        one + three - two,
        signal[_AVR] + (one + two) / 2,
        signal[_AVL] - (one - three) / 2,
        signal[_AVF] - (two + three) / 2,
    )
    largest = max(_rms(one), _rms(two), _rms(three))
    worst = max(_rms(residual) for residual in residuals)
    return worst / largest if largest > 0 and not np.isnan(worst) else float("inf")
