"""ECGs that GE's CardioSoft exports as XML (root `CardiologyXML`), as the UK Biobank holds them.

`StripData` is the recording, twelve leads of integers in text; the median beats and the vector loops stand elsewhere.
"""

import re
from pathlib import Path
from xml.etree.ElementTree import Element

from stence_dist.data.readers.ecg.muse import product_name
from stence_dist.data.readers.ecg.waveform import Device, Waveform, check_size, millivolts_per_unit
from stence_dist.data.readers.ecg.xml_file import (
    frequency,
    parse_xml,
    positive,
    root_of,
    samples_of,
    sampling_rate,
    stacked,
    text_at,
    whole,
)
from stence_dist.data.readers.record import ReaderError

_PER_STEP = re.compile(r"(?P<unit>\w+)perLsb", re.IGNORECASE)


def is_cardiosoft(path: Path, start: bytes) -> bool:
    """Whether a file is a CardioSoft XML export, by its root element."""
    return root_of(start) == "CardiologyXML"


def read_cardiosoft(path: Path) -> Waveform:
    """The leads of the strip. Raises ReaderError."""
    root = parse_xml(path)
    strips = root.findall("StripData")
    if len(strips) != 1:
        full = next(root.iter("FullDisclosureData"), None) is not None
        other = " and a full disclosure, which is not read" if full else ""
        raise ReaderError(f"the CardioSoft file holds {len(strips)} strips{other}; expected one (StripData).")
    strip = strips[0]
    leads = strip.findall("WaveformData")
    count = whole(text_at(strip, "ChannelSampleCountTotal"), "the CardioSoft file's ChannelSampleCountTotal")
    check_size(len(leads), count)
    rows = [samples_of((lead.text or "").replace(",", " "), "a CardioSoft lead") for lead in leads]
    signal = stacked(rows) * _millivolts_per_step(strip)
    if signal.shape[1] != count:
        raise ReaderError(f"the CardioSoft leads hold {signal.shape[1]} samples; their header states {count}.")
    return Waveform(signal, tuple(lead.get("lead") for lead in leads), _rate(strip), _device(root))


def _rate(strip: Element) -> float:
    if strip.find("SampleRate[@units='Hz']") is None:
        raise ReaderError("the CardioSoft file states no SampleRate in Hz.")
    return sampling_rate(positive(text_at(strip, "SampleRate"), "the CardioSoft file's SampleRate"))


def _millivolts_per_step(strip: Element) -> float:
    resolution = strip.find("Resolution")
    unit = _PER_STEP.fullmatch("" if resolution is None else resolution.get("units", ""))
    if unit is None:
        raise ReaderError("the CardioSoft file states no Resolution in a unit per step; expected uVperLsb.")
    steps = positive(text_at(strip, "Resolution"), "the CardioSoft file's Resolution")
    return steps * millivolts_per_unit(unit["unit"])


def _device(root: Element) -> Device:
    return Device(
        product_name(text_at(root, "ClinicalInfo/DeviceInfo/Desc")),
        frequency(text_at(root, "FilterSetting/HighPass[@units='Hz']")),
        frequency(text_at(root, "FilterSetting/LowPass[@units='Hz']")),
    )
