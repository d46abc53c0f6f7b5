"""Readers: one file per format, chosen by content from the tables below."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from stence_dist.data.frames import FrameSettings
from stence_dist.data.readers.arrays import is_array, read_array
from stence_dist.data.readers.record import EcgRecord, ImageStudy, ReaderError, View
from stence_dist.data.readers.views_table import VIEWS_TABLE
from stence_dist.data.readers.wfdb_reader import is_wfdb, read_wfdb
from stence_dist.errors import RefusedError

__all__ = ["ECG_READERS", "EcgRecord", "ImageStudy", "ReaderError", "View", "read_ecg", "read_study"]

# name -> (does the file hold this format?, read it: (path, wfdb_scale) -> EcgRecord)
ECG_READERS: dict[str, tuple[Callable[[Path], bool], Callable[[Path, str], EcgRecord]]] = {
    "WFDB": (is_wfdb, read_wfdb),
    ".npy/.npz": (is_array, read_array),
}


@contextlib.contextmanager
def _only_reader_errors(field: str) -> Iterator[None]:
    """Turn whatever a reader raises on a file that nobody foresaw into a ReaderError: one file never ends a build."""
    try:
        yield
    except RefusedError:
        raise
    except OSError as error:
        raise ReaderError(f"a file cannot be opened ({error.strerror}).", field) from None
    except Exception as error:
        raise ReaderError(f"the file is damaged or of an unusual make ({type(error).__name__}).", field) from error


def read_ecg(path: Path, *, wfdb_scale: str = "auto") -> EcgRecord:
    """The 12 leads of an ECG file, or of a WFDB record named with or without `.hea`, quantized as shards store them.

    Raises ReaderError, whose message holds no path.
    """
    with _only_reader_errors("ecg_path"):
        for recognizes, read in ECG_READERS.values():
            if recognizes(path):
                return read(path, wfdb_scale)
        if not path.exists():
            raise ReaderError("the ECG file does not exist.")
    raise ReaderError(f"the ECG file is of no known format; expected {' or '.join(ECG_READERS)}.")


def read_study(path: Path, settings: FrameSettings) -> ImageStudy:
    """The views of a study: a folder (searched recursively) of DICOM runs or of stored features, or one such file.

    Files are known by content; what is neither is counted. Raises ReaderError.
    """
    with _only_reader_errors("study_path"):
        return _read_study(path, settings)


def _read_study(path: Path, settings: FrameSettings) -> ImageStudy:
    # pydicom and torch take a second to import; a cohort of ECGs alone needs neither.
    from stence_dist.data.readers.dicom_xa import is_dicom, read_runs
    from stence_dist.data.readers.features import is_features, read_features

    if not path.exists():
        raise ReaderError("the study folder does not exist.", "study_path")
    folder = path if path.is_dir() else path.parent
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in found if file.is_file() and file.name != VIEWS_TABLE]
    dicoms = [file for file in files if is_dicom(file)]
    features = [file for file in files if is_features(file)]
    damaged = [file for file in files if file.suffix.lower() in (".dcm", ".dicom") and file not in dicoms]
    if damaged:
        raise ReaderError(f"{len(damaged)} files end in .dcm and hold no DICOM header; damaged?", "study_path")
    if dicoms and features:
        raise ReaderError("the study holds DICOM runs and stored features; the two do not mix.", "study_path")
    if dicoms:
        study = read_runs(folder, dicoms, settings)
    elif features:
        study = read_features(folder, features)
    else:
        raise ReaderError(f"zero views: none of {len(files)} files is a DICOM run or stored features.", "study_path")
    others = len(files) - len(dicoms) - len(features) + study.others
    return ImageStudy(study.kind, study.views, others, study.dtype)
