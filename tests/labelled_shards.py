"""A small shard set whose labels are balanced in every split, shared by the tests of everything supervised."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

# split -> (pairs, ECG-only patients)
SIZES = {"train": (10, 24), "val": (4, 10), "test": (6, 10)}


def labelled_shards(factory: pytest.TempPathFactory, write_cohort: Callable[..., Path]) -> Path:
    """The folder of the set, built once per session. Every second patient is severe; seg_2 is severe nowhere."""
    from stence_dist.config.build import BuildConfig
    from stence_dist.data.build import build

    folder = factory.getbasetemp() / "labelled"
    out = folder / "shards"
    if not (out / "index.json").exists():
        pairs, alone = (sum(sizes[kind] for sizes in SIZES.values()) for kind in (0, 1))
        table = write_cohort(folder, pairs=pairs, ecg_only=alone, seed=3)
        with open(table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        splits = [name for kind in (0, 1) for name, sizes in SIZES.items() for _ in range(sizes[kind])]
        for number, (row, split) in enumerate(zip(rows, splits, strict=True)):
            row |= {f"seg_{segment}": "0" for segment in range(1, 17)}
            row |= {"split": split, "seg_1": "80" if number % 2 else "10", "seg_3": ""}
        rows[-1] |= {"seg_1": ""}  # one test patient whose label is not known
        with open(table, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        build(BuildConfig(cohort=str(table), out=str(out), image_size=32, workers=1, shard_size=20))
    return out
