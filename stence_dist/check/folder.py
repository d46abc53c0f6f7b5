"""Files of any kind in a folder, or one file: ECGs are read, angiograms by header, the rest is counted.

Files are known by their number in the order of their sorted paths, because a path may name a patient.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from joblib import Parallel, delayed
from tqdm import tqdm

from stence_dist.check import identifiers
from stence_dist.check.findings import NOTE, PROBLEM, WARNING, Result, Section, Table, Tally
from stence_dist.check.pictures import drawn_file, ecg_pictures, run_pictures
from stence_dist.check.recordings import Place, Recordings, read_all
from stence_dist.check.studies import Views, look_at_view
from stence_dist.config.check import CheckConfig
from stence_dist.data.readers.ecg import COLLECTIONS, format_of, read_waveform, split_entry
from stence_dist.data.readers.ecg.declared import UnnumberedError
from stence_dist.data.readers.ecg.wfdb_record import header_of, parts_of
from stence_dist.data.readers.images import fault_of, kind_of
from stence_dist.data.readers.images.memmap import is_declaration
from stence_dist.data.readers.images.views_table import VIEWS_TABLE, ViewNote, read_views_table
from stence_dist.data.readers.lookalike import is_mac_companion
from stence_dist.data.readers.record import ReaderError
from stence_dist.errors import DataError

HINT = "File 12 is the twelfth of the folder: find . -xtype f | LC_ALL=C sort | sed -n 12p"
_NEEDS_SIDECAR = ("npy", "text table")  # arrays of numbers are ECGs where a sidecar says so
_BARE = "tables of numbers without a sidecar"
_SUFFIXES = (".csv", ".txt", ".json", ".pdf", ".md", ".xml", ".zip", ".gz", ".log", ".html", ".parquet", ".xlsx")


@dataclass
class _Contents:
    """What the files of a folder are, each with its label."""

    ecgs: list[tuple[str, Path]] = field(default_factory=list)
    views: list[tuple[str, Path]] = field(default_factory=list)
    others: Tally = field(default_factory=Tally)
    unopened: Tally = field(default_factory=Tally)


def check_folder(path: Path, config: CheckConfig) -> Result:
    """What a folder holds. Raises DataError for one that is empty or cannot be listed."""
    files, closed = _list_files(path)
    if not files:
        raise DataError(f"path={path} holds no file. Give a folder with recordings, a table or a shard set.")
    fields = identifiers.Fields()
    for number, file in enumerate(files, start=1):
        fields.add(identifiers.of_names(file.relative_to(path).parts), identifiers.NAMES, f"file {number}")
    contents = _sort_out(files)
    result = _result("folder", path, contents, fields, len(files), config)
    if closed:
        result.sections[0].add(WARNING, "folders cannot be opened", closed)
    return result


def check_file(path: Path, config: CheckConfig) -> Result:
    """What one file holds: a recording, or all of those in it (`FILE#17`: that one). Raises DataError for any other."""
    fields = identifiers.Fields()
    file, entry = split_entry(path)
    fields.add(identifiers.of_names((file.name,)), identifiers.NAMES, "file 1")
    if entry is not None or not path.is_file():  # one of many recordings; a WFDB record without its suffix
        contents = _Contents(ecgs=[("file 1", path)])
    else:
        contents = _sort_out([path])
    if not (contents.ecgs or contents.views or contents.unopened.counts):
        raise DataError(
            f"path={path} is neither an ECG, nor a picture or run, nor a table of a known kind. Expected a recording, "
            "a folder, a cohort table (CSV, Parquet) or a shard set."
        )
    return _result("file", path.parent, contents, fields, 1, config)


def _list_files(folder: Path) -> tuple[list[Path], int]:
    """The files below a folder by path, and how many folders there could not be listed."""
    failed: list[OSError] = []
    found = [
        Path(place) / name
        for place, _, names in os.walk(folder, onerror=failed.append)
        for name in names
        if (Path(place) / name).is_file()
    ]
    return sorted(found, key=lambda file: os.fsencode(file.relative_to(folder))), len(failed)


def _parts(files: list[Path]) -> set[Path]:
    """The files that are no recording themselves: signals and annotations of WFDB records, sidecars, declarations."""
    headers = [file for file in files if file.suffix == ".hea"]
    stems = {header.with_suffix("") for header in headers}
    parts = {file for file in files if file.suffix != ".hea" and {file, file.with_suffix("")} & stems}
    for header in headers:
        try:
            parts |= parts_of(header)
        except (OSError, ValueError):  # a file that cannot be opened, or names that no file can have
            continue  # whoever reads the record says so
    named = {file.with_suffix("") for file in files if file.suffix not in (".json", ".hea")}
    for file in files:
        sidecar = file.suffix == ".json" and file.with_suffix("") in named
        if sidecar or file.name == VIEWS_TABLE or is_declaration(file):
            parts.add(file)
    return parts


def _is_bare_array(path: Path) -> bool:
    """Whether a file is an array or a table of numbers that nothing declares to be an ECG."""
    return format_of(path) in _NEEDS_SIDECAR and not path.with_suffix(".json").is_file()


def _recordings_of(label: str, path: Path) -> list[tuple[str, Path]]:
    """A file's recordings; the file itself where it holds one, or where reading it will say what is wrong."""
    if format_of(path) not in COLLECTIONS:
        return [(label, path)]
    try:
        read_waveform(path)
    except UnnumberedError as error:
        return [(f"{label} #{number}", path.with_name(f"{path.name}#{number}")) for number in range(error.count)]
    except Exception:
        return [(label, path)]
    return [(label, path)]


