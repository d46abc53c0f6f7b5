"""ECGs in numpy files, with declared rate, unit and lead order.

`FILE.npy` with a sidecar `FILE.json` {"sampling_rate": 500, "unit": "mV", "leads": ["I", ...]}, or `FILE.npz` with the
entries `signal`, `sampling_rate`, `unit`, `leads`. One recording is (leads, samples); many, in .npy only, are
(recordings, leads, samples) and are named `FILE.npy#17`, from 0. "axes": "samples_leads" turns the last two.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.ecg.declared import FIELDS, Declared, entry_number, read_sidecar
from stence_dist.data.readers.ecg.waveform import Waveform, check_size
from stence_dist.data.readers.npy import NPY_MAGIC, map_npy
from stence_dist.data.readers.record import MAX_VALUES, ReaderError

_NPZ_MAGIC = b"PK\x03\x04"
_ENTRIES = ("signal", *FIELDS)


def is_npy(path: Path, start: bytes) -> bool:
    """Whether a file is a .npy file, by its first bytes."""
    return start.startswith(NPY_MAGIC)


def is_npz(path: Path, start: bytes) -> bool:
    """Whether a file is a .npz file: a zip archive of .npy files."""
    if not start.startswith(_NPZ_MAGIC) or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def read_npy(path: Path, entry: str | None) -> Waveform:
    """One recording of a .npy file and its sidecar. Raises ReaderError."""
    declared = Declared.parse(read_sidecar(path), "the sidecar .json")
    array = map_npy(path, "ecg_path")
    if array.ndim == 3:
        array = array[entry_number(entry, len(array))]
    elif entry is not None:
        raise ReaderError(f"recording #{entry[:20]} of an array of shape {array.shape}; it holds one.")
    check_size(1, array.size)
    return declared.waveform(np.array(array))


def read_npz(path: Path) -> Waveform:
    """The recording of a .npz file. Raises ReaderError."""
    entries = _load_npz(path)
    return Declared.parse(entries, "the .npz file").waveform(entries["signal"])


def _load_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > 8 * MAX_VALUES:
            raise ReaderError(f"the .npz file unpacks to {size} bytes; at most {8 * MAX_VALUES} are read.")
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in _ENTRIES if name not in archive]
            if missing:
                raise ReaderError(f"the .npz file lacks {', '.join(missing)}; expected {', '.join(_ENTRIES)}.")
            return {name: archive[name] for name in (*_ENTRIES, "axes") if name in archive}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile):
        raise ReaderError("the .npz file is truncated, damaged, or holds Python objects.") from None
