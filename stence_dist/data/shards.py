"""A shard set on disk: its index, its sidecars, and the reader that finds every member without parsing a tar."""

import bisect
import dataclasses
import io
import itertools
import os
import re
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.memory import LentMemory
from stence_dist.data.sample import MEMBERS, Buffer, StoredSample, decode
from stence_dist.ecg import LEADS
from stence_dist.errors import DataError
from stence_dist.files import read_json, sha256_json

INDEX = "index.json"
FORMAT = 2
SPLITS = ("train", "val", "test")
SHARD_NAME = re.compile(r"(train|val|test)-\d{6}\.tar")

# One entry per sample. Of the members, `views.safetensors` has length 0 in an ECG-only row.
SIDECAR = np.dtype(
    [
        ("sample", "<i8"),
        ("offset", "<i8", (len(MEMBERS),)),
        ("length", "<i8", (len(MEMBERS),)),
        ("crc", "<u4", (len(MEMBERS),)),
        ("patient_key", "S32"),
        ("view_count", "<i4"),
        ("segments", "<f4", (16,)),
        ("age", "<f4"),
        ("sex", "S1"),
        ("site", "<i4"),  # position in the index' list of sites
        ("days_between", "<f4"),
    ]
)
# Columns of a cohort that a set keeps where any row has them, beside its label_* columns: what confounds. `device` is a
# position in the index' list of devices, -1 = unknown.
CONFOUNDERS = (
    "acute",
    "prior_revascularization",
    "after_procedure",
    "high_pass_hz",
    "low_pass_hz",
    "lvef",
    "device",
)
_OPEN_SHARDS = 200  # descriptors kept per process; the usual limit is 1024


def sidecar_type(columns: int) -> np.dtype[Any]:
    """The entries of a set that keeps `columns` more columns of its cohort."""
    return np.dtype([*SIDECAR.descr, ("columns", "<f4", (columns,))]) if columns else SIDECAR


def refuse_pipe(path: str | Path, what: str) -> Path:
    """`path`, unless webdataset tools would run it as a shell command: then DataError. Shards are local files."""
    if "pipe:" in str(path):
        raise DataError(f"{what} holds 'pipe:', which other tools would run as a command. Use a local folder.")
    return Path(path)


