"""Samples per CPU second of the loader against webdataset, bytes per second against a bare read, resume, data wait.

    python benchmarks/loader.py [out=loader.json] [rounds=9] [run=RUN]

One process, files in the page cache, all forms in turns in the same process. Raw: stored members of small samples,
webdataset's default pipeline in tar order against `ShardSet.read_members` in permuted order. Decoded: webdataset's
`.decode()` against `ShardSet.read`. No preparation or collate on either side. Features: a set of stored features up
to PairSample, preparation of the ECG included, against readinto of the same bytes. With run=RUN, data_wait_s of a
finished pretraining from its step 10 on. Exit code 1: a claim was not met.
"""

import csv
import itertools
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy starts its threads

import claims
import numpy as np
import webdataset

from stence_dist.config.build import BuildConfig
from stence_dist.data.build import build
from stence_dist.data.loader import PairReader, training_batches
from stence_dist.data.order import ordinals
from stence_dist.data.shards import ShardSet
from stence_dist.ecg import LEADS, EcgSpec

RAW, DECODED, FEATURES, RESUME, WAIT = 8.0, 4.0, 0.60, 1.5, 0.05
SMALL = {"rows": 1500, "samples": 1000, "tokens": (1, 16, 64), "views": 2}  # 24 kB of ECG, 4 kB of features
LARGE = {"rows": 60, "samples": 5000, "tokens": (16, 197, 384), "views": 8}  # 120 kB of ECG, 19 MB of features


