"""The members of a shard's tar, checked: only what a shard may hold passes."""

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from stence_dist.data.sample import MEMBERS
from stence_dist.errors import DataError


@dataclass(frozen=True)
class Member:
    """One member: `<key>.<name>`, its content's place in the tar, and its CRC-32."""

    key: str
    name: str
    offset: int
    length: int
    crc: int


def scan(path: Path) -> list[Member]:
    """The members of a tar in order. Nothing is extracted or unpickled.

    Raises DataError for a damaged tar, a member that is no regular file (links, folders), or one whose name is not
    `<key>.` and one of `MEMBERS`, e.g. a pickle or a path that leaves the folder.
    """
    members = []
    try:
        with tarfile.open(path, "r:") as archive, open(path, "rb") as file:
            for info in archive:
                key, _, name = info.name.partition(".")
                if not info.isreg():
                    raise DataError(f"member {info.name!r} is no regular file")
                if name not in MEMBERS or not key or not key.replace("-", "").isalnum() or not key.isascii():
                    raise DataError(f"member {info.name!r} does not belong in a shard; expected {', '.join(MEMBERS)}")
                file.seek(info.offset_data)
                content = file.read(info.size)
                members.append(Member(key, name, info.offset_data, info.size, zlib.crc32(content)))
    except tarfile.TarError as error:
        raise DataError(f"not a readable tar ({error}); truncated or damaged") from None
    return members
