"""ECGs that GE's MUSE system exports as XML (root `RestingECG`, document type restecg.dtd).

A file holds the rhythm, usually 10 s of the eight independent leads, and the median beats as a second waveform. Samples
are 16-bit integers in base64.
"""

import re
import zlib
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.ecg.waveform import Device, Waveform, check_size, millivolts_per_unit
from stence_dist.data.readers.ecg.xml_file import (
    decode_base64,
    frequency,
    number,
    parse_xml,
    positive,
    root_of,
    sampling_rate,
    stacked,
    text_at,
    whole,
)
from stence_dist.data.readers.record import MISSING, ReaderError

# Nothing but a product's name: users of some systems type theirs, or anything else, into the field.
_PRODUCT = re.compile(
    r"(MAC|MACVU|CASE|CardioSoft|MARS|DASH|SOLAR)([ -]?[A-Z]{0,2}[0-9]{1,4}( ?[A-Z]{1,2})?)?", re.IGNORECASE
)
_BYTES_PER_SAMPLE = 2


def product_name(text: str) -> str | None:
    """`text` where it is the name of a GE recorder, else None."""
    return text if _PRODUCT.fullmatch(text) else None


def is_muse(path: Path, start: bytes) -> bool:
    """Whether a file is a MUSE XML export, by its root element."""
    return root_of(start) == "RestingECG"


def read_muse(path: Path) -> Waveform:
    """The stored leads of the rhythm, never of the median beats. Raises ReaderError."""
    root = parse_xml(path)
    rhythm = _rhythm(root)
    leads = rhythm.findall("LeadData")
    counts = [whole(text_at(lead, "LeadSampleCountTotal"), "a MUSE lead's LeadSampleCountTotal") for lead in leads]
    check_size(len(leads), max(counts, default=0))
    if len({tuple(_start(lead)) for lead in leads}) > 1:
        raise ReaderError("the MUSE leads start at different times; expected leads recorded at once.")
    return Waveform(
        stacked([_samples(lead, count) for lead, count in zip(leads, counts, strict=True)]),
        tuple(text_at(lead, "LeadID") for lead in leads),
        _rate(rhythm),
        _device(root, rhythm),
    )


def _rhythm(root: Element) -> Element:
    """The one waveform that is called rhythm; where there is but one and no type is stated, that one."""
    waveforms = root.findall("Waveform")
    kinds = [text_at(item, "WaveformType").casefold() for item in waveforms]
    wanted = "" if kinds == [""] else "rhythm"
    if kinds.count(wanted) != 1:
        raise ReaderError(
            f"the MUSE file holds {kinds.count('rhythm')} rhythm waveforms among {len(kinds)}; expected one, by its "
            "WaveformType (medians are not read)."
        )
    return waveforms[kinds.index(wanted)]


def _rate(rhythm: Element) -> float:
    base = number(text_at(rhythm, "SampleBase"), "the MUSE file's SampleBase")
    exponent = number(text_at(rhythm, "SampleExponent") or "0", "the MUSE file's SampleExponent")
    if exponent not in range(-6, 7):
        raise ReaderError(f"the MUSE file's SampleExponent is {exponent:g}; expected a whole number from -6 to 6.")
    return sampling_rate(base * 10**exponent)


def _start(lead: Element) -> list[float]:
    """When a lead starts: a time and a number of samples, 0 in files of simultaneous leads."""
    names = ("LeadTimeOffset", "LeadOffsetFirstSample")
    return [number(text_at(lead, name) or "0", f"a MUSE lead's {name}") for name in names]


def _samples(lead: Element, count: int) -> NDArray[np.float64]:
    """(T,) mV of one lead, at the lead's own scale; NaN where the lowest integer stands for a missing sample."""
    size = whole(text_at(lead, "LeadSampleSize") or str(_BYTES_PER_SAMPLE), "a MUSE lead's LeadSampleSize")
    if size != _BYTES_PER_SAMPLE:
        raise ReaderError(f"a MUSE lead has {size} bytes per sample; expected {_BYTES_PER_SAMPLE}.")
    content = decode_base64(lead.findtext("WaveFormData"), "a MUSE lead's WaveFormData")
    if len(content) != size * count:
        raise ReaderError(f"a MUSE lead holds {len(content)} bytes; its header states {count} samples of {size} bytes.")
    checksum = text_at(lead, "LeadDataCRC32")
    # Of the decoded bytes, by zlib's polynomial: so in every lead of every real file seen. 0 = not computed.
    if checksum and whole(checksum, "a MUSE lead's LeadDataCRC32") not in (0, zlib.crc32(content)):
        raise ReaderError(
            "a MUSE lead does not fit its LeadDataCRC32; the file was damaged or altered. Export it again."
        )
    per_unit = positive(text_at(lead, "LeadAmplitudeUnitsPerBit"), "a MUSE lead's LeadAmplitudeUnitsPerBit")
    scale = per_unit * millivolts_per_unit(text_at(lead, "LeadAmplitudeUnits"))
    stored = np.frombuffer(content, dtype="<i2")
    return np.where(stored == MISSING, np.nan, stored * scale)


def _device(root: Element, rhythm: Element) -> Device:
    # In hundredths of a hertz: 1, 5, 16, 32 and 56 occur, the carts' 0.01 to 0.56 Hz, and a recording that states 5 has
    # half of its power below 5 Hz. The low-pass filter's 40, 100 or 150 are hertz.
    high_pass = frequency(text_at(rhythm, "HighPassFilter"))
    return Device(
        product_name(text_at(root, "TestDemographics/AcquisitionDevice")),
        high_pass / 100 if high_pass else None,
        frequency(text_at(rhythm, "LowPassFilter")),
    )