def write_set(folder: Path, *, rows: int, samples: int, tokens: tuple[int, int, int], views: int) -> ShardSet:
    """A set of `rows` pairs: ECGs (12, samples) at 500 Hz and `views` views of float16 tokens."""
    draws = np.random.default_rng(0)
    table = []
    for row in range(rows):
        signal = draws.standard_normal((12, samples)).cumsum(axis=1) / 50
        (folder / "ecg").mkdir(parents=True, exist_ok=True)
        np.savez(folder / "ecg" / f"{row}.npz", signal=signal, sampling_rate=500.0, unit="mV", leads=np.array(LEADS))
        study = folder / "study" / str(row)
        study.mkdir(parents=True)
        for view in range(views):
            np.save(study / f"{view}.npy", draws.standard_normal(tokens).astype(np.float16))
        split = "train" if row >= 4 else ("val", "test")[row % 2]
        table.append(
            {"patient_id": row, "ecg_path": f"ecg/{row}.npz", "study_path": f"study/{row}", "days_between": 1}
            | {"age": 60, "sex": "F", "site": "a", "split": split}
            | {f"seg_{segment}": 80 if row % 2 else 10 for segment in range(1, 17)}
        )
    with open(folder / "cohort.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    build(BuildConfig(cohort=str(folder / "cohort.csv"), out=str(folder / "shards"), workers=1))
    return ShardSet.open(folder / "shards")


def seconds(action: Callable[[], int], clock: Callable[[], float]) -> float:
    """Seconds per item of an action that says how many it handled."""
    started = clock()
    count = action()
    return (clock() - started) / count


def in_turns(forms: dict[str, Callable[[], int]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds per item of each form over `rounds` turns, after one that is not counted."""
    turns = [{name: seconds(form, clock) for name, form in forms.items()} for _ in range(rounds + 1)]
    return {name: float(np.median([turn[name] for turn in turns[1:]])) for name in forms}


def against_webdataset(shards: ShardSet, rounds: int) -> dict[str, float]:
    """CPU seconds per sample of the four forms."""
    tars = sorted(str(path) for path in shards.folder.glob("train-*.tar"))
    order = np.random.default_rng(1).permutation(len(shards.table("train"))).tolist()

    def stream(decode: bool) -> int:
        pipeline = webdataset.WebDataset(tars, shardshuffle=False)
        return sum(1 for _ in (pipeline.decode() if decode else pipeline))

    def read(how: Callable[[str, int], Any]) -> int:
        for row in order:
            how("train", row)
        return len(order)

    forms: dict[str, Callable[[], int]] = {
        "webdataset raw": lambda: stream(False),
        "ours raw": lambda: read(shards.read_members),
        "webdataset decoded": lambda: stream(True),
        "ours decoded": lambda: read(shards.read),
    }
    return in_turns(forms, rounds, time.process_time)


def reader_of(shards: ShardSet) -> PairReader:
    """Training items without augmentation or verification."""
    rows = np.arange(len(shards.table("train")))
    return PairReader(shards, "train", rows, EcgSpec(), seed=0, augment=None, views=True, verify="off")


def against_readinto(shards: ShardSet, rounds: int) -> dict[str, float]:
    """Wall seconds per sample: to PairSample, and readinto of the same members' bytes into one buffer."""
    reader = reader_of(shards)
    count = len(shards.table("train"))
    order = ordinals(np.arange(count), count, seed=0).tolist()
    entries = shards.table("train").entries
    starts = list(itertools.accumulate((count for _, count in shards._shards["train"]), initial=0))
    names = [name for name, _ in shards._shards["train"]]
    places = []
    for row in order:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        spans = zip(entries[row]["offset"].tolist(), entries[row]["length"].tolist(), strict=True)
        places.append((number, list(spans)))
    buffer = memoryview(bytearray(int(entries["length"].max())))
    opened = [open(shards.folder / name, "rb", buffering=0) for name in names]  # noqa: SIM115  (they stay open)

    def bare() -> int:
        for number, spans in places:
            for offset, length in spans:
                opened[number].seek(offset)
                opened[number].readinto(buffer[:length])
        return len(places)

    def ours() -> int:
        for position in range(count):
            reader.training_samples([position])
        return count

    return in_turns({"readinto": bare, "ours": ours}, rounds, time.perf_counter)


def first_batches(shards: ShardSet, rounds: int) -> dict[str, float]:
    """Wall seconds until the first batch of 16 at 1 % and at 99 % of an epoch, the reader opened anew."""
    steps = len(shards.table("train")) // 16

    def start_at(share: float) -> int:
        reader = reader_of(ShardSet.open(shards.folder))
        batches = training_batches(
            reader, start=int(share * steps), stop=steps, g=16, accumulation=1, rank=0, world_size=1, workers=0
        )
        next(batches)
        return 1

    forms = {"1 %": lambda: start_at(0.01), "99 %": lambda: start_at(0.99)}
    return in_turns(forms, rounds, time.perf_counter)


def waiting(run: Path) -> float:
    """Share of the step time that a run's rank 0 waited for data, from step 10 on."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    size = json.loads((run / "data.json").read_text())["identity"]["engine.global_batch_size"]
    steps = [row for row in rows if "loss" in row and row["step"] > 10]
    waited, took = (
        sum(values) for values in zip(*((row["data_wait_s"], size / row["samples_per_s"]) for row in steps))
    )
    return float(waited / took)


def main() -> int:
    """Measure, print the table, write the file."""
    options = claims.options({"out": "", "rounds": "9", "run": ""})
    rounds = claims.whole(options, "rounds")
    warnings.filterwarnings("ignore", module="webdataset")
    found = claims.Claims()
    with tempfile.TemporaryDirectory() as folder:
        small, large = write_set(Path(folder) / "small", **SMALL), write_set(Path(folder) / "large", **LARGE)
        times = against_webdataset(small, rounds)
        for name, limit in (("raw", RAW), ("decoded", DECODED)):
            ratio = times[f"webdataset {name}"] / times[f"ours {name}"]
            figures = {f"{form.split()[0]}_us": value * 1e6 for form, value in times.items() if form.endswith(name)}
            found.add(f"{name} samples per CPU second, ours / webdataset", ratio, limit, least=True, **figures)
        times = against_readinto(large, rounds)
        ratio = times["readinto"] / times["ours"]
        figures = {f"{form}_us": value * 1e6 for form, value in times.items()}
        found.add("features to PairSample per second, ours / readinto", ratio, FEATURES, least=True, **figures)
        times = first_batches(small, rounds)
        figures = {"early_ms": times["1 %"] * 1e3, "late_ms": times["99 %"] * 1e3}
        found.add("first batch, 99 % / 1 % of an epoch", times["99 %"] / times["1 %"], RESUME, **figures)
    if options["run"]:
        found.add("share of a step waited for data", waiting(Path(options["run"])), WAIT)
    else:
        print("not measured: the share of a step waited for data; give run=RUN", flush=True)
    return found.finish(options["out"])


if __name__ == "__main__":
    sys.exit(main())
