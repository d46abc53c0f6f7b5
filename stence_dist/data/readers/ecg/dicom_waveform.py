"""ECGs in DICOM: 12-lead, general, ambulatory and 32-bit ECG waveform storage, parsed by pydicom.

A file may hold several multiplex groups, a rhythm and a median beat say; see `_choose`. Leads go by the code of their
source (PS3.16 CID 3001), units by UCUM code, scale by PS3.3 C.10.9. No header field leaves this module but `Device`.
"""

import math
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.ecg.waveform import Device, Waveform, check_size, millivolts_per_unit
from stence_dist.data.readers.limb_leads import canonical_lead
from stence_dist.data.readers.lookalike import ECG_CLASSES, HEADLESS, is_headless
from stence_dist.data.readers.record import MISSING, ReaderError

WAVEFORM_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.9.1.{number}" for number in (1, 2, 3, 4))
_SOP_CLASS = 0x0008_0016
_TAGS: list[Any] = ["SOPClassUID", "ManufacturerModelName", "WaveformSequence"]
# Implicit and explicit VR, little endian. Deflated data could unpack to anything.
_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_LARGEST = 1_000_000_000  # bytes
# The last number of a lead's code in SCPECG (5.6.3-9-61) and in MDC (2:61).
_LEAD_CODES = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"} | {n + 2: f"V{n}" for n in range(1, 7)}
_CODE = re.compile(r"(?:SCPECG 5\.6\.3-9-|MDC 2:)(\d{1,3})")  # after the coding scheme's name
_SAMPLES = {
    (8, "SB"): "<i1",
    (8, "UB"): "<u1",
    (16, "SS"): "<i2",
    (16, "US"): "<u2",
    (32, "SL"): "<i4",
    (32, "UL"): "<u4",
}
_LARGEST_SKEW = 1.0  # samples


@dataclass(frozen=True)
class _Group:
    """One multiplex group, and the lead of `LEADS` that each of its channels holds."""

    item: Any
    leads: list[str | None]

    @property
    def label(self) -> str:
        return str(self.item.get("MultiplexGroupLabel") or "").upper()

    @property
    def is_original(self) -> bool:
        return str(self.item.get("WaveformOriginality") or "").upper() != "DERIVED"

    @property
    def is_average(self) -> bool:
        return "MEDIAN" in self.label or "BEAT" in self.label

    @property
    def samples(self) -> int:
        return int(self.item.get("NumberOfWaveformSamples") or 0)

    @property
    def sampling_rate(self) -> float:
        return _number(self.item, "SamplingFrequency") or 0.0


def is_dicom_waveform(path: Path, start: bytes) -> bool:
    """Whether a file is an ECG in DICOM, by its SOP class; images are none. One without preamble is, and is refused."""
    if start[128:132] != b"DICM":
        return is_headless(start, ECG_CLASSES)
    from pydicom.filereader import read_file_meta_info, read_partial  # a second that only DICOM files need

    try:
        header = read_file_meta_info(path)
        sop_class = header.get("MediaStorageSOPClassUID")
        if sop_class is None and _is_plain(header):
            dataset = read_partial(
                BytesIO(start), stop_when=lambda tag, vr, length: tag > _SOP_CLASS, specific_tags=[_SOP_CLASS]
            )
            sop_class = dataset.get("SOPClassUID")
    except Exception:  # a damaged header fails in many ways; whoever reads images says so
        return False
    return str(sop_class) in WAVEFORM_CLASSES


def read_dicom_waveform(path: Path) -> Waveform:
    """The leads of the original recording in a DICOM waveform file. Raises ReaderError."""
    try:
        return _read(path)
    except ReaderError:
        raise
    except Exception as error:  # pydicom parses elements where they are used, and damaged ones fail in many ways
        raise ReaderError(f"the DICOM waveform cannot be parsed ({type(error).__name__}); is it damaged?") from None


def _is_plain(header: Any) -> bool:
    """Whether a file's meta information states no transfer syntax but those that are read."""
    return str(header.get("TransferSyntaxUID") or _SYNTAXES[0]) in _SYNTAXES


