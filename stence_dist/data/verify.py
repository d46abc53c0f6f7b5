"""The examination of a whole shard set: every name, size, CRC-32 and sha256."""

import hashlib
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.index import list_problems, read_index
from stence_dist.data.sample import MEMBERS, sample_key
from stence_dist.data.sidecar import load_sidecar, sidecar_name
from stence_dist.data.tar import scan
from stence_dist.errors import CheckFailedError, DataError
from stence_dist.files import refuse_pipe, sha256_file

log = logging.getLogger("stence_dist")


def verify(folder: str | Path) -> None:
    """Return when the set in `folder` is whole; else raise CheckFailedError with every problem found.

    Raises DataError where there is no such folder.
    """
    folder = refuse_pipe(folder, "verify").absolute()
    if not folder.is_dir():
        raise DataError(f"verify={folder} is not a folder. Give the folder of a shard set.")
    try:
        index = read_index(folder)
    except DataError as error:
        raise CheckFailedError(str(error)) from None
    problems = list_problems(folder, index)
    for shard in index["shards"]:
        problems += [f"{shard['name']}: {problem}" for problem in _shard_problems(folder, shard, len(index["columns"]))]
    if problems:
        raise CheckFailedError(
            f"{folder} has {len(problems)} problems:\n  " + "\n  ".join(problems) + "\nCopy or build the set again."
        )
    log.info("%s is whole: %d shards, %d samples", folder, len(index["shards"]), sum(index["samples"].values()))


def _shard_problems(folder: Path, shard: dict[str, Any], columns: int) -> list[str]:
    """What is wrong with the content of one shard and its sidecar; absent files are reported elsewhere."""
    tar, sidecar = folder / shard["name"], folder / sidecar_name(shard["name"])
    if not all(path.is_file() and not path.is_symlink() for path in (tar, sidecar)):
        return []
    problems = []
    if sha256_file(tar) != shard["sha256"]:
        problems.append("its sha256 differs from the index")
    content = sidecar.read_bytes()
    if hashlib.sha256(content).hexdigest() != shard["sidecar_sha256"] or zlib.crc32(content) != shard["sidecar_crc32"]:
        return [*problems, f"the sha256 of {sidecar.name} differs from the index"]
    try:
        problems += _member_problems(tar, load_sidecar(content, sidecar.name, columns), shard["split"])
    except DataError as error:
        problems.append(str(error))
    return problems


def _member_problems(tar: Path, entries: NDArray[np.void], split: str) -> list[str]:
    """Where the members of a tar and the entries of its sidecar disagree."""
    expected = {
        (sample_key(split, int(entry["sample"])), name): (int(offset), int(length), int(crc))
        for entry in entries
        for name, offset, length, crc in zip(MEMBERS, entry["offset"], entry["length"], entry["crc"], strict=True)
        if length
    }
    found = {(member.key, member.name): (member.offset, member.length, member.crc) for member in scan(tar)}
    problems = []
    for key, name in sorted(expected.keys() | found.keys()):
        if (key, name) not in found:
            problems.append(f"member {key}.{name} is missing")
        elif (key, name) not in expected:
            problems.append(f"member {key}.{name} is not in the index")
        elif found[key, name] != expected[key, name]:
            problems.append(f"member {key}.{name} differs from the index (place, length or CRC-32)")
    return problems
