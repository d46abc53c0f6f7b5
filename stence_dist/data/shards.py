"""The reader of a shard set: every member by its place, without parsing a tar."""

import bisect
import itertools
import os
import zlib
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from stence_dist.data.index import SPLITS, DatasetSpec, list_problems, read_index
from stence_dist.data.memory import LentMemory
from stence_dist.data.sample import MEMBERS, Buffer, StoredSample, decode
from stence_dist.data.sidecar import SampleTable, load_sidecar, sidecar_name, sidecar_type
from stence_dist.errors import DataError
from stence_dist.files import refuse_pipe

_OPEN_SHARDS = 200  # descriptors kept per process; the usual limit is 1024
# Bytes up to which a sample's members are read in one piece, with the tar headers between them and what is not wanted:
# a call costs as much as copying so little.
_READ_TOGETHER = 2**17
_memory = LentMemory(2**29)


class _OpenShard:
    """One shard's descriptor and sidecar; the descriptor closes with the last reader that holds the object."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.descriptor = os.open(folder / name, os.O_RDONLY)
        entries = np.load(folder / sidecar_name(name), mmap_mode="r", allow_pickle=False)
        self.sample = entries["sample"]
        # One plain row per sample: taking a row of the structured table apart costs more than reading its members.
        self._places = np.concatenate([entries[name].astype(np.int64) for name in ("offset", "length", "crc")], axis=1)

    def places(self, row: int) -> list[tuple[str, int, int, int]]:
        """(name, offset, length, CRC-32) of a row's members; an absent one has length 0."""
        values, count = self._places[row].tolist(), len(MEMBERS)
        return list(zip(MEMBERS, values[:count], values[count : 2 * count], values[2 * count :], strict=True))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _shallow_problems(folder: Path, shard: dict[str, Any], columns: int) -> list[str]:
    """What the sidecar and the tail of one shard show: a foreign sidecar, and members that the sidecar does not know.

    A tar ends in up to 20 blocks of zeros, so that another tool can add a member without changing the file's size.
    """
    name = sidecar_name(shard["name"])
    content = (folder / name).read_bytes()
    if zlib.crc32(content) != shard["sidecar_crc32"]:
        return [f"{name} is damaged or of another set (its CRC-32 differs from the index)"]
    entries = load_sidecar(content, name, columns)
    end = int((entries["offset"] + entries["length"]).max(initial=0))
    with open(folder / shard["name"], "rb") as file:
        file.seek(end)
        tail = file.read()
    return [f"{shard['name']} holds more than its sidecar lists: an added member?"] if any(tail) else []


