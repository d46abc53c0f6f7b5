"""Angiograms: runs, pictures, maps and stored features, by their headers alone. No pixel is decoded."""

import hashlib
import warnings
from array import array
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stence_dist.check import headers, identifiers
from stence_dist.check.findings import NOTE, PROBLEM, WARNING, Picture, Section, Table, Tally
from stence_dist.check.recordings import Place, plain_reason
from stence_dist.data.readers.images import DICOM, FEATURES, PICTURES, TOKEN_MAPS, fault_of, kind_of, study_files
from stence_dist.data.readers.images.views_table import VIEWS_TABLE, ViewNote, read_views_table
from stence_dist.data.readers.record import ReaderError

TOKENS = (FEATURES, TOKEN_MAPS)
RUN, SINGLE, NO_RUN, UNSEEN = "run", "single frame", "other object", "not looked at"
_KEY_SOURCES = (VIEWS_TABLE, "header", "only frame", "contrast")
_SATURATED = "almost all black, white or of one gray in the middle of the key frame: does the window fit?"
_COPIED = "runs with the identifier (SOP instance) of a run under another patient: are they copies?"
_MOST_POINTS = 1500  # of the picture of angles


@dataclass(frozen=True)
class ViewSeen:
    """What the header of one file of a study showed. None = not stated; `reason` = why it cannot be used."""

    kind: str
    what: str = RUN
    reason: str | None = None
    syntax: str = ""  # transfer syntax
    decodes: bool = True  # by what is installed here; nobody decodes what is no run
    frames: int | None = None
    size: str = ""
    bits: int | None = None
    rate: float | None = None  # frames per second
    angles: tuple[float, float] | None = None
    key_frame: str = "contrast"
    burned_in: str = ""
    saturated: bool = False  # only a stored view says so: headers do not
    instance: bytes = b""  # digest of the run's own identifier
    fields: frozenset[str] = frozenset()


def look_at_view(path: Path, note: ViewNote | None = None) -> ViewSeen | None:
    """What the header of a file showed; None for a file that is no view. Raises nothing."""
    kind = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom quotes the values that it stumbles over
            kind = kind_of(path)
            if kind == DICOM:
                return _look_at_dicom(path, note)
            if kind == PICTURES:
                return _look_at_picture(path, note)
            if kind is None:
                fault = fault_of(path)
                return ViewSeen(DICOM, reason=fault) if fault else None
    except Exception as error:  # headers are damaged in many ways
        return ViewSeen(kind or "unknown", reason=plain_reason(error))
    return ViewSeen(kind, angles=_noted(note), key_frame="" if kind in TOKENS else _key_frame(note))


def _noted(note: ViewNote | None) -> tuple[float, float] | None:
    if note is None or np.isnan(note.angulation).any():
        return None
    return float(note.angulation[0]), float(note.angulation[1])


def _key_frame(note: ViewNote | None) -> str:
    return VIEWS_TABLE if note is not None and note.key_frame is not None else "contrast"


def _look_at_picture(path: Path, note: ViewNote | None) -> ViewSeen:
    from PIL import Image

    with Image.open(path, formats=("PNG", "JPEG")) as image:
        size = f"{image.height} x {image.width}"
    return ViewSeen(PICTURES, frames=1, size=size, angles=_noted(note), key_frame="only frame")


