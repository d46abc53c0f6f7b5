"""ECG readers, one file per format, chosen by content from the tables below."""

from collections.abc import Callable
from pathlib import Path

from stence_dist.data.readers.ecg.aecg import is_aecg, read_aecg
from stence_dist.data.readers.ecg.arrays import is_npy, is_npz, read_npy, read_npz
from stence_dist.data.readers.ecg.cardiosoft import is_cardiosoft, read_cardiosoft
from stence_dist.data.readers.ecg.dicom_waveform import is_dicom_waveform, read_dicom_waveform
from stence_dist.data.readers.ecg.edf import is_edf, read_edf
from stence_dist.data.readers.ecg.hdf5 import is_hdf5, read_hdf5
from stence_dist.data.readers.ecg.muse import is_muse, read_muse
from stence_dist.data.readers.ecg.philips import is_philips, read_philips
from stence_dist.data.readers.ecg.tensors import is_tensors, read_tensors
from stence_dist.data.readers.ecg.text_table import is_text_table, read_text_table
from stence_dist.data.readers.ecg.waveform import Waveform
from stence_dist.data.readers.ecg.wfdb_record import is_wfdb, read_wfdb
from stence_dist.data.readers.record import ReaderError

_START = 65536  # bytes that a format is known by

Recognizes = Callable[[Path, bytes], bool]  # the path and the first bytes of the file
# name -> (is it this format?, read it). A file of the first table holds one recording; one of the second may hold many.
RECORDINGS: dict[str, tuple[Recognizes, Callable[[Path], Waveform]]] = {
    "WFDB": (is_wfdb, read_wfdb),
    "npz": (is_npz, read_npz),
    "DICOM": (is_dicom_waveform, read_dicom_waveform),
    "EDF": (is_edf, read_edf),
    "GE MUSE XML": (is_muse, read_muse),
    "GE CardioSoft XML": (is_cardiosoft, read_cardiosoft),
    "HL7 aECG": (is_aecg, read_aecg),
    "Philips XML": (is_philips, read_philips),
    "text table": (is_text_table, read_text_table),
}
COLLECTIONS: dict[str, tuple[Recognizes, Callable[[Path, str | None], Waveform]]] = {
    "npy": (is_npy, read_npy),
    "HDF5": (is_hdf5, read_hdf5),
    "pt": (is_tensors, read_tensors),
}


def split_entry(path: Path) -> tuple[Path, str | None]:
    """A recording's file, and the part after `#` that names it there: `all.npy#17`; None where there is none."""
    name, mark, entry = path.name.rpartition("#")
    return (path.with_name(name), entry) if mark and name and not path.exists() else (path, None)


def format_of(path: Path) -> str | None:
    """The name of the format of an ECG file, or of a WFDB record named without `.hea`; None where none is known."""
    start = b""
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(_START)
    for table in (RECORDINGS, COLLECTIONS):
        for name, (recognizes, _) in table.items():
            if recognizes(path, start):
                return name
    return None


def read_waveform(path: Path) -> Waveform:
    """What an ECG file holds, all its leads as they are named there. Raises ReaderError."""
    file, entry = split_entry(path)
    name = format_of(file)
    if name in COLLECTIONS:
        return COLLECTIONS[name][1](file, entry)
    if name in RECORDINGS and entry is None:
        return RECORDINGS[name][1](file)
    if name in RECORDINGS:
        raise ReaderError(f"the part after # names one of many recordings; a file of format {name} holds one.")
    if not file.exists():
        raise ReaderError("the ECG file does not exist.")
    raise ReaderError(f"the ECG file is of no known format; expected {', '.join([*RECORDINGS, *COLLECTIONS])}.")
