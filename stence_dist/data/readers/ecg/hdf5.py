"""ECGs in HDF5, read by h5py (extra `hdf5`): one row of one dataset, whatever the file's size.

SPH (Liu et al. 2022, https://doi.org/10.1038/s41597-022-01403-5): `ecg` (12, T) float16 in mV at 500 Hz.
CODE-15 (https://zenodo.org/records/4916206): `tracings` (N, 4096, 12) at 400 Hz beside `exam_id` (N,), padded with
zeros at both ends; a recording is named by row (`FILE.hdf5#17`) or by exam (`FILE.hdf5#id=12345`). Its unit is not
known: that page states none, and the authors' model description says 1e-4 V beside a factor that means 1 mV
(https://github.com/antonior92/automatic-ecg-diagnosis/issues/10). So `FILE.json` {"unit": "mV"} must declare it.
Any other file needs a sidecar `FILE.json` with sampling_rate, unit and leads, "dataset" where there are several, and
"axes": "samples_leads" where samples come first.
"""

import itertools
import math
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.ecg.declared import Declared, entry_number, read_sidecar
from stence_dist.data.readers.ecg.waveform import Waveform, check_size
from stence_dist.data.readers.record import ReaderError
from stence_dist.ecg import LEADS

_MAGIC = b"\x89HDF\r\n\x1a\n"
_PADDED = "tracings"  # the name under which the CODE study publishes recordings padded to one length
_EXAMS = "exam_id"
# I, II, III, aVR, ... is the order of LEADS in both.
_SPH = {"sampling_rate": 500, "unit": "mV", "leads": LEADS}
_CODE15 = {"sampling_rate": 400, "leads": LEADS, "axes": "samples_leads"}
# Codes of the HDF5 filters that h5py brings and that do not need to be loaded as plug-ins.
_DEFLATE, _SHUFFLE, _CHECKSUM, _LZF = 1, 2, 3, 32000
_LARGEST_CHUNK = 2**27  # bytes: a chunk is unpacked as a whole, however little of it is wanted
_MOST_CHUNKS = 10_000  # of one recording


def is_hdf5(path: Path, start: bytes) -> bool:
    """Whether a file is HDF5, by its first bytes."""
    return start.startswith(_MAGIC)


def read_hdf5(path: Path, entry: str | None) -> Waveform:
    """One recording of an HDF5 file. Raises ReaderError."""
    try:
        h5py: Any = import_module("h5py")
    except ImportError:
        raise ReaderError('HDF5 files need h5py: pip install "stence_dist[hdf5]".') from None
    try:
        with h5py.File(path, "r") as file:
            return _read(h5py, file, path, entry)
    except ReaderError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise ReaderError(f"the HDF5 file cannot be read ({type(error).__name__}); is it damaged?") from None


def _read(h5py: Any, file: Any, path: Path, entry: str | None) -> Waveform:
    fields = read_sidecar(path) if path.with_suffix(".json").is_file() else {}
    members = list(file)
    exams = _dataset(h5py, file, _EXAMS) if _EXAMS in members else None
    name = str(fields.get("dataset") or _only(members)).strip("/")
    dataset = _dataset(h5py, file, name)
    if not fields and name == "ecg" and dataset.dtype == np.float16 and dataset.shape[:1] == (len(LEADS),):
        fields = _SPH
    elif name == _PADDED and exams is not None:
        fields = _CODE15 | fields
        if "unit" not in fields:
            raise ReaderError(
                'the unit of CODE-15 is not known; declare it in a sidecar of the same name: {"unit": "mV"}, and see'
                " the documentation of this format."
            )
    declared = Declared.parse(fields or read_sidecar(path), "the sidecar .json")
    recording = _values(dataset, _row(dataset, exams, entry))
    if name == _PADDED:
        recording = _trim(recording, declared.axes)
    return declared.waveform(recording)


def _member(h5py: Any, group: Any, name: str) -> Any:
    """A member of a group of this very file. Raises ReaderError for a link that leads elsewhere, or to nothing."""
    # By the link itself: h5py's own tests for a name follow it, into another file too.
    links = group.id.links if isinstance(group, h5py.Group) else None
    if links is None or not name or not links.exists(name.encode()):
        raise ReaderError("the HDF5 file does not hold the dataset that its sidecar names.")
    if links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise ReaderError("the HDF5 dataset is a soft or external link; only what lies in the file itself is read.")
    return group[name]