def _look_at_dicom(path: Path, note: ViewNote | None) -> ViewSeen:
    """Whether it is a run that can be used is its reader's own word; all the rest is for show."""
    from stence_dist.data.readers.images.codecs import codec_of
    from stence_dist.data.readers.images.dicom_header import number
    from stence_dist.data.readers.images.dicom_xa import run_of
    from stence_dist.data.readers.images.run import known_key_frame

    header, fields, burned_in = _searched(path)
    try:
        run = run_of(path)
        key = None if run is None else known_key_frame(run, note)
    except Exception as error:  # as wherever a study is read
        return ViewSeen(DICOM, reason=plain_reason(error), fields=fields)
    if run is None:
        return ViewSeen(DICOM, _what_else(path, header), fields=fields)
    syntax = _syntax_of(path)
    allocated, bits = (int(number(header, name) or 0) for name in ("BitsAllocated", "BitsStored"))
    # A header that was not searched, as a deflated one, states no bits: its file is smaller than its frames.
    needed = run.frames * run.rows * run.columns * allocated // 8
    if _is_plain(syntax) and path.stat().st_size < needed:
        return ViewSeen(DICOM, reason="a run has fewer bytes than its header states; truncated?", fields=fields)
    frame, source = key or (0, "contrast")
    angles = _noted(note) or run.angles(frame)
    return ViewSeen(
        DICOM,
        syntax=syntax,
        decodes=codec_of(syntax, bits) is not None,
        frames=run.frames,
        size=f"{run.rows} x {run.columns}",
        bits=bits or None,
        rate=1000 / run.frame_time if run.frame_time and run.frame_time > 0 else None,
        angles=None if any(np.isnan(angles)) else angles,
        key_frame=source,
        burned_in=burned_in,
        fields=fields,
        instance=_instance_of(header),
    )


def _instance_of(header: Any) -> bytes:
    stated = str(header.get("SOPInstanceUID") or "").strip()
    return hashlib.blake2b(stated.encode(), digest_size=8).digest() if stated else b""


def _searched(path: Path) -> tuple[Any, frozenset[str], str]:
    """A DICOM header, the kinds of fields that it fills, and its word on burned-in text; empty if unsearchable."""
    from pydicom.dataset import Dataset

    from stence_dist.data.readers.images.dicom_header import number, stated

    try:
        header = headers.read_header(path)
        fields = {identifiers.NOT_SEARCHED} if header is None else headers.of_dicom(header)
    except Exception:  # headers are damaged in many ways, and whoever reads the run says so
        header, fields = None, {identifiers.NOT_SEARCHED}
    if header is None:
        return Dataset(), frozenset(fields), "not stated"
    burned_in = str(stated(header, "BurnedInAnnotation") or "").strip().upper()
    burned_in = burned_in if burned_in in ("NO", "YES") else "not stated"
    if number(header, "Rows") and burned_in != "NO":
        fields.add(identifiers.BURNED_IN)
    return header, frozenset(fields), burned_in


def _what_else(path: Path, header: Any) -> str:
    """What an object is that is no run: a single frame of the classes of runs, or anything else."""
    from stence_dist.data.readers.images.dicom_file import RUN_CLASSES, is_icon_only

    if not header:
        return UNSEEN
    sop_class = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    is_still = sop_class in RUN_CLASSES and "Rows" in header
    return SINGLE if is_still and not ("IconImageSequence" in header and is_icon_only(path)) else NO_RUN


def _syntax_of(path: Path) -> str:
    from pydicom.filereader import read_file_meta_info

    return str(read_file_meta_info(path).get("TransferSyntaxUID", ""))


@lru_cache(maxsize=256)
def _is_plain(syntax: str) -> bool:
    from pydicom.uid import UID

    uid = UID(syntax)
    return uid.is_transfer_syntax and not uid.is_compressed


@lru_cache(maxsize=256)
def _syntax_name(syntax: str) -> str:
    """The name of a transfer syntax; one that the standard does not know is not spelled out."""
    from pydicom.uid import UID

    known = UID(syntax).name
    return known if known != syntax else "one that the standard does not know"


