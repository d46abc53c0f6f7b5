"""ECGs in WFDB: a header `.hea` and its signal files.

What most public sets hold, one segment in format 16 with or without a MATLAB header (`16+24`), is read here; everything
else goes through the wfdb package, which the tests hold this reader to. https://physionet.org/physiotools/wag/header-5.htm
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.ecg.waveform import Waveform, check_size, millivolts_per_unit
from stence_dist.data.readers.limb_leads import canonical_lead
from stence_dist.data.readers.record import ReaderError

# ADC units per millivolt of `wfdb_scale=raw`: what carts that store 1 uV per unit use, LUDB's Schiller among them.
RAW_UNITS_PER_MILLIVOLT = 1000.0
# Bits per sample, or a lower bound; the other formats are compressed.
_BITS = {"8": 8, "16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12, "310": 10, "311": 10}
_LARGEST_HEADER = 1_000_000  # bytes
_DEFAULT_GAIN = 200.0  # where a header states none, or 0
_INVALID = -32768  # of format 16
_MATLAB_HEADER = 24  # bytes before the samples in a MATLAB level 4 file of one matrix called `val`
_MATLAB_INT16 = 30  # its first field: little endian, columns of 16-bit integers
_LONGEST_GAPS = 10  # frames of a record of several segments, per frame that is stored
_RECORD_LINE = re.compile(r"[^\s/]+ (?P<signals>\d{1,6}) (?P<rate>\d+\.?\d*) (?P<samples>\d{1,12})(?: \S+)*")
_SIGNAL_LINE = re.compile(
    r"(?P<file>\S+) 16(?:x1)?(?:\+(?P<offset>\d{1,12}))? (?P<gain>\d+\.?\d*(?:e[+-]?\d+)?)(?:\((?P<baseline>-?\d+)\))?"
    r"(?:/(?P<unit>\S+))? \d+ (?P<zero>-?\d+) -?\d+ -?\d+ 0 (?P<name>\S.*)"
)


@dataclass(frozen=True)
class _Signals:
    """Digital values (n, T), NaN where invalid, and how each row becomes millivolts: (value - baseline) / gain."""

    names: list[str | None]
    units: list[str]
    sampling_rate: float
    digital: NDArray[np.float64]
    gains: NDArray[np.float64]
    baselines: NDArray[np.float64]

    def waveform(self) -> Waveform:
        factors = np.array([millivolts_per_unit(unit) for unit in self.units])[:, None]
        physical = (self.digital - self.baselines[:, None]) / self.gains[:, None] * factors
        raw = self.digital / RAW_UNITS_PER_MILLIVOLT
        return Waveform(physical, tuple(self.names), self.sampling_rate, raw=raw)


def header_of(path: Path) -> Path:
    """The header file of a record that is named with or without `.hea`."""
    return path if path.suffix == ".hea" else path.with_name(path.name + ".hea")


def parts_of(header: Path) -> set[Path]:
    """The files that a header names: its signals, or the headers of its segments. Raises OSError and ValueError."""
    with open(header, "rb") as file:
        lines = file.read(_LARGEST_HEADER).decode("latin-1").splitlines()
    names = {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}
    segments = any(re.match(r"\S+/\d+ ", line) for line in lines[:50])
    return {header.with_name(f"{name}.hea" if segments else name) for name in names if "/" not in name} - {header}


def is_wfdb(path: Path, start: bytes) -> bool:
    """Whether `path` names a WFDB record: its header, whatever the record's own file, if there is one, holds."""
    return header_of(path).is_file()


def read_wfdb(path: Path) -> Waveform:
    """The leads of a WFDB record of one or several segments, by its gains and before them. Raises ReaderError."""
    header = header_of(path)
    signals = _read_plain(header)
    if signals is not None:
        return signals.waveform()
    import wfdb  # a second that few records need

    record = _parse(header)
    if isinstance(record, wfdb.MultiRecord):
        return _read_segments(header, record)
    return _read_by_package(header, record)


def _text_lines(header: Path) -> list[str]:
    """The header's lines without comments. UTF-8, or Latin-1 where it is none. Raises ReaderError for a huge one."""
    if header.stat().st_size > _LARGEST_HEADER:
        raise ReaderError(f"the WFDB header has {header.stat().st_size} bytes; expected a small text file.")
    content = header.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _signal_file(header: Path, name: str) -> Path:
    """A signal file beside its header. Raises ReaderError for a name that leads elsewhere, or to nothing."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or ":" in name:
        raise ReaderError("the WFDB header names a signal file outside its own folder.")
    file = header.with_name(name)
    if not file.is_file():
        raise ReaderError(f"the WFDB signal file {_kind(name)} is missing; it belongs beside the header.")
    return file


def _check_length(file: Path, needed: int) -> None:
    if file.stat().st_size < needed:
        raise ReaderError(
            f"the WFDB signal file {_kind(file.name)} is truncated: {file.stat().st_size} bytes, {needed} expected."
        )


def _kind(name: str) -> str:
    """A file's suffix: its whole name may identify a patient, and so may what only looks like a suffix."""
    suffix = Path(name).suffix
    return "*" + suffix if suffix in (".dat", ".mat") else "(name withheld)"