def _dataset(h5py: Any, file: Any, name: str) -> Any:
    """A dataset of numbers that lie in this very file. Raises ReaderError."""
    found = file
    for part in name.split("/"):
        found = _member(h5py, found, part)
    if not isinstance(found, h5py.Dataset):
        raise ReaderError("the HDF5 file holds a group where a dataset is expected.")
    if found.is_virtual or found.external:
        raise ReaderError("the HDF5 dataset's values lie in other files; only what lies in the file itself is read.")
    if found.dtype.kind not in "iuf":
        raise ReaderError("the HDF5 dataset holds objects, texts or compounds; expected integers or floats.")
    filters = _filters(found)
    if not set(filters) <= {_DEFLATE, _SHUFFLE, _CHECKSUM, _LZF} or len(set(filters)) != len(filters):
        raise ReaderError("the HDF5 dataset is packed by an unusual filter; repack it: h5repack -f SHUF -f GZIP=4.")
    if found.chunks and math.prod(found.chunks) * found.dtype.itemsize > _LARGEST_CHUNK:
        raise ReaderError(
            f"the HDF5 dataset has chunks of {math.prod(found.chunks)} values; repack it in smaller ones, e.g. one"
            " recording each."
        )
    return found


def _filters(dataset: Any) -> list[int]:
    """The codes of the filters that a dataset's chunks went through, first to last."""
    settings = dataset.id.get_create_plist()
    return [settings.get_filter(number)[0] for number in range(settings.get_nfilters())]


def _only(members: list[str]) -> str:
    """The name of the one dataset of a file, exam numbers aside. Raises ReaderError where there are several."""
    names = [name for name in members if name != _EXAMS]
    if len(names) != 1:
        raise ReaderError(f'the HDF5 file holds {len(names)} members; name one in the sidecar .json as "dataset".')
    return names[0]


def _row(dataset: Any, exams: Any, entry: str | None) -> int | None:
    """Which row of a dataset `entry` names, by number or by exam; None where the dataset is one recording."""
    if len(dataset.shape) == 2:
        if entry is not None:
            raise ReaderError(f"the HDF5 dataset of shape {dataset.shape} is one recording; name the file without #.")
        return None
    if len(dataset.shape) != 3:
        raise ReaderError(
            f"the HDF5 dataset has shape {dataset.shape}; expected (leads, samples) or (recordings, leads, samples)."
        )
    if entry is None or not entry.startswith("id=") or exams is None:
        return entry_number(entry, dataset.shape[0])
    exam = entry.removeprefix("id=")
    if exams.shape != dataset.shape[:1] or exams.dtype.kind not in "iu":
        raise ReaderError(
            f"{_EXAMS} has shape {exams.shape}; expected one integer for each of {dataset.shape[0]} rows."
        )
    rows = np.flatnonzero(_values(exams, None) == int(exam)) if exam.isdecimal() else np.zeros(0)
    if len(rows) != 1:
        raise ReaderError(f"{len(rows)} rows of the HDF5 file have that {_EXAMS}; expected one.")
    return int(rows[0])


def _values(dataset: Any, row: int | None) -> NDArray[Any]:
    """A dataset's values, or those of one row. Raises ReaderError for more than any ECG has, before they are read."""
    shape = dataset.shape if row is None else dataset.shape[1:]
    check_size(1, math.prod(shape))
    if dataset.chunks:
        _check_packed(dataset, row)
    return np.asarray(dataset[()] if row is None else dataset[row])


def _check_packed(dataset: Any, row: int | None) -> None:
    """Refuse deflated chunks that inflate to more than a chunk has: HDF5 itself would go on as far as they do."""
    filters = _filters(dataset)
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    starts = [range(0, length, step) for length, step in zip(dataset.shape, dataset.chunks, strict=True)]
    if row is not None:
        starts[0] = starts[0][row // dataset.chunks[0] :][:1]
    if math.prod(map(len, starts)) > _MOST_CHUNKS:
        raise ReaderError("the HDF5 dataset has too many chunks; repack it in larger ones, e.g. one recording each.")
    for start in itertools.product(*starts) if _DEFLATE in filters else ():
        if dataset.id.get_chunk_info_by_coord(start).byte_offset is None:
            continue  # never written
        skipped, packed = dataset.id.read_direct_chunk(start)
        if skipped >> filters.index(_DEFLATE) & 1:
            continue  # stored as it is, because it did not shrink
        if len(zlib.decompressobj().decompress(packed, size + 1)) > size:
            raise ReaderError("a chunk of the HDF5 dataset is damaged: it holds more than its header states.")


def _trim(recording: NDArray[Any], axes: str) -> NDArray[Any]:
    """A recording without the samples before and after it that are zero in all leads."""
    samples = 0 if axes == "samples_leads" else 1
    there = np.flatnonzero(recording.any(axis=1 - samples))
    if not there.size:
        raise ReaderError("the recording is zero throughout; it is padding, not an ECG.")
    inside = slice(int(there[0]), int(there[-1]) + 1)
    return recording[inside] if samples == 0 else recording[:, inside]
