"""Readers of imaging studies, one file per format, chosen by content."""

from collections.abc import Callable
from pathlib import Path

from stence_dist.data.frames import FrameSettings
from stence_dist.data.readers.images.memmap import is_declaration
from stence_dist.data.readers.images.views_table import VIEWS_TABLE
from stence_dist.data.readers.lookalike import HEADLESS, XRAY_CLASSES, is_headless, is_mac_companion
from stence_dist.data.readers.record import ImageStudy, study_error

_START = 65536  # bytes that a format is known by

Recognizes = Callable[[Path, bytes], bool]  # the path and the first bytes of the file
Reads = Callable[[Path, list[Path], FrameSettings], ImageStudy]  # the folder and those of its files that are its own


DICOM, PICTURES, FEATURES = "DICOM images", "pictures", "stored features"
FRAME_MAPS, TOKEN_MAPS = "memory maps of frames", "memory maps of tokens"


def _kinds() -> dict[str, tuple[Recognizes, Reads]]:
    """name -> (is a file of this kind?, read them all). The first that knows a file has it."""
    # pydicom takes a second to import; a cohort of ECGs alone does not need it.
    from stence_dist.data.readers.images.dicom_file import is_dicom
    from stence_dist.data.readers.images.dicom_xa import read_runs
    from stence_dist.data.readers.images.features import is_features, read_features
    from stence_dist.data.readers.images.memmap import is_frame_map, is_token_map, read_frame_maps, read_token_map
    from stence_dist.data.readers.images.pictures import is_picture, read_pictures

    return {
        DICOM: (is_dicom, read_runs),
        PICTURES: (is_picture, read_pictures),
        FEATURES: (is_features, read_features),
        FRAME_MAPS: (is_frame_map, read_frame_maps),
        TOKEN_MAPS: (is_token_map, read_token_map),
    }


def kind_of(path: Path) -> str | None:
    """Which kind of view a file is, by its content; None for any other file."""
    with open(path, "rb") as file:
        start = file.read(_START)
    return next((name for name, (recognizes, _) in _kinds().items() if recognizes(path, start)), None)


def fault_of(path: Path) -> str | None:
    """What is wrong with a file that is of no kind and should be DICOM; None for any other file."""
    with open(path, "rb") as file:
        start = file.read(_START)
    if is_headless(start, XRAY_CLASSES):
        return HEADLESS
    if path.suffix.lower() in (".dcm", ".dicom") and not is_headless(start, b""):  # an object of another class
        return "a file ends in .dcm and holds no DICOM header; damaged?"
    return None


def study_files(path: Path) -> list[Path]:
    """The files of a study that may be views: all of a folder, searched recursively, or the one file."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    own = [file for file in found if file.is_file() and not is_mac_companion(file)]
    return [file for file in own if file.name != VIEWS_TABLE and not is_declaration(file)]


def _members(files: list[Path]) -> dict[str, list[Path]]:
    """The files of each kind that is there, in the order of `files`. Raises ReaderError for a damaged DICOM file."""
    members: dict[str, list[Path]] = {}
    for file in files:
        name = kind_of(file)
        if name is not None:
            members.setdefault(name, []).append(file)
        elif fault := fault_of(file):
            raise study_error(fault)
    return members


def _holds_run(paths: list[Path]) -> bool:
    """Whether any of these DICOM files is a run. Raises ReaderError for a damaged one before it."""
    from stence_dist.data.readers.images.dicom_file import is_run

    return any(map(is_run, paths))


def read_views(path: Path, settings: FrameSettings) -> ImageStudy:
    """The views of a study: a folder (searched recursively) of files of one kind, or one such file.

    Files are known by content; what is of no kind is counted. Kinds do not mix in a study, as one is often made from
    the other: features come from frames. Pictures beside runs in DICOM are counted, too: they are icons of a viewer,
    thumbnails or reports. Raises ReaderError.
    """
    if not path.exists():
        raise study_error("the study folder does not exist.")
    folder = path if path.is_dir() else path.parent
    files = study_files(path)
    kinds = _kinds()
    members = _members(files)
    if not members:
        raise study_error(f"zero views: none of {len(files)} files is of a known kind.")
    if members.keys() == {DICOM, PICTURES} and _holds_run(members[DICOM]):
        del members[PICTURES]
    if len(members) > 1:
        counts = " and ".join(f"{len(members[name])} {name}" for name in kinds if name in members)
        raise study_error(
            f"the study holds {counts}; one kind only, as a picture may be a thumbnail or a report of a run, and "
            "features come from frames. Move the others elsewhere."
        )
    name, own = members.popitem()
    study = kinds[name][1](folder, own, settings)
    return ImageStudy(study.kind, study.views, len(files) - len(own) + study.others, study.dtype)
