"""One folder that a report reads: its files, and the shard set that they name."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from stence_dist import files
from stence_dist.config.targets import TargetsConfig
from stence_dist.data.shards import ShardSet
from stence_dist.errors import DataError

RESULTS = ("summary.json", "metrics.json", "metrics.jsonl")


@dataclass(frozen=True)
class Place:
    """A folder at or under the report's `root`; `opened` keeps what any of them has opened."""

    path: Path
    root: Path
    opened: dict[str, ShardSet]

    @property
    def title(self) -> str:
        """What tells this folder from the others; empty for the root itself."""
        return "" if self.path == self.root else str(self.path.relative_to(self.root))

    def source(self, name: str) -> str:
        """A file's path as the page names it."""
        return str((self.path / name).relative_to(self.root))

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / name).is_file()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config; empty where there is none."""
        if not self.has("config.yaml"):
            return {}
        return yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8")) or {}

    @property
    def targets(self) -> TargetsConfig:
        """How percent became labels here."""
        return TargetsConfig(**self.config.get("targets", {}))

    @cached_property
    def data(self) -> dict[str, Any]:
        """data.json; empty where there is none."""
        return dict(files.read_json(self.path / "data.json")) if self.has("data.json") else {}

    def predictions(self) -> Iterator[dict[str, str]]:
        """The rows of predictions.csv; none where it is not there."""
        if self.has("predictions.csv"):
            with open(self.path / "predictions.csv", newline="", encoding="utf-8") as file:
                yield from csv.DictReader(file)

    def shards(self) -> ShardSet:
        """The set that data.json names. Raises DataError where it is gone or is another set by now."""
        named = self.data.get("shards")
        if not named:
            raise DataError(f"{self.source('data.json')} names no shard set.")
        if named not in self.opened:
            self.opened[named] = ShardSet.open(named)
        shards = self.opened[named]
        if self.data.get("fingerprint", shards.fingerprint) != shards.fingerprint:
            raise DataError(f"{shards.folder} is not the shard set that this was made from: its fingerprint differs.")
        return shards


def places(root: Path) -> list[Place]:
    """The folder itself, and the folders up to two levels below that hold results, in order of their paths."""
    below = {path.parent for depth in ("*", "*/*") for name in RESULTS for path in root.glob(f"{depth}/{name}")}
    opened: dict[str, ShardSet] = {}
    return [Place(path, root, opened) for path in (root, *sorted(below))]
