"""ECGs: what the readers make of each, what is wrong with its leads, and which are there more than once.

One recording is in memory at a time; what is kept of each is its hash and a few counts.
"""

import hashlib
import re
import warnings
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from tqdm import tqdm

from stence_dist.check import headers, identifiers
from stence_dist.check.findings import NOTE, PROBLEM, WARNING, Cell, Section, Table, Tally
from stence_dist.data.readers.ecg import format_of, read_waveform, split_entry
from stence_dist.data.readers.ecg.waveform import BROKEN, Waveform, to_record
from stence_dist.data.readers.limb_leads import canonical_lead
from stence_dist.data.readers.record import MISSING, EcgRecord, ReaderError
from stence_dist.ecg import HIGHEST_RATE, LEADS, LOWEST_RATE

CLIPPED_SAMPLES = 5  # equal samples at a lead's own extreme, and at least as long as CLIPPED_SECONDS
CLIPPED_SECONDS = 0.008
CLIPPED_TIMES = 3
CLIPPED_STEP = 0.01  # of the lead's range
SMALL_MILLIVOLTS, LARGE_MILLIVOLTS = 0.05, 30.0  # median over the leads of highest minus lowest value
SHORT_SECONDS = 3.0  # one window of the default encoders
_SCALE_SOURCES = ("header", "raw", "declared")
_EXAMPLES = 6
_NAMED_COPIES = 3


@dataclass(frozen=True)
class Facts:
    """What a usable recording showed; small, whatever its length."""

    sampling_rate: float
    seconds: float
    scale_source: str
    flat: tuple[str, ...]  # for more than half of the recording
    clipped: tuple[str, ...]
    derived: tuple[str, ...]
    missing_share: float
    residual: float | None  # RMS of I + III - II, mV
    contradict: bool  # the limb leads, beyond BROKEN
    height: float  # mV, as SMALL_MILLIVOLTS
    large: tuple[str, ...]  # leads above LARGE_MILLIVOLTS
    stated_filter: bool
    digest: bytes


@dataclass(frozen=True)
class Seen:
    """What one ECG file, or one recording of many in it, showed. `reason` = why it cannot be used."""

    format: str
    units: tuple[str, ...] = ()
    fields: frozenset[str] = frozenset()
    leads: tuple[str, ...] | None = None  # those of LEADS that are stored; None: not known
    flat_throughout: tuple[str, ...] = ()
    reason: str | None = None
    facts: Facts | None = None


@dataclass(frozen=True)
class Place:
    """Where a recording is, as a result may say it, and whose it is. `source` finds it again."""

    label: str
    source: Any
    patient: str = ""
    split: str = ""


def clipped_leads(values: NDArray[np.int16], leads: Sequence[str], sampling_rate: float) -> tuple[str, ...]:
    """Leads that stand still at their own highest or lowest value, as signals do at the end of a converter's range.

    values (L, T) int16, -32768 = missing. A lead counts where it holds the very value of its maximum (or minimum) for
    5 samples and 8 ms or longer, 3 times or more, each time entered and left by a step of 1 % or more of its range and
    of three or more of its finest steps: a wave that ends by itself turns slowly. Stretches at the ends of the
    recording do not count, as padding stands still as well. Leads that were resampled or filtered after they were
    clipped are not found.
    """
    shortest = max(CLIPPED_SAMPLES, round(CLIPPED_SECONDS * sampling_rate))
    found = []
    for lead, row in zip(leads, values, strict=True):
        known = row[row != MISSING].astype(np.int64)
        low, high = int(known.min(initial=0)), int(known.max(initial=0))
        steps = np.abs(np.diff(known))
        steep = max(CLIPPED_STEP * (high - low), 3 * steps[steps > 0].min(initial=high - low))
        if any(_rests(known, extreme, shortest, steep) >= CLIPPED_TIMES for extreme in (low, high)):
            found.append(lead)
    return tuple(found)


