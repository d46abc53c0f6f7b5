"""Leads by name, and what holds between the limb leads of every correctly scaled 12-lead ECG."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.record import ReaderError
from stence_dist.ecg import LEADS

LIMB_LEADS = LEADS[:6]
# Each limb lead as (share of I, share of II): Einthoven's law and Goldberger's definitions.
_OF_I_AND_II = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]])
_CODED_NAMES = {lead.casefold(): lead for lead in LEADS}
_CODED_NAMES |= {f"c{number}": f"V{number}" for number in range(1, 7)}  # IEC 60601-2-25
# As people write them. ISO 11073's code of a dI is another: that of a lead I computed from other electrodes.
_LEAD_NAMES = _CODED_NAMES | {"di": "I", "dii": "II", "diii": "III"}
_CODE_PREFIX = re.compile(r"[a-z]+_ecg_lead_")  # MDC, or a vendor
_PREFIX = re.compile(r"(?:e[ck]g[ _-]*)?(?:lead[ _-]*)?")


def canonical_lead(name: str | None) -> str | None:
    """The lead of `LEADS` that `name` means, else None.

    Any case; `Lead II`, `ECG Lead II`, `EKG-II`, `DII`, `MDC_ECG_LEAD_II`, `C1` for V1.
    """
    text = (name or "").strip().casefold()  # a WFDB signal need not have a description
    if code := _CODE_PREFIX.match(text):
        return _CODED_NAMES.get(text[code.end() :])
    return _LEAD_NAMES.get(_PREFIX.sub("", text, count=1))


def lead_positions(names: Sequence[str | None]) -> dict[str, int]:
    """Where in `names` each lead of `LEADS` is; others (Frank, Nehb) are dropped.

    Raises ReaderError for a lead that is there twice and for missing leads that the others do not determine.
    """
    positions: dict[str, int] = {}
    for position, name in enumerate(names):
        lead = canonical_lead(name)
        if lead is None:
            continue
        if lead in positions:
            raise ReaderError(f"lead {lead} is there twice; each lead is expected once.")
        positions[lead] = position
    missing = [lead for lead in LEADS if lead not in positions]
    chest = [lead for lead in missing if lead not in LIMB_LEADS]
    limb = sum(lead in positions for lead in LIMB_LEADS)
    if chest or limb < 2:
        found = " ".join(lead for lead in LEADS if lead in positions) or "none by name"
        advice = f"{' '.join(chest)} cannot be derived" if chest else "two limb leads give the other four"
        raise ReaderError(f"lead {' '.join(missing)} missing (found {found}); 12 leads needed, {advice}.")
    return positions


def complete_limb_leads(signal: NDArray[np.float64], positions: dict[str, int]) -> NDArray[np.float64]:
    """(12, T) in `LEADS` order from signal (n, T): missing limb leads from those that are there.

    Where I and II are there they alone are used; else the two values of I and II that fit all present limb leads best.
    """
    known = [lead for lead in LIMB_LEADS if lead in positions]
    basis = ["I", "II"] if {"I", "II"} <= set(known) else known
    shares = _OF_I_AND_II[[LIMB_LEADS.index(lead) for lead in basis]]
    one_and_two = np.linalg.pinv(shares) @ signal[[positions[lead] for lead in basis]]
    return np.stack(
        [
            signal[positions[lead]] if lead in positions else _OF_I_AND_II[LIMB_LEADS.index(lead)] @ one_and_two
            for lead in LEADS
        ]
    )


def _rms(values: NDArray[np.float64]) -> float:
    """Root mean square about the median of the samples that are there; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(np.sqrt(np.mean((known - np.median(known)) ** 2))) if known.size else float("nan")


def einthoven_residual(signal: NDArray[np.float64]) -> float | None:
    """RMS of I + III - II, in the signal's unit, offsets aside. signal (12, T) in `LEADS` order; None = unknown."""
    residual = _rms(signal[0] + signal[2] - signal[1])
    return None if np.isnan(residual) else residual


def relation_error(signal: NDArray[np.float64]) -> float:
    """Largest RMS residual of Einthoven's and Goldberger's relations over the largest RMS of I, II and III.

    signal (12, T) in `LEADS` order, any unit. About 0 where one gain holds for all limb leads; infinite where nothing
    can be said.
    """
    one, two, three = signal[:3]
    expected = _OF_I_AND_II[2:] @ signal[:2]
    expected[2] = (one - three) / 2  # aVL from III as well, as Goldberger's electrodes have it
    expected[3] = (two + three) / 2
    largest = max(_rms(one), _rms(two), _rms(three))
    worst = max(_rms(found - wanted) for found, wanted in zip(signal[2:6], expected, strict=True))
    return worst / largest if largest > 0 and not np.isnan(worst) else float("inf")