def _sort_out(files: list[Path]) -> _Contents:
    contents = _Contents()
    parts = _parts([file for file in files if not is_mac_companion(file)])
    for number, file in enumerate(tqdm(files, unit="file", disable=None), start=1):
        label = f"file {number}"
        try:
            if is_mac_companion(file):
                contents.others.add("companions of macOS (._NAME, __MACOSX)")
            elif file in parts:
                contents.others.add("parts of recordings (signals, annotations, sidecars)")
            elif format_of(file) is not None and not _is_bare_array(file):
                contents.ecgs += _recordings_of(label, file)
            elif kind_of(file) is not None or fault_of(file) is not None:
                contents.views.append((label, file))
            elif format_of(file) is not None:
                contents.others.add(_BARE)
            else:
                suffix = file.suffix.lower()
                contents.others.add(suffix if suffix in _SUFFIXES else "any other", label)
        except OSError as error:
            contents.unopened.add(f"a file cannot be opened ({error.strerror})", label)
        except Exception as error:  # whoever recognizes a format meets damaged files first
            contents.unopened.add(f"a file is damaged beyond recognition ({type(error).__name__})", label)
    return contents


def _spread(items: list[tuple[str, Path]], limit: int | None) -> list[tuple[str, Path]]:
    """At most `limit` items, evenly spread."""
    if limit is None or limit >= len(items):
        return items
    return [items[place * len(items) // limit] for place in range(limit)]


class _Notes:
    """The views.csv of the folders below `root`, each read once, and what is wrong with them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tables: dict[Path, dict[str, ViewNote] | None] = {}
        self.failed = Tally()

    def of(self, file: Path, label: str) -> ViewNote | None:
        """What the table nearest to a file says of it: that of its own folder, or of one above, as a study has it."""
        for folder in file.parents:
            if folder not in self._tables:
                self._tables[folder] = self._read(folder, label)
            table = self._tables[folder]
            if table is not None:
                return table.get(file.relative_to(folder).as_posix())
            if folder == self._root:
                break
        return None

    def _read(self, folder: Path, label: str) -> dict[str, ViewNote] | None:
        try:
            return read_views_table(folder) if (folder / VIEWS_TABLE).is_file() else None
        except (ReaderError, OSError):
            self.failed.add("views.csv cannot be read; expected the columns file,key_frame,primary,secondary", label)
            return {}


def _read_views(root: Path, items: list[tuple[str, Path]], views: Views, workers: int) -> Tally:
    """Look at the header of every view and count it; what is wrong with tables of angles."""
    tables = _Notes(root)
    notes = [tables.of(path, label) for label, path in items]
    looks = Parallel(n_jobs=workers, return_as="generator")(
        delayed(look_at_view)(path, note) for (_, path), note in zip(items, notes, strict=True)
    )
    with tqdm(total=len(items), unit="view", disable=None) as bar:
        for (label, path), view in zip(items, looks, strict=True):
            if view is not None:
                views.add(Place(label, path), view, path)
            bar.update()
    return tables.failed


def _result(
    kind: str, root: Path, contents: _Contents, fields: identifiers.Fields, files: int, config: CheckConfig
) -> Result:
    recordings, views = Recordings(fields), Views(fields)
    ecgs, seen = _spread(contents.ecgs, config.limit), _spread(contents.views, config.limit)
    read_all([(Place(label, path), path) for label, path in ecgs], recordings, config.workers)
    tables = _read_views(root, seen, views, config.workers)
    counts = {"ECGs": len(contents.ecgs), "views and other DICOM files": len(contents.views)}
    overview = Section("files", "Files")
    rows = [*counts.items(), *contents.others.ordered()]
    overview.tables.append(Table("By content", ("content", "files or recordings"), rows))
    for tally in (contents.unopened, tables):
        for what, count in tally.ordered():
            overview.add(WARNING, what, count, tally.places(what))
    bare = contents.others.counts[_BARE]
    if bare:
        overview.add(NOTE, "tables of numbers: ECGs only with a sidecar .json (sampling_rate, unit, leads)", bare)
    if len(ecgs) < len(contents.ecgs) or len(seen) < len(contents.views):
        text = f"limit={config.limit}: {len(ecgs)} ECGs and {len(seen)} views were looked at, evenly spread"
        overview.add(NOTE, text)
    if not recordings.usable and not views.count:
        overview.add(PROBLEM, "nothing here can be used: neither an ECG nor a view is readable")
    sections = [overview, recordings.section(), views.section(), fields.section()]
    if config.out is not None:
        sections[1].pictures += ecg_pictures(recordings.examples, drawn_file)
        sections[2].pictures += run_pictures(views.shown)
    return Result(kind, {"files": files, **counts}, sections, HINT if kind == "folder" else "")


def is_recording(path: Path) -> bool:
    """Whether `path` names something that a reader of ECGs knows: a file, a WFDB record, one of many in a file."""
    file, _ = split_entry(path)
    return file.is_file() or header_of(file).is_file()
