"""Files that look like data and are not to be read."""

from pathlib import Path

# How the UIDs of SOP classes go on after `_STORAGE`: of X-ray images, and of the ECGs among the waveforms.
XRAY_CLASSES, ECG_CLASSES = b"12.", b"9.1."
HEADLESS = "a DICOM file lacks its header (preamble); rewrite it, e.g. with dcmtk: dcmconv +F IN OUT."
_STORAGE = b"1.2.840.10008.5.1.4.1.1."
_SEARCHED = 1024  # bytes


def is_mac_companion(path: Path) -> bool:
    """Whether a file is what macOS writes beside another on foreign disks and in archives: `._NAME`, or `__MACOSX/`.

    It holds attributes of that file, never its content, and ends as it does.
    """
    return path.name.startswith("._") or "__MACOSX" in path.parts


def is_headless(start: bytes, classes: bytes) -> bool:
    """Whether a file is DICOM of these classes without preamble and `DICM`, by its first bytes.

    Such files were cut out of a network transfer or written for old viewers. None is read: without its meta
    information nothing says how the values are stored. Classes beyond the first are of objects that it refers to.
    """
    if not start.startswith((b"\x08\0", b"\x02\0")):
        return False
    return start[:_SEARCHED].partition(_STORAGE)[2].startswith(classes)
