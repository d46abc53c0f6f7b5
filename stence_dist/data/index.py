"""`index.json`: what a shard set holds, and what a look at names and sizes finds wrong with it."""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stence_dist.data.sidecar import sidecar_name
from stence_dist.ecg import LEADS
from stence_dist.errors import DataError
from stence_dist.files import read_json, sha256_json

INDEX = "index.json"
FORMAT = 2  # of index and sidecars
SPLITS = ("train", "val", "test")
SHARD_NAME = re.compile(r"(train|val|test)-\d{6}\.tar")


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