def _rests(lead: NDArray[np.int64], extreme: int, shortest: int, steep: float) -> int:
    """How often a lead (T,) stays at one value for `shortest` samples between steps of `steep` or more."""
    at = np.concatenate([[False], lead == extreme, [False]])
    edges = np.flatnonzero(at[1:] != at[:-1])
    starts, ends = edges[::2], edges[1::2]
    inside = (starts > 0) & (ends < len(lead)) & (ends - starts >= shortest)
    before, after = lead[starts[inside] - 1], lead[ends[inside]]
    return int((np.minimum(np.abs(before - extreme), np.abs(after - extreme)) >= steep).sum())


def plain_reason(error: BaseException) -> str:
    """Why a file cannot be used, in words that many files share: no text of a file, and no figure of one alone."""
    if isinstance(error, ReaderError):
        text = re.sub(r"\(found [^)]*\)", "", str(error))
        text = re.sub(r"(?<!\w)'(?:[^'\\]|\\.)*'(?!\w)|\"(?!stence_dist)[^\"]*\"", "…", text)
        text = re.sub(r"#\S+", "#…", text)
        text = re.sub(r"\*\.(?!(?:dat|mat)\b)\S+", "*", text)
        text = re.sub(r"(?<![\w.])\d+\.\d+(?![\w.])|(?<![\w.])\d{3,}(?![\w.])", "N", text)
        return re.sub(r"\s+([;,.])", r"\1", re.sub(r"\s+", " ", text)).strip()
    if isinstance(error, OSError):
        return f"a file cannot be opened ({error.strerror})."
    return f"the file is damaged or of an unusual make ({type(error).__name__})."


def describe(record: EcgRecord) -> Facts:
    """What a record shows. Equal values at equal rates give equal digests, whatever file they came from."""
    values, flags = record.values, record.flags
    heights = [float(np.ptp(row[row != MISSING].astype(np.float64))) * record.scale for row in values]
    content = np.ascontiguousarray(values).tobytes() + f"{record.sampling_rate:.6g} {record.scale:.6g}".encode()
    source = flags.get("scale_source")
    return Facts(
        sampling_rate=record.sampling_rate,
        seconds=values.shape[1] / record.sampling_rate,
        scale_source=source if source in _SCALE_SOURCES else "not stated",
        flat=tuple(lead for lead in LEADS if lead in flags.get("flat_leads", ())),
        clipped=clipped_leads(values, record.leads, record.sampling_rate),
        derived=tuple(lead for lead in LEADS if lead in flags.get("derived_leads", ())),
        missing_share=float(flags.get("missing_share", 0.0)),
        residual=flags.get("einthoven_residual"),
        contradict=bool(flags.get("limb_leads_break", False)),
        height=float(np.median(heights)),
        large=tuple(lead for lead, height in zip(record.leads, heights, strict=True) if height > LARGE_MILLIVOLTS),
        stated_filter="high_pass_hz" in flags or "low_pass_hz" in flags,
        digest=hashlib.blake2b(content, digest_size=16).digest(),
    )


def _flat_throughout(waveform: Waveform) -> tuple[str, ...]:
    names = [canonical_lead(name) for name in waveform.leads]
    still = [bool(np.isnan(row).all() or np.nanmax(row) == np.nanmin(row)) for row in waveform.signal]
    return tuple(name for name, flat in zip(names, still, strict=True) if name and flat)


def look_at(path: Path) -> Seen:
    """Read one recording (`FILE`, `RECORD` or `FILE#17`) and say what it showed. Raises nothing."""
    file_format = "of no known format"
    fields: frozenset[str] = frozenset()
    units: tuple[str, ...] = ()
    leads: tuple[str, ...] | None = None
    flat: tuple[str, ...] = ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parsers quote what they stumble over
            file, _ = split_entry(path)
            file_format = format_of(file) or file_format
            fields, units = headers.of_ecg(file)
            waveform = read_waveform(path)
            there = {canonical_lead(name) for name in waveform.leads}
            leads = tuple(lead for lead in LEADS if lead in there)
            if waveform.signal.ndim == 2 and len(waveform.signal) == len(waveform.leads):
                flat = _flat_throughout(waveform)
            facts = describe(to_record(waveform))
    except Exception as error:  # one file never ends a check
        return Seen(file_format, units, fields, leads, flat, plain_reason(error))
    return Seen(file_format, units, fields, leads, flat, None, facts)


