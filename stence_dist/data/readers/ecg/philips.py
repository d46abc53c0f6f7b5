"""ECGs of Philips carts as XML (root `restingecgdata`, schema versions 1.03 to 1.04.02).

Sixteen channels of 16-bit integers, each LZW-compressed second differences ("XLI") in base64; limb leads III to aVF are
stored as what I and II do not explain. The sierraecg package decompresses; it never sees the file, because its own
reading of one bounds nothing. https://github.com/sixlettervariables/sierra-ecg-tools/wiki
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.ecg.waveform import Device, Waveform, check_size, millivolts_per_unit
from stence_dist.data.readers.ecg.xml_file import (
    decode_base64,
    frequency,
    parse_xml,
    positive,
    root_of,
    sampling_rate,
    stacked,
    text_at,
    whole,
)
from stence_dist.data.readers.limb_leads import LIMB_LEADS, canonical_lead
from stence_dist.data.readers.record import ReaderError
from stence_dist.ecg import LEADS

_VERSIONS = ("1.03", "1.04", "1.04.01", "1.04.02")
_LEAD_SETS = ("STD-12", "10-WIRE")  # twelve leads in the usual order, where the file does not name them
_MOST_SAMPLES = 120_000  # per lead: two minutes at 1000 Hz. A few bytes of LZW can unpack to as much as is allowed.
_BITS_PER_CODE = 10
_PULSE = 0.8  # mV that every lead rises by during the calibration pulse of 1 mV, at least
_ALIKE = 0.1  # mV within which the leads agree during and beside it, after conversion to other formats, too


def is_philips(path: Path, start: bytes) -> bool:
    """Whether a file is a Philips XML export, by its root element."""
    return root_of(start) == "restingecgdata"


def read_philips(path: Path) -> Waveform:
    """The leads without the calibration pulse. Raises ReaderError, also where the sierraecg package is missing."""
    root = parse_xml(path)
    found = root.findall("waveforms/parsedwaveforms")
    if len(found) != 1 or text_at(root, "documentinfo/documentversion") not in _VERSIONS:
        raise ReaderError(f"the Philips file holds no waveforms of a known version; expected {', '.join(_VERSIONS)}.")
    stored = found[0]
    header = _Header(stored, root.find("dataacquisition/signalcharacteristics"))
    rate = sampling_rate(positive(header.first("samplespersecond", "samplingrate"), "the Philips file's sampling rate"))
    leads = _leads(header)
    samples = round(positive(stored.get("durationperchannel"), "the Philips file's durationperchannel") / 1000 * rate)
    check_size(len(leads), samples)
    if not 2 <= samples <= _MOST_SAMPLES:
        raise ReaderError(f"the Philips file states {samples} samples per lead; expected 2 to {_MOST_SAMPLES}.")
    coded = (stored.get("dataencoding"), header.first("compression", "compressmethod"))
    if coded != ("Base64", "XLI") or header.first("bitspersample", "nbitspersample") != "16":
        raise ReaderError("the Philips waveforms are stored in an unusual way; expected 16 bits, XLI and base64.")
    content = decode_base64(stored.text, "the Philips file's waveform")
    digital = _with_limb_leads(stacked(_channels(content, len(leads), samples)), leads)
    step = positive(header.first("resolution", "signalresolution"), "the Philips file's resolution")
    millivolts = digital * (step * millivolts_per_unit("uV"))  # the schema: all amplitudes are in microvolts
    return Waveform(without_calibration(millivolts, rate), leads, rate, _device(root, header))


def without_calibration(signal: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Signal (n, T) in mV at `rate` Hz without its last second, where that holds a cart's calibration pulse.

    Philips files state 11 s: ECG to 10.5 s or later, then 0, 1 mV and 0 on all leads alike to the end. No header says
    so, but no heart can do it: I, II and III never rise alike, because III is II - I. The whole second goes, so that
    10 s remain, as of other vendors: what ECG it holds (about half a second) would tell the vendor by its length.
    """
    second = round(rate)
    last = signal[:, -second:]
    alike = last.mean(axis=0)[np.ptp(last, axis=0) < _ALIKE]
    pulse = alike > alike.min(initial=np.inf) + _PULSE
    return signal[:, :-second] if pulse.sum() >= 0.1 * rate else signal