class ShardSet:
    """The reader of one shard set. Safe across threads and processes; pickles without open files."""

    def __init__(self, folder: Path, index: dict[str, Any], dataset: DatasetSpec) -> None:
        self.folder = folder
        self.fingerprint: str = index["fingerprint"]
        self.dataset = dataset
        self.sites: tuple[str, ...] = tuple(index["sites"])
        self.devices: tuple[str, ...] = tuple(index["devices"])
        self.columns: tuple[str, ...] = tuple(index["columns"])
        self._shards: dict[str, list[tuple[str, int]]] = {
            split: [(shard["name"], shard["samples"]) for shard in index["shards"] if shard["split"] == split]
            for split in SPLITS
        }
        self._starts = {
            split: list(itertools.accumulate((count for _, count in self._shards[split]), initial=0))
            for split in SPLITS
        }
        self._reset()

    def _reset(self) -> None:
        self._lock = Lock()
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._tables: dict[str, SampleTable] = {}

    @classmethod
    def open(cls, folder: str | Path) -> "ShardSet":
        """The set in `folder`, after a check of format, fingerprint, names, sizes and sidecars. Raises DataError."""
        folder = refuse_pipe(folder, "data.shards").absolute()
        index = read_index(folder)
        problems = list_problems(folder, index)
        if not problems:
            problems = [
                problem
                for shard in index["shards"]
                for problem in _shallow_problems(folder, shard, len(index["columns"]))
            ]
        if problems:
            more = f" ({len(problems) - 5} more; list all: python shards/build.py verify={folder})"
            raise DataError(
                f"{folder} is not the set that its index describes: {'; '.join(problems[:5])}"
                f"{more if len(problems) > 5 else ''}. Copy or build the set again."
            )
        return cls(folder, index, DatasetSpec.from_dict(index["dataset"]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_open", "_tables")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def table(self, split: str) -> SampleTable:
        """The rows of one split ("train", "val" or "test")."""
        if split not in self._tables:
            count, kind = len(self.columns), sidecar_type(len(self.columns))
            parts = [
                load_sidecar((self.folder / sidecar_name(name)).read_bytes(), sidecar_name(name), count)
                for name, _ in self._shards[split]
            ]
            plain = [part.view(np.uint8) for part in parts]  # joined as bytes: by columns it takes ten times as long
            entries = np.concatenate(plain).view(kind) if parts else np.zeros(0, dtype=kind)
            self._tables[split] = SampleTable(entries, self.sites, self.devices, self.columns)
        return self._tables[split]

    def _shard(self, name: str) -> _OpenShard:
        with self._lock:
            if name not in self._open:
                self._open[name] = _OpenShard(self.folder, name)
                if len(self._open) > _OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(name)
            return self._open[name]

    def read(self, split: str, row: int, *, views: bool = True, verify: bool = False) -> StoredSample:
        """Row `row` of a split's table; `views=False` leaves its images on disk, `verify=True` checks the CRC-32s.

        Raises DataError that names shard and sample where the bytes are not those that were built.
        """
        shard, place = self._find(split, row)
        try:
            return decode(_read_members(shard.descriptor, shard.places(place), views=views, verify=verify))
        except DataError as error:
            raise DataError(
                f"{shard.name}, sample {shard.sample[place]}: {error}. "
                f"The shard is damaged; see python shards/build.py verify={self.folder}, then copy or build it again."
            ) from None

    def read_members(self, split: str, row: int) -> dict[str, Buffer]:
        """The stored bytes of row `row` by member name, not decoded, not verified."""
        shard, place = self._find(split, row)
        return _read_members(shard.descriptor, shard.places(place), views=True, verify=False)

    def _find(self, split: str, row: int) -> tuple[_OpenShard, int]:
        """The shard that holds a row of a split, and the row's place in it."""
        starts = self._starts[split]
        if not 0 <= row < starts[-1]:
            raise IndexError(f"row {row} of {starts[-1]} in split {split}")
        number = bisect.bisect_right(starts, row) - 1
        return self._shard(self._shards[split][number][0]), row - starts[number]


def _read_members(
    descriptor: int, places: list[tuple[str, int, int, int]], *, views: bool, verify: bool
) -> dict[str, Buffer]:
    """The members at `places` (name, offset, length, CRC-32), by name; absent ones are left out."""
    wanted = [place for place in places if place[2] and (views or place[0] != "views.safetensors")]
    members: dict[str, Buffer] = {}
    small = bool(wanted) and wanted[-1][1] + wanted[-1][2] - wanted[0][1] <= _READ_TOGETHER
    for together in [wanted] if small else [[place] for place in wanted]:
        start, end = together[0][1], together[-1][1] + together[-1][2]
        # Not pread: what it returns could not be written to, nor used again.
        large = end - start > _READ_TOGETHER
        content = _memory.lend(end - start) if large else np.empty(end - start, dtype=np.uint8).data
        content = content[: os.preadv(descriptor, [content], start)]
        for name, offset, length, crc in together:
            member = content[offset - start : offset - start + length]
            if len(member) != length:
                raise DataError(f"{name} ends after {len(member)} of {length} bytes")
            if verify and zlib.crc32(member) != crc:
                raise DataError(f"the CRC-32 of {name} differs from the index")
            members[name] = member
    return members