def look_at_study(path: Path) -> tuple[list[tuple[Path, ViewSeen]], int, str | None]:
    """What the files of a study showed, how many others there are, and why the study cannot be used. Raises nothing."""
    reason = None
    notes: dict[str, ViewNote] = {}
    try:
        if not path.exists():
            return [], 0, "the study folder does not exist."
        folder = path if path.is_dir() else path.parent
        notes = read_views_table(folder)
        files = study_files(path)
    except (ReaderError, OSError) as error:
        return [], 0, plain_reason(error)
    seen = []
    for file in files:
        view = look_at_view(file, notes.get(file.relative_to(folder).as_posix()))
        if view is not None:
            seen.append((file, view))
    kinds = {view.kind for _, view in seen}
    if kinds == {DICOM, PICTURES} and any(view.kind == DICOM and view.what == RUN for _, view in seen):
        seen = [(file, view) for file, view in seen if view.kind == DICOM]
        kinds = {DICOM}
    failed = [view.reason for _, view in seen if view.reason is not None]
    if failed:
        reason = failed[0]
    elif len(kinds) > 1:
        reason = f"the study mixes kinds of views ({' and '.join(sorted(kinds))}); one kind only."
    elif not any(view.what == RUN for _, view in seen):
        reason = "no view: no file is a run of several frames, a picture, a map or stored features."
    return seen, len(files) - len(seen), reason


class Views:
    """Counts over all files of angiograms in a check."""

    def __init__(self, fields: identifiers.Fields) -> None:
        self._fields = fields
        self.result = Section("views", "Angiograms")
        self.count = 0
        self.shown: list[tuple[Place, Path]] = []  # runs that state to hold no text in their pixels
        self._kinds = Tally()
        self._objects = Tally()
        self._syntaxes = Tally()
        self._absent = Tally()
        self._frames = Tally()
        self._sizes = Tally()
        self._bits = Tally()
        self._rates = Tally()
        self._directions = Tally()
        self._keys = Tally()
        self._burned = Tally()
        self._saturated = Tally()
        self._instances: dict[bytes, str] = {}  # of runs -> whose the first one is
        self._copied = Tally()
        self._reasons = Tally()
        self._angles = (array("f"), array("f"))
        self._zero = 0

    def add(self, place: Place, seen: ViewSeen, path: Path | None = None) -> None:
        """Count one file."""
        self._kinds.add(seen.kind)
        self._fields.add(seen.fields, seen.kind, place.label)
        if seen.reason is not None:
            self._reasons.add(seen.reason, place.label)
            return
        if seen.kind == DICOM:
            self._objects.add(seen.what)
        if seen.what != RUN:
            return
        self.count += 1
        if seen.syntax:
            self._syntaxes.add(seen.syntax)
            if not seen.decodes:
                self._absent.add(seen.syntax, place.label)
        for tally, value in (
            (self._frames, "" if seen.kind in TOKENS else _range_of(seen.frames)),
            (self._sizes, seen.size),
            (self._bits, f"{seen.bits} bit" if seen.bits else ""),
            (self._rates, f"{seen.rate:.3g} per second" if seen.rate else ""),
            (self._burned, seen.burned_in),
            (self._keys, seen.key_frame),
        ):
            if value:
                tally.add(value, place.label)
        if seen.saturated:
            self._saturated.add(_SATURATED, place.label)
        if seen.instance and place.patient:
            owner = self._instances.setdefault(seen.instance, place.patient)
            if owner != place.patient:
                self._copied.add(_COPIED, place.label)
        self._directions.add(direction(seen.angles))
        if seen.angles is not None:
            for axis, angle in zip(self._angles, seen.angles, strict=True):
                axis.append(angle)
            self._zero += seen.angles == (0.0, 0.0)
        if seen.burned_in == "NO" and path is not None and len(self.shown) < 3:
            self.shown.append((place, path))

    def section(self) -> Section:
        """Everything said of the views, after what others have put into `result`."""
        section = self.result
        if not self._kinds.counts:
            return section
        section.tables.append(self._kinds.table("Files, by content", "kind", "files"))
        for tally, title, column in (
            (self._objects, "DICOM objects", "object"),
            (self._frames, "Frames of a run", "frames"),
            (self._sizes, "Rows x columns", "size"),
            (self._bits, "Bits stored", "bits"),
            (self._rates, "Frame rates", "rate"),
            (self._directions, "Angles", "projection"),
            (self._keys, "Where key frames come from", "source"),
            (self._burned, "Burned-in annotation, as stated", "stated"),
        ):
            if tally.counts:
                section.tables.append(tally.table(title, column, "files" if tally is self._objects else "views"))
        if self._syntaxes.counts:
            rows = [
                (_syntax_name(syntax), count, "no" if syntax in self._absent.counts else "yes")
                for syntax, count in self._syntaxes.ordered()
            ]
            names = ("transfer syntax", "views", "decoded here")
            section.tables.append(Table("Codecs needed", names, rows))
        self._report(section)
        if len(self._angles[0]):
            section.pictures.append(self._picture())
        return section

    def _report(self, section: Section) -> None:
        for syntax, count in self._absent.ordered():
            from stence_dist.data.readers.images.codecs import advice  # imports pydicom, as whoever met a syntax did

            text = f"no codec here for {_syntax_name(syntax)}: {advice(syntax)}"
            section.add(PROBLEM, text, count, self._absent.places(syntax))
        for what, count in self._reasons.ordered():
            section.add(WARNING, f"cannot be used: {what}", count, self._reasons.places(what))
        for tally in (self._saturated, self._copied):
            for what, count in tally.ordered():
                section.add(WARNING, what, count, tally.places(what))
        unstated = self._burned.counts["not stated"]
        if unstated:
            text = (
                "no word on whether text is burned into the pixels; look: a build blackens mask_top= and mask_bottom="
            )
            section.add(WARNING, text, unstated, self._burned.places("not stated"))
        if self._burned.counts["YES"]:
            text = "text is burned into the pixels; a build blackens only what mask_top= and mask_bottom= say"
            section.add(WARNING, text, self._burned.counts["YES"], self._burned.places("YES"))
        if self._directions.counts[UNKNOWN]:
            section.add(NOTE, "no angles; they stay unknown", self._directions.counts[UNKNOWN])
        if self._zero * 2 > len(self._angles[0]) > 1:
            section.add(WARNING, "both angles are exactly 0, in most views: were they lost?", self._zero)

    def _picture(self) -> Picture:
        primary, secondary = (np.frombuffer(axis, dtype=np.float32) for axis in self._angles)
        chosen = np.unique(np.linspace(0, len(primary) - 1, min(len(primary), _MOST_POINTS)).round().astype(int))
        points = tuple((float(primary[place]), float(secondary[place])) for place in chosen)
        some = "" if len(chosen) == len(primary) else f"; {len(chosen)} of {len(primary)} are drawn"
        return Picture("angles", f"Angles of {len(primary)} views{some}.", points=points)


