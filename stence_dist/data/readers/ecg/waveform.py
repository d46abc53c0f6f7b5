"""What every ECG reader returns, and the one way from there to a stored record."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.limb_leads import complete_limb_leads, einthoven_residual, lead_positions, relation_error
from stence_dist.data.readers.record import MAX_VALUES, EcgRecord, ReaderError, quantize
from stence_dist.ecg import LEADS

# Relative residuals of the limb lead relations: rounding of one gain stays far below the first, different gains far
# above the second.
HOLDS = 0.02
BROKEN = 0.05
_UNITS = {
    "v": 1e3,
    "volt": 1e3,
    "volts": 1e3,
    "mv": 1.0,
    "millivolt": 1.0,
    "millivolts": 1.0,
    "uv": 1e-3,
    "\u00b5v": 1e-3,  # micro sign
    "\u03bcv": 1e-3,  # Greek mu
    "microvolt": 1e-3,
    "microvolts": 1e-3,
    "nv": 1e-6,
}
# A product has a number, and of long words its makers' alone. People and rooms, who also stand there, have others; six
# digits are a serial number.
_MODEL = re.compile(r"(?=.*\d)(?!.*\d{6})[\w .+/-]{1,40}", re.ASCII)
_MAKERS_WORD = re.compile(
    r"allyn|burdick|cardiac|cardimax|cardiofax|cardioperfect|cardiosoft|cardiovit|denshi|express|"
    r"fukuda|heartstart|intellivue|kohden|lifepak|marquette|mortara|nihon|pagewriter|philips|physio|"
    r"schiller|spacelabs|touch|welch"
)


def millivolts_per_unit(unit: str) -> float:
    """Millivolts in one `unit` (V, mV, uV, nV and their spellings). Raises ReaderError for any other unit."""
    try:
        return _UNITS[unit.strip().casefold()]
    except KeyError:
        raise ReaderError(
            f"the unit is {'not known' if unit.strip() else 'not stated'}; expected V, mV, uV or nV. Correct the "
            "file's header or what is declared beside it."
        ) from None


def check_size(leads: int, samples: int) -> None:
    """Raise ReaderError where a header promises more values than any ECG has; called before anything is allocated."""
    if leads < 1 or samples < 1 or leads * samples > MAX_VALUES:
        raise ReaderError(f"the header states {leads} leads x {samples} samples; at most {MAX_VALUES} values are read.")


@dataclass(frozen=True)
class Device:
    """What a header says of the recorder; nothing else of a header leaves a reader. None = not stated.

    Hz for the pass band's ends. A model's name passes only where it cannot be free text.
    """

    model: str | None = None
    high_pass: float | None = None
    low_pass: float | None = None

    def flags(self) -> dict[str, Any]:
        """The stated fields under the names that shards use."""
        model = self.model.strip() if self.model else ""
        words = re.findall(r"[a-z]{5,}", model.casefold())
        stated = {
            "device": model if _MODEL.fullmatch(model) and all(map(_MAKERS_WORD.fullmatch, words)) else None,
            "high_pass_hz": self.high_pass,
            "low_pass_hz": self.low_pass,
        }
        return {name: value for name, value in stated.items() if value is not None}


@dataclass(frozen=True)
class Waveform:
    """One recording as its file has it: signal (n, T) float64 in mV, NaN = missing, rows named as in the file.

    `raw` (n, T) are the values before per-lead gains, scaled as carts that store 1 uV per unit do; only where a format
    has such gains. `source` says where the scale comes from.
    """

    signal: NDArray[np.float64]
    leads: tuple[str | None, ...]
    sampling_rate: float
    device: Device = Device()
    source: str = "header"
    raw: NDArray[np.float64] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


def to_record(waveform: Waveform, scale: str = "auto") -> EcgRecord:
    """The 12 leads of `waveform`, limb leads derived where they are missing, quantized as shards store them.

    `scale`: "header" takes the file's gains, "raw" the values before them, "auto" the header's unless the limb leads
    contradict each other with them and agree on the raw values. What was done stands in the record's flags:
    `scale_source`, `derived_leads`, `einthoven_residual` (mV), `header_relation_error`, `limb_leads_break`.
    Raises ReaderError.
    """
    if waveform.signal.ndim != 2 or waveform.signal.shape[0] != len(waveform.leads):
        raise ReaderError(f"signal of shape {waveform.signal.shape} for {len(waveform.leads)} leads.")
    positions = lead_positions(waveform.leads)
    signal = complete_limb_leads(waveform.signal, positions)
    of_header = relation_error(signal)
    source = waveform.source
    if waveform.raw is not None and scale != "header":
        raw = complete_limb_leads(waveform.raw, positions)
        if scale == "raw" or (of_header > BROKEN and relation_error(raw) < HOLDS):
            signal, source = raw, "raw"
    flags = {
        **waveform.notes,
        **waveform.device.flags(),
        "scale_source": source,
        "derived_leads": [lead for lead in LEADS if lead not in positions],
        "einthoven_residual": einthoven_residual(signal),
        "header_relation_error": of_header if np.isfinite(of_header) else None,
        "limb_leads_break": relation_error(signal) > BROKEN,
    }
    return quantize(signal, LEADS, waveform.sampling_rate, flags)
