"""ECGs in WFDB: a header `.hea` and its signal files, read through the wfdb package."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.record import (
    MAX_VALUES,
    EcgRecord,
    ReaderError,
    choose_leads,
    millivolts_per_unit,
    quantize,
)
from stence_dist.data.readers.relations import einthoven_residual, relation_error
from stence_dist.ecg import LEADS

# ADC units per millivolt of `wfdb_scale=raw`: what carts that store 1 uV per unit use, LUDB's Schiller among them.
RAW_UNITS_PER_MILLIVOLT = 1000.0
# Relative residuals of the limb lead relations: rounding of one gain stays far below the first, different gains far
# above the second.
_HOLDS = 0.02
_BROKEN = 0.05
_BITS = {"8": 8, "16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12}
_LARGEST_HEADER = 1_000_000  # bytes


def header_of(path: Path) -> Path:
    """The header file of a record that is named with or without `.hea`."""
    return path if path.suffix == ".hea" else path.with_name(path.name + ".hea")


def is_wfdb(path: Path) -> bool:
    """Whether `path` names a WFDB record."""
    return header_of(path).is_file()


def _read_header(header: Path) -> Any:
    import wfdb

    if header.stat().st_size > _LARGEST_HEADER:
        raise ReaderError(f"the WFDB header has {header.stat().st_size} bytes; expected a small text file.")
    try:
        record = wfdb.rdheader(str(header.absolute())[: -len(".hea")])
    except Exception as error:  # the parser fails on malformed text in many ways
        raise ReaderError(f"the WFDB header cannot be parsed ({type(error).__name__}).") from None
    if not isinstance(record, wfdb.Record):
        raise ReaderError("the WFDB record has several segments; expected one. Join them with the wfdb package.")
    if not record.n_sig or not record.file_name:
        raise ReaderError("the WFDB header names no signal; expected 12 leads.")
    return record


def _units(header: Path, record: Any) -> list[str]:
    """The unit of every signal. wfdb drops what is not ASCII, so that it reads µV as V: those headers are read here."""
    content = header.read_bytes()
    lines = [line for line in content.splitlines() if line.strip() and not line.startswith(b"#")]
    if b"".join(lines).isascii():
        return list(record.units)
    try:
        text = b"\n".join(lines).decode("utf-8")
    except UnicodeDecodeError:
        text = b"\n".join(lines).decode("latin-1")
    fields = [line.split() for line in text.splitlines()[1:]]
    if len(fields) != record.n_sig or any(len(field) < 3 for field in fields):
        raise ReaderError("the WFDB header holds characters beyond ASCII in an unknown place; write units as uV or mV.")
    return [field[2].partition("/")[2] or "mV" for field in fields]


def _check_files(record: Any, header: Path, chosen: list[int]) -> None:
    """Compare the header's promises with the chosen leads' files, before anything is allocated."""
    if not record.sig_len or record.sig_len * record.n_sig > MAX_VALUES:
        raise ReaderError(f"the WFDB header states {record.sig_len or 0} samples x {record.n_sig} signals.")
    if any(count != 1 for count in record.samps_per_frame):
        raise ReaderError("the WFDB signals have different sampling rates; expected one for all leads.")
    for name in sorted({record.file_name[number] for number in chosen}):
        if name in ("", ".", "..") or "/" in name or "\\" in name or ":" in name:
            raise ReaderError("the WFDB header names a signal file outside its own folder.")
        signals = [number for number, other in enumerate(record.file_name) if other == name]
        file = header.with_name(name)
        if not file.is_file():
            raise ReaderError(f"the WFDB signal file {_kind(name)} is missing; it belongs beside the header.")
        bits = _BITS.get(record.fmt[signals[0]])
        if bits is not None:
            needed = (record.byte_offset[signals[0]] or 0) + (record.sig_len * len(signals) * bits + 7) // 8
            if file.stat().st_size < needed:
                raise ReaderError(
                    f"the WFDB signal file {_kind(name)} is truncated: {file.stat().st_size} bytes, {needed} expected."
                )


def _kind(name: str) -> str:
    """A file's suffix: its whole name may identify a patient."""
    return "*" + Path(name).suffix


def read_wfdb(path: Path, wfdb_scale: str) -> EcgRecord:
    """The 12 leads of a WFDB record in mV.

    `wfdb_scale`: "header" uses the header's gains, "raw" 1,000 ADC units per mV for every lead, "auto" the header's
    unless the limb leads contradict each other with them and agree on the raw values; `flags["scale_source"]` says
    which. Raises ReaderError.
    """
    import wfdb

    header = header_of(path)
    described = _read_header(header)
    chosen = choose_leads(described.sig_name)
    _check_files(described, header, chosen)
    try:
        record = wfdb.rdrecord(str(header.absolute())[: -len(".hea")], physical=False, channels=chosen)
        digital = np.asarray(record.d_signal).T  # (12, T)
        physical = np.asarray(record.dac(), dtype=np.float64).T  # by the header's gains, NaN where a sample is invalid
    except Exception as error:  # reading damaged signal files fails in many ways
        raise ReaderError(f"the WFDB signal file cannot be read ({type(error).__name__}); is it damaged?") from None
    if record.sig_name != [described.sig_name[number] for number in chosen] or digital.shape != physical.shape:
        raise ReaderError("the WFDB signals came in an unexpected order; please report this record's header.")
    if digital.shape != (len(LEADS), described.sig_len):
        raise ReaderError(f"the WFDB signal has shape {digital.shape}; expected ({len(LEADS)}, {described.sig_len}).")
    raw: NDArray[np.float64] = np.where(np.isnan(physical), np.nan, digital.astype(np.float64))
    units = _units(header, described)
    scaled = physical * np.array([millivolts_per_unit(units[number]) for number in chosen])[:, None]
    from_raw = raw / RAW_UNITS_PER_MILLIVOLT
    use_raw = wfdb_scale == "raw" or (
        wfdb_scale == "auto" and relation_error(scaled) > _BROKEN and relation_error(raw) < _HOLDS
    )
    signal = from_raw if use_raw else scaled
    flags = {
        "scale_source": "raw" if use_raw else "header",
        "einthoven_residual": einthoven_residual(signal),
        "header_relation_error": _finite(relation_error(scaled)),
    }
    return quantize(signal, LEADS, float(described.fs), flags)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
