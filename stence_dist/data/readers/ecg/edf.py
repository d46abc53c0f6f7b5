"""ECGs in EDF and EDF+ (Kemp 1992, Kemp & Olivan 2003, https://www.edfplus.info/specs) and in their 24-bit form, BDF.

Sizes are checked here on the header; the samples come from pyedflib (extra `edf`). The header's patient and recording
fields are skipped unread.
"""

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.ecg.waveform import Device, Waveform, check_size, millivolts_per_unit
from stence_dist.data.readers.limb_leads import canonical_lead
from stence_dist.data.readers.record import ReaderError

_EDF_MAGIC, _BDF_MAGIC = b"0       ", b"\xffBIOSEMI"
_FIXED = 256  # bytes of the header, and again for each signal
# The columns of the signals' part of the header: name and width. A range is two columns, of its ends.
_COLUMNS = {
    "label": 16,
    "transducer": 80,
    "dimension": 8,
    "physical_range": 16,
    "digital_range": 16,
    "prefiltering": 80,
    "samples": 8,
    "reserved": 32,
}
_ANNOTATIONS = {b"EDF+C": "EDF Annotations", b"BDF+C": "BDF Annotations"}
_FILTER = r"\b{}\s*[:=]?\s*(\d+(?:\.\d+)?)\s*Hz"


@dataclass(frozen=True)
class _Header:
    """What is needed of an EDF header; every list has one entry per signal."""

    records: int
    seconds: float  # per record
    labels: list[str]
    dimensions: list[str]
    filters: list[str]
    samples: list[int]  # per record
    annotations: str | None  # the label of signals that hold text instead

    def place(self, signal: int) -> int:
        """The number of a signal as pyedflib counts: without the annotations."""
        return signal - sum(label == self.annotations for label in self.labels[:signal])


def is_edf(path: Path, start: bytes) -> bool:
    """Whether a file is EDF or BDF, by its first bytes and the header's length."""
    if not start.startswith((_EDF_MAGIC, _BDF_MAGIC)) or len(start) < _FIXED:
        return False
    stated, signals = start[184:192].strip(), start[252:256].strip()
    return stated.isdigit() and signals.isdigit() and int(stated) == _FIXED * (int(signals) + 1)


def read_edf(path: Path) -> Waveform:
    """The leads of an EDF or BDF file. Raises ReaderError."""
    header = _read_header(path)
    leads: dict[str, int] = {}
    for number, label in enumerate(header.labels):
        lead = _lead(label)
        if lead in leads:
            raise ReaderError(f"lead {lead} is there twice in the EDF file; each lead is expected once.")
        if lead is not None:
            leads[lead] = number
    rates = {header.samples[number] / header.seconds for number in leads.values()}
    if len(rates) > 1:
        raise ReaderError(f"the EDF leads have {len(rates)} different sampling rates; expected one for all.")
    if not leads:
        return Waveform(np.zeros((0, 1)), (), 1.0)  # whoever chooses leads says which are missing
    length = header.records * header.samples[next(iter(leads.values()))]
    check_size(len(leads), length)
    factors = np.array([millivolts_per_unit(header.dimensions[number]) for number in leads.values()])[:, None]
    signal = _read_signals(path, [header.place(number) for number in leads.values()], length) * factors
    filters = [header.filters[number] for number in leads.values()]
    device = Device(None, _frequency(filters, "HP"), _frequency(filters, "LP"))
    return Waveform(signal, tuple(leads), rates.pop(), device)


def _lead(label: str) -> str | None:
    """The lead of `LEADS` that a label means: "ECG II", "EKG V1", "II"."""
    return canonical_lead(re.sub(r"^(ECG|EKG)[ _-]*", "", label.strip(), flags=re.IGNORECASE))


def _text(cell: bytes) -> str:
    """ASCII by the standard; a micro sign comes in either encoding."""
    try:
        return cell.decode("utf-8").strip()
    except UnicodeDecodeError:
        return cell.decode("latin-1").strip()


def _read_header(path: Path) -> _Header:
    """The header, its promises compared with the file's size. Raises ReaderError."""
    with open(path, "rb") as file:
        fixed = file.read(_FIXED)
        try:
            count = int(fixed[252:256])
        except ValueError:
            raise ReaderError("the EDF header is damaged: it does not state how many signals there are.") from None
        columns = file.read(_FIXED * max(count, 0))
    cells: dict[str, list[str]] = {}
    start = 0
    for name, width in _COLUMNS.items():
        stop = start + width * count
        cells[name] = [_text(columns[place : place + width]) for place in range(start, stop, width)]
        start = stop
    try:
        header = _Header(
            int(fixed[236:244]),
            float(fixed[244:252]),
            cells["label"],
            cells["dimension"],
            cells["prefiltering"],
            [int(samples) for samples in cells["samples"]],
            _ANNOTATIONS.get(fixed[192:197]),
        )
    except ValueError:
        raise ReaderError("the EDF header is damaged: a number in it is none.") from None
    if min(header.samples, default=0) < 1 or not 0 < header.seconds < float("inf"):
        raise ReaderError("the EDF header states no signals, no samples or no duration.")
    if fixed[192:197] in (b"EDF+D", b"BDF+D"):
        raise ReaderError(
            "the EDF file has gaps (EDF+D), which are not read; export it as EDF+C, or the part you need."
        )
    if header.records < 1:
        raise ReaderError("the EDF header does not state how many records there are; the recording was not finished.")
    sample = 3 if fixed.startswith(_BDF_MAGIC) else 2
    needed = len(fixed) + len(columns) + header.records * sum(header.samples) * sample
    if path.stat().st_size < needed:
        raise ReaderError(f"the EDF file is truncated: {path.stat().st_size} bytes, {needed} expected.")
    return header


def _read_signals(path: Path, signals: list[int], length: int) -> NDArray[np.float64]:
    """The signals (n, length) by number, in the units that the file states."""
    try:
        pyedflib: Any = import_module("pyedflib")
    except ImportError:
        raise ReaderError('EDF files need pyedflib: pip install "stence_dist[edf]".') from None
    try:
        reader = pyedflib.EdfReader(str(path), pyedflib.DO_NOT_READ_ANNOTATIONS)
    except Exception as error:  # its messages hold the path
        raise ReaderError(
            f"pyedflib refuses the EDF file ({type(error).__name__}): its header breaks the standard, e.g. by"
            " characters beyond ASCII or an empty range. Export it again, or convert it to WFDB."
        ) from None
    try:
        signal: NDArray[np.float64] = np.stack([reader.readSignal(number) for number in signals])
    except Exception as error:
        raise ReaderError(f"the EDF samples cannot be read ({type(error).__name__}); is the file damaged?") from None
    finally:
        reader.close()
    if signal.shape != (len(signals), length):
        raise ReaderError(f"the EDF signal has shape {signal.shape}, expected {(len(signals), length)}.")
    return signal


def _frequency(filters: list[str], kind: str) -> float | None:
    """The hertz after `kind` (HP, LP) in the filters' descriptions, where all leads state the same."""
    stated = {match and float(match[1]) for text in filters for match in [re.search(_FILTER.format(kind), text)]}
    return (stated.pop() or None) if len(stated) == 1 else None