@dataclass(frozen=True)
class DatasetSpec:
    """What every sample of a set looks like. `kind` is "pixels", "tokens" or "none" (ECG only)."""

    kind: str
    frames: int  # F per view; 0 without views
    image_size: int  # H = W of pixels, else 0
    tokens: int  # N of stored features, else 0
    width: int  # D of stored features, else 0
    dtype: str  # uint8 | float16 | bfloat16; empty without views
    max_views: int
    leads: tuple[str, ...] = LEADS

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {**dataclasses.asdict(self), "leads": list(self.leads)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DatasetSpec":
        """The inverse of `to_dict`. Raises DataError on unknown or missing keys."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise DataError(f"the dataset spec has the keys {sorted(values)}, expected {sorted(names)}.")
        return cls(**{**values, "leads": tuple(values["leads"])})


@dataclass(frozen=True)
class SampleTable:
    """Arrays over the rows of one split, from the sidecars alone; text columns are made when first asked for."""

    entries: NDArray[np.void]  # (n,) `sidecar_type`
    sites: tuple[str, ...]
    devices: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # names of the entries' further columns

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def sample(self) -> NDArray[np.int64]:
        """Sample numbers (n,): the cohort row each came from, counted from 1."""
        return np.ascontiguousarray(self.entries["sample"])

    @cached_property
    def patient(self) -> NDArray[np.int64]:
        """Patients (n,) as numbers: the key's first 8 bytes, shifted into the positive range."""
        digits = np.ascontiguousarray(self.entries["patient_key"]).view(np.uint8).reshape(len(self), -1)[:, :16]
        numbers = np.frombuffer(bytes.fromhex(digits.tobytes().decode("ascii")), dtype=">u8")
        return (numbers >> np.uint64(1)).astype(np.int64)

    @cached_property
    def patient_key(self) -> NDArray[np.str_]:
        """Patient keys (n,), 32 hex digits."""
        return self.entries["patient_key"].astype("U32")

    @cached_property
    def view_count(self) -> NDArray[np.int64]:
        """Views per row (n,); 0 = ECG only."""
        return self.entries["view_count"].astype(np.int64)

    @cached_property
    def segments(self) -> NDArray[np.float32]:
        """Percent diameter stenosis (n, 16), NaN = not reported."""
        return np.ascontiguousarray(self.entries["segments"])

    @cached_property
    def age(self) -> NDArray[np.float32]:
        """Years (n,), NaN = unknown."""
        return np.ascontiguousarray(self.entries["age"])

    @cached_property
    def sex(self) -> NDArray[np.str_]:
        """Sex (n,): "M", "F" or ""."""
        return self.entries["sex"].astype("U1")

    @cached_property
    def site(self) -> NDArray[np.str_]:
        """Site names (n,), "" = unknown."""
        names: NDArray[np.str_] = np.array([*self.sites, ""])
        return names[self.entries["site"].astype(np.int64)]  # -1 picks the last, empty one

    @cached_property
    def days_between(self) -> NDArray[np.float32]:
        """Study minus ECG in days (n,), NaN = unknown."""
        return np.ascontiguousarray(self.entries["days_between"])

    def column(self, name: str) -> NDArray[np.float32]:
        """One of `columns` (n,), NaN = unknown; NaN throughout where the set does not keep it."""
        if name not in self.columns:
            return np.full(len(self), np.nan, dtype=np.float32)
        return np.ascontiguousarray(self.entries["columns"][:, self.columns.index(name)])

    @cached_property
    def device(self) -> NDArray[np.str_]:
        """ECG devices (n,), "" = unknown."""
        names: NDArray[np.str_] = np.array([*self.devices, ""])
        return names[np.nan_to_num(self.column("device"), nan=-1).astype(np.int64)]

    @property
    def has_study(self) -> NDArray[np.bool_]:
        """Rows (n,) that are a pair."""
        return self.view_count > 0


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


def sidecar_name(shard: str) -> str:
    """The sidecar's file name beside a shard."""
    return shard.removesuffix(".tar") + ".npy"


@lru_cache(maxsize=64)
def _entry_count(header: bytes, columns: int) -> int:
    """Entries with `columns` more columns that a `.npy` header announces.

    Most shards of a set have the same header, and parsing one is slow.
    """
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("unexpected version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != sidecar_type(columns) or len(shape) != 1:
        raise ValueError("unexpected columns")
    return int(shape[0])


def load_sidecar(content: bytes, name: str, columns: int) -> NDArray[np.void]:
    """The entries (n,) of a sidecar's bytes, read-only. Raises DataError where they are not one.

    `columns` counts the set's further columns, as its index lists them.
    """
    start = 10 + int.from_bytes(content[8:10], "little")  # magic, version and length come before the header's text
    try:
        count = _entry_count(content[:start], columns)
        return np.frombuffer(content, dtype=sidecar_type(columns), count=count, offset=start)
    except ValueError as error:
        raise DataError(
            f"{name} is no sidecar of format {FORMAT} ({error}). Copy the shard set again, or build it again."
        ) from None


def read_index(folder: Path) -> dict[str, Any]:
    """The content of index.json, its format and fingerprint checked. Raises DataError."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Make shards with: python shards/build.py cohort=… out={folder}")
    if not (folder / INDEX).exists():
        raise DataError(
            f"{folder} holds no {INDEX}: no shard set, or one whose build was interrupted. Run its build again."
        )
    index: dict[str, Any] = read_json(folder / INDEX)
    version = index.get("format") if isinstance(index, dict) else None
    if not isinstance(version, int):
        raise DataError(f"{folder / INDEX} is not the index of a shard set. Build the set again.")
    if version != FORMAT:
        advice = "Update stence_dist" if version > FORMAT else "Build the set again"
        raise DataError(f"{folder / INDEX} has format {version}; this version reads format {FORMAT}. {advice}.")
    stated = index.get("fingerprint")
    if stated != fingerprint_of(index):
        raise DataError(f"{folder / INDEX} was changed after it was written (its fingerprint differs). Build it again.")
    for shard in index["shards"]:
        if not SHARD_NAME.fullmatch(shard["name"]) or shard["name"].split("-")[0] != shard["split"]:
            raise DataError(f"{folder / INDEX} names a shard {shard['name']!r}, expected e.g. train-000000.tar.")
    return index


def fingerprint_of(index: dict[str, Any]) -> str:
    """Hex sha256 of everything in an index except its fingerprint."""
    return sha256_json({name: value for name, value in index.items() if name != "fingerprint"})


def list_problems(folder: Path, index: dict[str, Any]) -> list[str]:
    """What a look at names and sizes finds wrong with a set: missing, truncated, foreign and extra files."""
    problems = []
    expected = {}
    for shard in index["shards"]:
        expected[shard["name"]] = shard["bytes"]
        expected[sidecar_name(shard["name"])] = shard["sidecar_bytes"]
    present = {entry.name: entry for entry in os.scandir(folder) if entry.name.endswith((".tar", ".npy"))}
    for name, size in expected.items():
        if name not in present:
            problems.append(f"{name} is missing")
        elif present[name].is_symlink() or not present[name].is_file():
            problems.append(f"{name} is not a regular file")
        elif (actual := present[name].stat().st_size) != size:
            problems.append(f"{name} has {actual} bytes, the index says {size}: truncated, or of another set")
    problems += [f"{name} is not in the index: of another set" for name in sorted(present.keys() - expected.keys())]
    return problems


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
