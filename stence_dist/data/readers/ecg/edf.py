"""ECGs in EDF and EDF+ (Kemp 1992, Kemp & Olivan 2003, https://www.edfplus.info/specs) and in their 24-bit form, BDF.

The header's patient and recording fields are skipped unread. What they hold, and letters beyond ASCII anywhere, refuse
nothing: many carts write both as the standard forbids, and the samples do not depend on them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.ecg.waveform import Device, Waveform, check_size, millivolts_per_unit
from stence_dist.data.readers.limb_leads import canonical_lead
from stence_dist.data.readers.record import MISSING, ReaderError

_EDF_MAGIC, _BDF_MAGIC = b"0       ", b"\xffBIOSEMI"
_FIXED = 256  # bytes of the header, and again for each signal
# The columns of the signals' part of the header: name and width.
_COLUMNS = {
    "label": 16,
    "transducer": 80,
    "dimension": 8,
    "physical_minimum": 8,
    "physical_maximum": 8,
    "digital_minimum": 8,
    "digital_maximum": 8,
    "prefiltering": 80,
    "samples": 8,
    "reserved": 32,
}
_SHORTEST_PADDING = 0.05  # s in which all leads stand still
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
    physical: list[tuple[str, str]]  # a range in the signal's unit, as text: other signals than leads may have none
    digital: list[tuple[str, str]]  # the same in stored values
    bytes_per_sample: int

    @property
    def length(self) -> int:
        """Bytes before the first record."""
        return _FIXED * (1 + len(self.labels))


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
        lead = canonical_lead(label)
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
    rate = rates.pop()
    digital = _without_padding(_read_digital(path, header, list(leads.values())), rate)
    signal = np.stack([_millivolts(row, header, number) for row, number in zip(digital, leads.values(), strict=True)])
    filters = [header.filters[number] for number in leads.values()]
    device = Device(None, _frequency(filters, "HP"), _frequency(filters, "LP"))
    return Waveform(signal, tuple(leads), rate, device)


def _text(cell: bytes) -> str:
    """ASCII padded with spaces by the standard; a micro sign comes in either encoding, and some pad with zeros."""
    try:
        return cell.decode("utf-8").strip(" \0")
    except UnicodeDecodeError:
        return cell.decode("latin-1").strip(" \0")


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
            list(zip(cells["physical_minimum"], cells["physical_maximum"], strict=True)),
            list(zip(cells["digital_minimum"], cells["digital_maximum"], strict=True)),
            3 if fixed.startswith(_BDF_MAGIC) else 2,
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
    needed = header.length + header.records * sum(header.samples) * header.bytes_per_sample
    if path.stat().st_size < needed:
        raise ReaderError(f"the EDF file is truncated: {path.stat().st_size} bytes, {needed} expected.")
    return header


def _read_digital(path: Path, header: _Header, signals: list[int]) -> NDArray[np.int32]:
    """Stored values (n, T) of signals of one rate, by number."""
    shape = (header.records, sum(header.samples), header.bytes_per_sample)
    stored = np.memmap(path, np.uint8, "r", header.length, shape)  # signals of high rates may lie between the leads
    rows = []
    for number in signals:
        start = sum(header.samples[:number])
        piece = np.zeros((header.records, header.samples[number], 4), np.uint8)
        piece[..., 4 - header.bytes_per_sample :] = stored[:, start : start + header.samples[number]]
        rows.append(piece.view("<i4").reshape(-1) >> 8 * (4 - header.bytes_per_sample))  # keeps the sign
    return np.stack(rows)


def _without_padding(digital: NDArray[np.int32], rate: float) -> NDArray[np.int32]:
    """Stored values (n, T) without what a writer filled the last record with, where the recording ended within it.

    wfdb fills with the lowest integer, and adds a whole record of it; others with a zero or the last value. No lead of
    a living patient stands still as long as all of them do there.
    """
    moving = np.flatnonzero((digital != digital[:, -1:]).any(axis=0))
    still = digital.shape[1] - 1 - moving.max(initial=-1)
    is_padding = still >= _SHORTEST_PADDING * rate or bool((digital[:, -1] == MISSING).all())
    return digital[:, :-still] if moving.size and is_padding else digital


def _millivolts(stored: NDArray[np.int32], header: _Header, number: int) -> NDArray[np.float64]:
    """One lead's stored values (T,) in mV, by the linear map between its two ranges; NaN = missing."""
    try:
        lowest, highest, low, high = map(float, (*header.digital[number], *header.physical[number]))
    except ValueError:
        raise ReaderError("the EDF header gives a lead a range that is no number; expected two.") from None
    if not (lowest < highest and low != high and np.isfinite([lowest, highest, low, high]).all()):
        raise ReaderError("the EDF header gives a lead an empty range; its values mean no voltage.")
    physical = low + (stored.astype(np.float64) - lowest) * ((high - low) / (highest - lowest))
    if header.bytes_per_sample == 2:
        physical[stored == MISSING] = np.nan
    return physical * millivolts_per_unit(header.dimensions[number])


def _frequency(filters: list[str], kind: str) -> float | None:
    """The hertz after `kind` (HP, LP) in the filters' descriptions, where all leads state the same."""
    stated = {match and float(match[1]) for text in filters for match in [re.search(_FILTER.format(kind), text)]}
    return (stated.pop() or None) if len(stated) == 1 else None