UNKNOWN = "not known"


def direction(angles: tuple[float, float] | None) -> str:
    """A projection by its two angles in degrees (RAO-/LAO+, CAU-/CRA+), steeper than 10 degrees where named."""
    if angles is None or not all(np.isfinite(angle) for angle in angles):
        return UNKNOWN
    side = "LAO" if angles[0] > 10 else "RAO" if angles[0] < -10 else "AP"
    tilt = " cranial" if angles[1] > 10 else " caudal" if angles[1] < -10 else ""
    return side + tilt


def _range_of(frames: int | None) -> str:
    if frames is None:
        return "not stated"
    for low, high in ((1, 1), (2, 9), (10, 29), (30, 59), (60, 119), (120, 299)):
        if frames <= high:
            return f"{low} to {high}" if low < high else f"{low}"
    return "300 or more"


def meta_view(meta: dict[str, Any], angulation: Any, kind: str) -> ViewSeen:
    """What a shard set says of one stored view."""
    known = [float(angle) for angle in angulation]
    time, source = meta.get("frame_time"), meta.get("key_frame_source")
    return ViewSeen(
        f"stored {kind}",
        frames=meta.get("frames"),
        size=f"{meta['rows']} x {meta['columns']}" if "rows" in meta and "columns" in meta else "",
        rate=1000 / time if time else None,
        angles=None if any(np.isnan(known)) else (known[0], known[1]),
        key_frame=source if source in _KEY_SOURCES else "not stated",
        saturated=meta.get("saturated") is True,
    )