@dataclass
class _Group:
    """Recordings of one digest: the first places, and whose they are."""

    places: list[str] = field(default_factory=list)
    count: int = 0
    patients: set[str] = field(default_factory=set)
    splits: set[str] = field(default_factory=set)


def _faults(facts: Facts) -> dict[str, Sequence[str]]:
    """What is doubtful about a usable recording, with the leads that it concerns."""
    found: dict[str, Sequence[str]] = {}
    if facts.contradict:
        found[f"the limb leads contradict each other (Einthoven, Goldberger; beyond {BROKEN:.0%} of their size)"] = ()
    if facts.clipped:
        found["a lead is clipped at its highest or lowest value"] = facts.clipped
    if facts.flat:
        found["a lead is flat for more than half of the recording"] = facts.flat
    if facts.missing_share > 0:
        found["samples are missing; they become 0 mV"] = ()
    if not SMALL_MILLIVOLTS <= facts.height <= LARGE_MILLIVOLTS:
        limits = f"{SMALL_MILLIVOLTS:g} to {LARGE_MILLIVOLTS:g} mV"
        found[f"the leads are not of the size of an ECG's ({limits}): is the unit right?"] = ()
    elif facts.large:
        found[f"a lead is larger than any ECG (over {LARGE_MILLIVOLTS:g} mV)"] = facts.large
    if not LOWEST_RATE <= facts.sampling_rate <= HIGHEST_RATE:
        found[f"sampling rate outside {LOWEST_RATE:g} to {HIGHEST_RATE:g} Hz: no encoder takes it"] = ()
    if facts.seconds < SHORT_SECONDS:
        found[f"shorter than {SHORT_SECONDS:g} s; encoders append zeros"] = ()
    return found


