"""ECGs as HL7 annotated ECG (root `AnnotatedECG`), what regulators take and many devices write.

A rhythm series holds sets of sequences: one of times, one per lead, `origin + scale * digit`. Representative beats are
series derived from it and are not read. HL7 aECG Implementation Guide, 21 March 2005.
"""

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.ecg.philips import without_calibration
from stence_dist.data.readers.ecg.waveform import Device, Waveform, check_size, millivolts_per_unit
from stence_dist.data.readers.ecg.xml_file import (
    frequency,
    number,
    parse_xml,
    positive,
    root_of,
    samples_of,
    sampling_rate,
    stacked,
    text_at,
)
from stence_dist.data.readers.limb_leads import canonical_lead
from stence_dist.data.readers.record import ReaderError

_FILTER = "MDC_ECG_CTL_VBL_ATTR_FILTER_"
# Of the units of time that the guide allows; micro also by its sign, and by the Greek letter.
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "\u00b5s": 1e6, "\u03bcs": 1e6}


def is_aecg(path: Path, start: bytes) -> bool:
    """Whether a file is an HL7 annotated ECG, by its root element."""
    return root_of(start) == "AnnotatedECG"


def read_aecg(path: Path) -> Waveform:
    """The leads of the rhythm series, a calibration pulse cut off. Raises ReaderError."""
    series, sequences = _chosen(parse_xml(path))
    leads = [sequence for sequence in sequences if canonical_lead(_code(sequence))]
    signal = stacked([_samples(lead) for lead in leads])
    check_size(*signal.shape)
    rate = _rate(sequences)
    return Waveform(
        without_calibration(signal, rate),  # a Philips recording keeps its pulse when it is converted
        tuple(map(_code, leads)),
        rate,
        Device(
            text_at(series, "author/seriesAuthor/manufacturedSeriesDevice/manufacturerModelName") or None,
            _corner(series, "HIGH_PASS"),
            _corner(series, "LOW_PASS"),
        ),
    )


def _code(element: Element) -> str:
    """What an element says it is."""
    code = element.find("code")
    return "" if code is None else code.get("code", "")


def _chosen(root: Element) -> tuple[Element, list[Element]]:
    """The rhythm series and its set of sequences with the most leads: a strip of one lead may stand beside it.

    Where no series is called rhythm, any that is not called a representative beat counts.
    """
    kinds = [(_code(series).strip().upper(), series) for series in root.findall("component/series")]
    recordings = [series for kind, series in kinds if kind == "RHYTHM"]
    sets = [
        (series, group.findall("component/sequence"))
        for series in recordings or [series for kind, series in kinds if not kind.startswith("REPRESENTATIVE")]
        for group in series.findall("component/sequenceSet")
    ]
    counts = [sum(canonical_lead(_code(item)) is not None for item in sequences) for _, sequences in sets]
    if counts.count(max(counts, default=0)) != 1:
        raise ReaderError(f"the aECG file holds {len(sets)} sets of rhythm leads and none has the most; expected one.")
    return sets[counts.index(max(counts))]


def _rate(sequences: list[Element]) -> float:
    """Hz from the increment of the sequence of times, be they absolute or relative."""
    steps = [step for item in sequences if _code(item).startswith("TIME_") for step in item.findall("value/increment")]
    if len(steps) != 1:
        raise ReaderError(f"the aECG file states {len(steps)} time increments of the leads; expected one.")
    per_second = _PER_SECOND.get(steps[0].get("unit", "").strip())
    if per_second is None:
        raise ReaderError("the aECG file's time increment is in no known unit; expected s, ms or us.")
    return sampling_rate(per_second / positive(steps[0].get("value"), "the aECG file's time increment"))


def _samples(sequence: Element) -> NDArray[np.float64]:
    """(T,) mV of one lead."""
    origin, scale = (sequence.find(f"value/{name}") for name in ("origin", "scale"))
    if origin is None or scale is None:
        raise ReaderError("an aECG lead lacks its origin or scale; expected a list of physical quantities (SLIST_PQ).")
    zero = number(origin.get("value"), "an aECG lead's origin")
    if zero != 0:  # 0 needs no unit, and some files give it none
        zero *= millivolts_per_unit(origin.get("unit", ""))
    step = positive(scale.get("value"), "an aECG lead's scale") * millivolts_per_unit(scale.get("unit", ""))
    return zero + step * samples_of(sequence.findtext("value/digits"), "an aECG lead")


def _corner(series: Element, kind: str) -> float | None:
    """The corner frequency in Hz of the filter of a kind that the series went through; None = not stated."""
    for variable in series.findall("controlVariable/controlVariable"):
        if _code(variable) == _FILTER + kind:
            for part in variable.findall("component/controlVariable"):
                value = part.find("value[@unit='Hz']")
                if _code(part) == _FILTER + "CUTOFF_FREQ" and value is not None:
                    return frequency(value.get("value"))
    return None
