"""Readers of imaging studies, one file per format, chosen by content."""

from pathlib import Path

from stence_dist.data.frames import FrameSettings
from stence_dist.data.readers.images.views_table import VIEWS_TABLE
from stence_dist.data.readers.record import ImageStudy, ReaderError


def read_views(path: Path, settings: FrameSettings) -> ImageStudy:
    """The views of a study: a folder (searched recursively) of DICOM runs or of stored features, or one such file.

    Files are known by content; what is neither is counted. Raises ReaderError.
    """
    # pydicom and torch take a second to import; a cohort of ECGs alone needs neither.
    from stence_dist.data.readers.images.dicom_xa import is_dicom, read_runs
    from stence_dist.data.readers.images.features import is_features, read_features

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
