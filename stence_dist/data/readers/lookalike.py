"""Files that look like data and are not to be read."""

from pathlib import Path


def is_mac_companion(path: Path) -> bool:
    """Whether a file is what macOS writes beside another on foreign disks and in archives: `._NAME`, or `__MACOSX/`.

    It holds attributes of that file, never its content, and ends as it does.
    """
    return path.name.startswith("._") or "__MACOSX" in path.parts