def _read(path: Path) -> Waveform:
    import pydicom
    from pydicom.filereader import read_file_meta_info

    size = path.stat().st_size
    if size > _LARGEST:
        raise ReaderError(f"the DICOM waveform file has {size} bytes; at most {_LARGEST} are read.")
    with open(path, "rb") as file:
        if is_headless(file.read(1024), ECG_CLASSES):
            raise ReaderError(HEADLESS)
    if not _is_plain(read_file_meta_info(path)):
        raise ReaderError("the DICOM waveform is deflated or big endian; convert it to explicit VR little endian.")
    # From memory, so that a false length inside cannot ask for more of it than the file has.
    dataset = pydicom.dcmread(BytesIO(path.read_bytes()), specific_tags=_TAGS)
    items = dataset.get("WaveformSequence") or ()
    channels = [item.get("ChannelDefinitionSequence") or () for item in items]
    group = _choose([_Group(item, list(map(_lead, found))) for item, found in zip(items, channels, strict=True)])
    _check(group)
    rows = [number for number, lead in enumerate(group.leads) if lead]
    definitions = [group.item.ChannelDefinitionSequence[row] for row in rows]
    _check_skew(definitions, group.sampling_rate)
    values, missing = _decode(group, rows)
    signal = np.stack([_scale(row, channel) for row, channel in zip(values, definitions, strict=True)])
    signal[missing] = np.nan
    device = Device(
        str(dataset.get("ManufacturerModelName") or "") or None,
        _common(definitions, "FilterLowFrequency"),
        _common(definitions, "FilterHighFrequency"),
    )
    return Waveform(signal, tuple(group.leads[row] for row in rows), group.sampling_rate, device)


def _number(item: Any, name: str) -> float | None:
    """A numeric element; None where it is absent or empty. Raises ReaderError for one that is no number."""
    try:
        value = item.get(name)
        number = None if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise ReaderError(f"{name} of the DICOM waveform is not a number; the header is damaged.")
    return number


def _lead(channel: Any) -> str | None:
    """The lead of `LEADS` that a channel holds, by its source's code; by free text only where that code is unknown.

    Raises ReaderError where a code's own text names another lead: some writers number the codes by channel.
    """
    sources = channel.get("ChannelSourceSequence")
    label = canonical_lead(str(channel.get("ChannelLabel") or ""))
    if not sources:
        return label
    code = str(sources[0].get("CodeValue") or "").strip()
    # "Lead I (Einthoven)", "aVR, augmented voltage, right"
    meaning = canonical_lead(re.split("[,(]", str(sources[0].get("CodeMeaning") or ""))[0])
    known = _CODE.fullmatch(f"{str(sources[0].get('CodingSchemeDesignator') or '').strip()} {code}")
    if known:
        lead = _LEAD_CODES.get(int(known[1]))
    elif code.upper().startswith("MDC_ECG_LEAD_"):
        lead = canonical_lead(code)
    else:
        return meaning or label
    if lead and meaning and lead != meaning:
        raise ReaderError(
            f"a DICOM channel is lead {lead} by its code and lead {meaning} by the code's meaning; export the file "
            "with the codes of PS3.16 CID 3001."
        )
    return lead


def _choose(groups: list[_Group]) -> _Group:
    """The group with most leads, of those the one called rhythm, of those the longest.

    Averaged beats are no recording, and derived waveforms count only where there is no original. Raises ReaderError.
    """
    recordings = [group for group in groups if not group.is_average]
    candidates = [group for group in recordings if group.is_original] or recordings
    if not any(any(group.leads) for group in candidates):
        raise ReaderError(
            f"none of {len(groups)} waveforms in the DICOM file is a recording of ECG leads; expected 12 leads, by"
            " SCPECG or MDC code."
        )

    def merit(group: _Group) -> tuple[int, bool, float]:
        seconds = group.samples / group.sampling_rate if group.sampling_rate > 0 else 0.0
        return len({lead for lead in group.leads if lead}), "RHYTHM" in group.label, seconds

    return max(candidates, key=merit)