class Recordings:
    """Counts over all ECGs of a check."""

    def __init__(self, fields: identifiers.Fields) -> None:
        self._fields = fields
        self.examples: dict[str, tuple[Place, str]] = {}  # by fault: where, and its caption
        self.usable = 0
        self.unusable: list[Place] = []
        self._formats = Tally()
        self._units = Tally()
        self._rates = Tally()
        self._seconds = Tally()
        self._lead_sets = Tally()
        self._scales = Tally()
        self._filters = Tally()
        self._reasons = Tally()
        self._leads: dict[str, Counter[str]] = defaultdict(Counter)
        self._faults = Tally()
        self._residuals = array("f")
        self._digests: dict[bytes, _Group] = {}

    def add(self, place: Place, seen: Seen) -> None:
        """Count one recording."""
        self._formats.add(seen.format)
        self._units.add(" and ".join(seen.units) or "not stated")
        self._fields.add(seen.fields, seen.format, place.label)
        if seen.leads is not None:
            self._lead_sets.add(_lead_set(seen.leads))
            self._leads["not stored"].update(lead for lead in LEADS if lead not in seen.leads)
        self._leads["flat throughout"].update(seen.flat_throughout)
        if seen.reason is not None or seen.facts is None:
            self._reasons.add(seen.reason or "not readable.", place.label)
            self.unusable.append(place)
            return
        self.usable += 1
        self._add_facts(place, seen.facts)

    def _add_facts(self, place: Place, facts: Facts) -> None:
        self._rates.add(f"{facts.sampling_rate:g} Hz")
        self._seconds.add(f"{facts.seconds:.1f} s" if facts.seconds < 100 else f"{round(facts.seconds):d} s")
        self._scales.add(facts.scale_source)
        self._filters.add("stated" if facts.stated_filter else "not stated")
        if facts.residual is not None:
            self._residuals.append(facts.residual)
        for name, found in (("flat > half", facts.flat), ("clipped", facts.clipped), ("derived", facts.derived)):
            self._leads[name].update(found)
        faults = _faults(facts)
        for text, leads in faults.items():
            self._faults.add(text, place.label)
            if len(self.examples) < _EXAMPLES:
                self.examples.setdefault(text, (place, f"{text} ({' '.join(leads)})" if leads else text))
        if not faults:
            self.examples.setdefault("", (place, "the first without a fault"))
        group = self._digests.setdefault(facts.digest, _Group())
        group.count += 1
        if len(group.places) < _NAMED_COPIES:
            group.places.append(place.label)
        group.patients.add(place.patient)
        group.splits.add(place.split)

    def section(self) -> Section:
        """Everything said of the ECGs."""
        section = Section("recordings", "ECGs")
        if not self._formats.counts:
            return section
        section.tables = [
            self._formats.table("Formats", "format", "recordings"),
            self._units.table("Units that the files state", "unit", "recordings"),
        ]
        if self.usable:
            section.tables += [
                self._rates.table("Sampling rates", "rate", "recordings"),
                self._seconds.table("Lengths", "length", "recordings"),
                self._scales.table("Where millivolts come from", "source", "recordings"),
                self._filters.table("Filters of the recorder", "filters", "recordings"),
            ]
        if self._lead_sets.counts:
            section.tables.append(self._lead_sets.table("Leads stored", "leads", "recordings"))
        if self._residuals:
            section.tables.append(self._residual_table())
        if any(self._leads.values()):
            names = ("not stored", "derived", "flat throughout", "flat > half", "clipped")
            rows: list[list[Cell]] = [[lead, *(self._leads[name][lead] for name in names)] for lead in LEADS]
            section.tables.append(Table("Leads with a fault", ("lead", *names), rows))
        for what, count in self._reasons.ordered():
            # A package that is missing loses every file of a format at once, and one command brings it.
            level = PROBLEM if "pip install" in what else WARNING
            section.add(level, f"cannot be used: {what}", count, self._reasons.places(what))
        for what, count in self._faults.ordered():
            section.add(WARNING, what, count, self._faults.places(what))
        if self._scales.counts["raw"]:
            text = "WFDB header's gains contradict the limb leads; the values before them are taken (wfdb_scale=auto)"
            section.add(NOTE, text, self._scales.counts["raw"])
        self._report_duplicates(section)
        return section

    def _residual_table(self) -> Table:
        values = np.frombuffer(self._residuals, dtype=np.float32).astype(np.float64)
        rows = [
            (name, float(value))
            for name, value in (
                ("median", np.median(values)),
                ("95 % below", np.quantile(values, 0.95)),
                ("largest", values.max()),
            )
        ]
        return Table("Einthoven's residual, RMS of I + III − II in mV", ("of the recordings", "mV"), rows)

    def _report_duplicates(self, section: Section) -> None:
        """Recordings with equal samples: two copies of one patient's, or something worse."""
        groups = [group for group in self._digests.values() if group.count > 1]
        worse = [
            (PROBLEM, "equal waveforms in different splits: what is tested was trained on", _in_splits),
            (PROBLEM, "equal waveforms under different patients: one of them is not theirs", _of_patients),
            (NOTE, "equal waveforms of one patient", _of_one),
            (WARNING, "equal waveforms in different files; whose they are is not known here", _of_nobody),
        ]
        for level, text, fits in worse:
            chosen = [group for group in groups if fits(group)]
            if chosen:
                section.add(level, text, len(chosen), [" = ".join(group.places) for group in chosen])


def read_all(items: Sequence[tuple[Place, Path]], recordings: Recordings, workers: int) -> None:
    """Look at every recording, in `workers` processes, and count it."""
    looks = Parallel(n_jobs=workers, return_as="generator")(delayed(look_at)(path) for _, path in items)
    with tqdm(total=len(items), unit="ECG", disable=None) as bar:
        for (place, _), seen in zip(items, looks, strict=True):
            recordings.add(place, seen)
            bar.update()


def _in_splits(group: _Group) -> bool:
    return len(group.splits) > 1


def _of_patients(group: _Group) -> bool:
    return len(group.patients) > 1 and not _in_splits(group)


def _of_one(group: _Group) -> bool:
    return len(group.patients) == 1 and "" not in group.patients and not _in_splits(group)


def _of_nobody(group: _Group) -> bool:
    return group.patients == {""} and not _in_splits(group)


def _lead_set(leads: Sequence[str]) -> str:
    return "all 12" if len(leads) == len(LEADS) else " ".join(leads) or "none of the 12"