@dataclass(frozen=True)
class _Header:
    """What describes the stored waveforms: their own attributes, else how they were acquired."""

    stored: Element
    acquired: Element | None

    def first(self, *names: str) -> str:
        """The first of the attributes, then of the elements, with one of `names`; empty where there is none."""
        stated = [self.stored.get(name, "") for name in names]
        if self.acquired is not None:
            stated += [text_at(self.acquired, name) for name in names]
        return next((text for text in stated if text), "")


def _leads(header: _Header) -> tuple[str, ...]:
    """The names of the first channels; more follow them that hold nothing but the calibration pulse."""
    names = header.stored.get("leadlabels", "").split()
    if names:
        return tuple(names[: whole(header.stored.get("numberofleads"), "the Philips file's numberofleads")])
    if header.first("acquisitiontype") not in _LEAD_SETS:
        raise ReaderError("the Philips file does not name its leads; expected leadlabels or a standard set of twelve.")
    count = whole(header.first("numberchannelsallocated"), "the Philips file's numberchannelsallocated")
    return tuple(LEADS[:count])


def _channels(content: bytes, count: int, samples: int) -> list[NDArray[np.float64]]:
    """The first `count` channels (samples,), in steps, of a sequence of chunks: size, a first difference, LZW codes."""
    lzw, xli = _package()
    rows: list[NDArray[np.float64]] = []
    position = 0
    for _ in range(count):
        size = int.from_bytes(content[position : position + 4], "little")
        first = int.from_bytes(content[position + 6 : position + 8], "little", signed=True)
        chunk = content[position + 8 : position + 8 + size]
        position += 8 + size
        if position > len(content):
            raise ReaderError(f"the Philips waveform ends after {len(rows)} of {count} leads; is the file truncated?")
        try:
            decoder = lzw.LzwDecoder(chunk, bits=_BITS_PER_CODE)
            unpacked = list(islice(iter(decoder.read, -1), 2 * samples + 2))
            if len(unpacked) != 2 * samples:
                raise ReaderError(f"a Philips lead does not hold the {samples} samples that the header states.")
            rows.append(xli.xli_decode_deltas(unpacked, first).astype(np.float64))
        except (IndexError, OverflowError):
            raise ReaderError("a Philips lead cannot be decompressed; is the file damaged?") from None
    return rows


def _package() -> tuple[Any, Any]:
    """The two modules of sierraecg that decompress. Raises ReaderError where the package is missing."""
    try:
        from sierraecg import lzw, xli
    except ImportError:
        raise ReaderError(
            'the sierraecg package is needed for Philips XML; pip install "stence_dist[philips]".'
        ) from None
    return lzw, xli


def _with_limb_leads(digital: NDArray[np.float64], names: tuple[str, ...]) -> NDArray[np.float64]:
    """Digital (n, T) with III to aVF in place of their stored remainders, rounded as the cart does."""
    if tuple(map(canonical_lead, names[:6])) != LIMB_LEADS:
        raise ReaderError(f"the Philips file's leads are in an unusual order; expected {' '.join(LIMB_LEADS)} first.")
    one, two, third, right, left, foot = digital[:6]
    three = two - one - third
    limb = [one, two, three, -right - (one + two) // 2, (one - three) // 2 - left, (two + three) // 2 - foot]
    return np.concatenate([np.stack(limb), digital[6:]])


def _device(root: Element, header: _Header) -> Device:
    low, _, high = header.first("signalbandwidth").partition("-")  # of version 1.03
    return Device(
        text_at(root, "dataacquisition/machine") or None,
        frequency(header.first("hipass") or low),
        frequency(header.first("lowpass") or high),
    )