def _read_plain(header: Path) -> _Signals | None:
    """The leads of a record of one segment that lie in one file in format 16; None for any other record."""
    lines = _text_lines(header)
    record = _RECORD_LINE.fullmatch(lines[0]) if lines else None
    signals = [match for line in lines[1:] if (match := _SIGNAL_LINE.fullmatch(line))]
    if record is None or len(signals) != int(record["signals"]) or len(signals) != len(lines) - 1:
        return None
    chosen = [signal for signal in signals if canonical_lead(signal["name"])]
    samples = int(record["samples"])
    if len({signal["file"] for signal in chosen}) != 1 or samples == 0:
        return None
    there = [signal for signal in signals if signal["file"] == chosen[0]["file"]]
    offset = int(there[0]["offset"] or 0)
    check_size(len(there), samples)
    file = _signal_file(header, chosen[0]["file"])
    _check_length(file, offset + 2 * len(there) * samples)
    if offset == _MATLAB_HEADER and file.suffix == ".mat":
        _check_matlab(file)
    frames = np.fromfile(file, dtype="<i2", count=len(there) * samples, offset=offset).reshape(samples, len(there))
    values = frames.T[[there.index(signal) for signal in chosen]]
    return _Signals(
        [signal["name"] for signal in chosen],
        [signal["unit"] or "mV" for signal in chosen],
        float(record["rate"]),
        np.where(values == _INVALID, np.nan, values.astype(np.float64)),
        np.array([float(signal["gain"]) or _DEFAULT_GAIN for signal in chosen]),
        np.array([float(signal["baseline"] or signal["zero"]) for signal in chosen]),
    )


def _check_matlab(file: Path) -> None:
    """Refuse a MATLAB file of another kind than its WFDB header, which only counts bytes, takes it for."""
    with open(file, "rb") as stored:
        if int.from_bytes(stored.read(4), "little") != _MATLAB_INT16:
            raise ReaderError(
                "the WFDB signal file *.mat is no MATLAB level 4 file of 16-bit integers, which its header takes it "
                "for; write it with `save -v4`, or as a plain .dat."
            )


def _parse(header: Path) -> Any:
    """What the wfdb package makes of a header: a Record or a MultiRecord."""
    import wfdb

    line = _text_lines(header)[:1]
    if line and len(stated := line[0].split()) > 2 and not re.match(r"[\d.]", stated[2]):
        # The package would read on with its default of 250 Hz.
        raise ReaderError("the WFDB header's sampling rate is no number above 0; expected hertz.")
    try:
        return wfdb.rdheader(_name(header))
    except Exception as error:  # the parser fails on malformed text in many ways
        raise ReaderError(
            f"the WFDB header cannot be parsed ({type(error).__name__}); expected lines as header(5) describes them, "
            "with a date only after a time."
        ) from None


def _name(header: Path) -> str:
    """A record as the wfdb package names it."""
    return str(header.absolute())[: -len(".hea")]


def _read_by_package(header: Path, record: Any) -> Waveform:
    """The leads of a record of one segment in any format."""
    import wfdb

    chosen = [number for number, name in enumerate(record.sig_name or ()) if canonical_lead(name)]
    if not chosen:
        return Waveform(np.zeros((0, 1)), (), float(record.fs))  # whoever chooses leads says which are missing
    _check_files(header, record)
    rates = {record.samps_per_frame[number] for number in chosen}
    if len(rates) > 1:
        raise ReaderError("the WFDB leads have different sampling rates; expected one for all.")
    per_frame = rates.pop()
    try:
        read = wfdb.rdrecord(_name(header), physical=False, channels=chosen, smooth_frames=per_frame == 1)
        single = per_frame == 1
        digital = np.asarray(read.d_signal).T if single else np.stack(read.e_d_signal)
        physical = np.asarray(read.dac(), dtype=np.float64).T if single else np.stack(read.dac(expanded=True))
    except Exception as error:  # reading damaged signal files fails in many ways
        raise ReaderError(f"the WFDB signal file cannot be read ({type(error).__name__}); is it damaged?") from None
    names = [record.sig_name[number] for number in chosen]
    expected = (len(chosen), record.sig_len * per_frame)
    if read.sig_name != names or digital.shape != physical.shape or digital.shape != expected:
        raise ReaderError(f"the WFDB signal has shape {digital.shape}, expected {expected}; is the header damaged?")
    units = _units(header, record)
    factors = np.array([millivolts_per_unit(units[number]) for number in chosen])[:, None]
    raw = np.where(np.isnan(physical), np.nan, digital.astype(np.float64)) / RAW_UNITS_PER_MILLIVOLT
    return Waveform(physical * factors, tuple(names), float(record.fs) * per_frame, raw=raw)


