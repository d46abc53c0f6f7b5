"""What a bare array of numbers does not say of itself: rate, unit and lead order, declared beside it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.ecg.waveform import Waveform, millivolts_per_unit
from stence_dist.data.readers.record import ReaderError

FIELDS = ("sampling_rate", "unit", "leads")
_AXES = ("leads_samples", "samples_leads")
_LARGEST_SIDECAR = 1_000_000  # bytes


@dataclass(frozen=True)
class Declared:
    """Hz, unit, lead names in order, and which axis of a recording comes first."""

    sampling_rate: float
    unit: str
    leads: tuple[str, ...]
    axes: str = "leads_samples"

    @classmethod
    def parse(cls, fields: Mapping[str, Any], source: str) -> "Declared":
        """From the entries of `source`, as messages call it. Raises ReaderError."""
        missing = [name for name in FIELDS if name not in fields]
        if missing:
            raise ReaderError(f"{source} lacks {', '.join(missing)}; expected {', '.join(FIELDS)}.")
        try:
            declared = cls(
                float(fields["sampling_rate"]),
                str(fields["unit"]),
                tuple(str(lead) for lead in fields["leads"]),
                str(fields.get("axes", "leads_samples")),
            )
        except (TypeError, ValueError):
            raise ReaderError("sampling_rate must be a number, unit a text, leads a list of texts.") from None
        if declared.axes not in _AXES:
            raise ReaderError(f"axes is not known; expected {' or '.join(_AXES)}.")
        return declared

    def waveform(self, recording: NDArray[Any]) -> Waveform:
        """One recording (leads, samples), or (samples, leads) where the axes say so. Raises ReaderError."""
        if recording.dtype.kind not in "iuf":
            raise ReaderError(f"the signal is of type {recording.dtype.name}; expected integers or floats.")
        count = len(self.leads)
        signal = recording.T if self.axes == "samples_leads" else recording
        if signal.ndim != 2 or signal.shape[0] != count:
            turned = signal.ndim == 2 and signal.shape[1] == count
            other = _AXES[1 - _AXES.index(self.axes)]
            advice = f' Transpose it, or declare "axes": "{other}".' if turned else ""
            raise ReaderError(f"the signal has shape {signal.shape}; expected ({count} leads, samples).{advice}")
        millivolts = signal.astype(np.float64) * millivolts_per_unit(self.unit)
        return Waveform(millivolts, self.leads, self.sampling_rate, source="declared")


def read_sidecar(path: Path) -> dict[str, Any]:
    """The entries of the .json beside an array file. Raises ReaderError."""
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        raise ReaderError(f"the file has no sidecar of the same name in .json with {', '.join(FIELDS)}.")
    try:
        if sidecar.stat().st_size > _LARGEST_SIDECAR:
            raise ValueError
        declared = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError:
        raise ReaderError("the sidecar .json is not valid JSON.") from None
    if not isinstance(declared, dict):
        raise ReaderError(f"the sidecar .json holds no object; expected {', '.join(FIELDS)}.")
    return declared


class UnnumberedError(ReaderError):
    """A file of several recordings was named, and none of them."""

    def __init__(self, count: int) -> None:
        super().__init__(f"the file holds {count} recordings; name one, e.g. FILE#0 to FILE#{count - 1}.")
        self.count = count

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.count,)


def entry_number(entry: str | None, count: int) -> int:
    """Which of `count` recordings `entry` (the text after `#`) names, from 0; 0 of one.

    Raises UnnumberedError where it names none of several, ReaderError where it names one that is not there.
    """
    if entry is None:
        if count == 1:
            return 0
        raise UnnumberedError(count)
    if not entry.isdecimal() or int(entry) >= count:
        raise ReaderError(f"recording #{entry[:20]} is not there; the file holds #0 to #{count - 1}.")
    return int(entry)