def _check(group: _Group) -> None:
    """Refuse a group whose header contradicts itself."""
    if group.item.get("NumberOfWaveformChannels") != len(group.leads):
        raise ReaderError("the DICOM waveform does not describe each of its channels; the header is damaged.")
    check_size(len(group.leads), group.samples)
    if group.sampling_rate <= 0:
        raise ReaderError("the DICOM waveform states no sampling frequency; expected hertz.")
    for lead in filter(None, group.leads):
        if group.leads.count(lead) > 1:
            raise ReaderError(f"lead {lead} is there twice in the DICOM waveform; each lead is expected once.")


def _check_skew(definitions: list[Any], rate: float) -> None:
    """Refuse leads that were not recorded at the same time.

    Up to a sample, which is how far apart an ADC of many channels reads them, a skew is left as it is: to undo it
    would filter the lead, for 1 or 2 ms.
    """
    skews = []
    for channel in definitions:
        seconds = _number(channel, "ChannelTimeSkew")
        skews.append((_number(channel, "ChannelSampleSkew") or 0.0) if seconds is None else seconds * rate)
    if max(skews) - min(skews) > _LARGEST_SKEW:
        raise ReaderError(f"the DICOM leads are up to {max(skews) - min(skews):.1f} samples apart; align them first.")


def _decode(group: _Group, rows: list[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Stored values (rows, samples), and which of them stand for a missing sample."""
    bits, kind = group.item.get("WaveformBitsAllocated"), str(group.item.get("WaveformSampleInterpretation") or "")
    if kind in ("MB", "AB"):
        raise ReaderError("the DICOM waveform is companded (mu-law or A-law), as speech is; expected linear samples.")
    if (bits, kind) not in _SAMPLES:
        raise ReaderError("the DICOM waveform's samples are not 8, 16 or 32 bit integers; convert the file.")
    dtype = np.dtype(_SAMPLES[bits, kind])
    data = group.item.get("WaveformData")
    count = len(group.leads) * group.samples
    length = len(data) if isinstance(data, bytes) else 0
    if length - count * dtype.itemsize not in (0, 1):  # an odd number of bytes is padded with one
        raise ReaderError(
            f"the DICOM waveform has {length} bytes, its header promises {count * dtype.itemsize}; it is truncated or"
            " damaged."
        )
    frames = np.frombuffer(data, dtype, count).reshape(group.samples, len(group.leads))
    values = frames.T[rows]
    # In 16 bits the lowest value is no voltage, stated as padding or not: it means that there is no sample.
    missing = values == MISSING if dtype == np.int16 else np.zeros(values.shape, dtype=bool)
    padding = group.item.get("WaveformPaddingValue")
    if isinstance(padding, bytes) and len(padding) >= dtype.itemsize:
        missing |= values == np.frombuffer(padding, dtype, 1)
    return values, missing


def _scale(values: NDArray[Any], channel: Any) -> NDArray[np.float64]:
    """One channel's stored values (T,) in mV."""
    sensitivity, units = _number(channel, "ChannelSensitivity"), channel.get("ChannelSensitivityUnitsSequence")
    if not sensitivity or not units:
        raise ReaderError("a DICOM lead states no sensitivity, or none with a unit; its values mean no voltage.")
    correction = _number(channel, "ChannelSensitivityCorrectionFactor")
    baseline = _number(channel, "ChannelBaseline") or 0.0
    physical = values * sensitivity * (1.0 if correction is None else correction) + baseline
    unit = str(units[0].get("CodeValue") or units[0].get("CodeMeaning") or "")
    return np.asarray(physical * millivolts_per_unit(unit), dtype=np.float64)


def _common(definitions: list[Any], name: str) -> float | None:
    """A filter's frequency where all leads state the same; 0 means that there is none. Malformed ones refuse no ECG."""
    try:
        stated = {_number(channel, name) for channel in definitions}
    except ReaderError:
        return None
    return (stated.pop() or None) if len(stated) == 1 else None