def _read_segments(header: Path, record: Any) -> Waveform:
    """A record of several segments, joined by lead; gaps, and leads that a segment lacks, are missing samples."""
    places = list(zip(record.seg_name, record.seg_len, strict=True))
    frames = sum(record.seg_len)
    if record.sig_len not in (None, frames):
        raise ReaderError(f"the WFDB header states {record.sig_len} samples, its segments {frames}; is it damaged?")
    check_size(record.n_sig, frames)
    # A segment of no samples is the layout of those that follow, which name their signals themselves.
    names = [name for name, length in places if name != "~" and length]
    stored = sum(length for name, length in places if name != "~")
    # Repeated segments and gaps cost a line of text each, and could ask for any amount of memory.
    if len(set(names)) != len(names) or frames > _LONGEST_GAPS * stored:
        raise ReaderError("the WFDB record repeats a segment, or is next to nothing but gaps; name one segment of it.")
    parts = {name: _read_segment(header, name) for name in names}
    rates = {part.sampling_rate for part in parts.values() if part.leads} or {float(record.fs)}
    if len(rates) > 1 or record.fs <= 0:
        raise ReaderError("the WFDB segments have different sampling rates, or none; expected one for all.")
    rate = rates.pop()
    per_frame = round(rate / record.fs)
    for name, length in places:
        if name in parts and parts[name].leads and parts[name].signal.shape[1] != length * per_frame:
            raise ReaderError("a segment's WFDB header states another length than the record's; is one damaged?")
    leads = list(dict.fromkeys(lead for part in parts.values() for lead in part.leads))
    check_size(max(len(leads), 1), frames * per_frame)
    signal = np.full((len(leads), frames * per_frame), np.nan)
    raw = signal.copy()
    start = 0
    for name, length in places:
        stop = start + length * per_frame
        part = parts.get(name)
        if part is not None and part.leads:
            rows = [leads.index(lead) for lead in part.leads]
            signal[rows, start:stop] = part.signal
            raw[rows, start:stop] = part.raw
        start = stop
    return Waveform(signal, tuple(leads), rate, raw=raw)


def _read_segment(header: Path, name: str) -> Waveform:
    """One segment of the record of `header`, its leads by the names of `LEADS`."""
    import wfdb

    if not re.fullmatch(r"[\w-]+", name):
        raise ReaderError("the WFDB header names a segment outside its own folder.")
    segment = header.with_name(f"{name}.hea")
    if not segment.is_file():
        raise ReaderError("a segment's WFDB header is missing; it belongs beside the record's.")
    signals = _read_plain(segment)
    if signals is not None:
        waveform = signals.waveform()
    else:
        record = _parse(segment)
        if isinstance(record, wfdb.MultiRecord):
            raise ReaderError("a segment of the WFDB record has segments of its own; join them with the wfdb package.")
        waveform = _read_by_package(segment, record)
    leads = tuple(canonical_lead(lead) for lead in waveform.leads)
    if len(set(leads)) != len(leads):
        raise ReaderError("a segment of the WFDB record names a lead twice; each lead is expected once.")
    return replace(waveform, leads=leads)


def _check_files(header: Path, record: Any) -> None:
    """Compare a header's promises with its files, before anything is allocated."""
    if not record.n_sig or not record.file_name:
        raise ReaderError("the WFDB header names no signal; expected 12 leads.")
    if not record.sig_len:
        raise ReaderError("the WFDB header states no length; expected the number of samples.")
    check_size(sum(record.samps_per_frame), record.sig_len)
    wanted = {file for file, name in zip(record.file_name, record.sig_name, strict=True) if canonical_lead(name)}
    for name in sorted(wanted):
        signals = [number for number, other in enumerate(record.file_name) if other == name]
        if signals != list(range(signals[0], signals[-1] + 1)):  # the wfdb package would take another signal's samples
            raise ReaderError("the WFDB header lists the signals of one file apart; expected them one after the other.")
        file = _signal_file(header, name)
        bits = _BITS.get(record.fmt[signals[0]])
        if bits is not None:
            frame = sum(record.samps_per_frame[number] for number in signals)
            _check_length(file, (record.byte_offset[signals[0]] or 0) + (record.sig_len * frame * bits + 7) // 8)


def _units(header: Path, record: Any) -> list[str]:
    """The unit of every signal. wfdb drops what is not ASCII, so that it reads µV as V: those headers are read here."""
    lines = _text_lines(header)
    if "".join(lines).isascii():
        return list(record.units)
    fields = [line.split() for line in lines[1:]]
    if len(fields) != record.n_sig or any(len(field) < 3 for field in fields):
        raise ReaderError("the WFDB header holds characters beyond ASCII in an unknown place; write units as uV or mV.")
    return [field[2].partition("/")[2] or "mV" for field in fields]
