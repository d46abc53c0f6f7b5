"""Several shard sets of one cohort as augmented copies of its stored features: which one a training item reads."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import run_script

from stence_dist.config.build import BuildConfig
from stence_dist.config.data import DataConfig
from stence_dist.config.engine import EngineConfig
from stence_dist.config.image_tower import TokensConfig
from stence_dist.config.loss import LossConfig
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.data.build import build
from stence_dist.data.loader import PairReader, evaluation_batches, training_batches
from stence_dist.data.shards import ShardSet
from stence_dist.ecg import EcgSpec
from stence_dist.errors import DataError
from stence_dist.train.plan import plan

TRAIN, VAL, COPIES = 8, 2, 3
SPEC = EcgSpec(seconds=1)


def build_copy(folder: Path, copy: int, table: list[dict[str, str]], *, views: int = 2) -> Path:
    """The set of one copy: all tokens of cohort row r (from 0) are 100 * copy + r."""
    rows = [dict(row) for row in table]
    for number, row in enumerate(rows):
        row["study_path"] = f"copy{copy}/s{number}"
        study = folder / row["study_path"]
        study.mkdir(parents=True)
        for view in range(views):
            np.save(study / f"view{view}.npy", np.full((1, 2, 4), 100 * copy + number, dtype=np.float16))
    path = folder / f"copy{copy}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    build(BuildConfig(cohort=str(path), out=str(folder / f"shards{copy}"), workers=1))
    return folder / f"shards{copy}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cohort_writer: Callable[..., Path]) -> Path:
    """A folder with the sets of three copies, one with another view, and one of fewer rows."""
    folder = tmp_path_factory.mktemp("copies")
    with open(cohort_writer(folder, pairs=TRAIN + VAL + 1, ecg_only=0), newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    for number, row in enumerate(table):
        split = "train" if number < TRAIN else "val" if number < TRAIN + VAL else "test"
        row |= {"split": split, "seg_1": "90" if number % 2 else "0"}
    for copy in range(COPIES):
        build_copy(folder, copy, table)
    build_copy(folder, 7, table, views=1)
    build_copy(folder, 8, table[1:])
    return folder


def reader(folder: Path, split: str = "train", *, seed: int = 5, copies: tuple[int, ...] = (1, 2)) -> PairReader:
    """A reader over the first set and further copies."""
    shards = ShardSet.open(folder / "shards0")
    rows = np.arange(len(shards.table(split)))
    others = [ShardSet.open(folder / f"shards{copy}") for copy in copies]
    return PairReader(shards, split, rows, SPEC, seed=seed, augment=None, views=True, copies=others)


def drawn(batch: torch.Tensor) -> list[int]:
    """Which copy each study of a batch came from."""
    assert torch.equal(batch, batch[:, :1, :1, :1, :1].expand_as(batch))
    return [int(value) // 100 for value in batch[:, 0, 0, 0, 0]]


def test_a_copy_is_drawn_per_sample_and_epoch(folder: Path) -> None:
    """Over 30 epochs each sample meets all three copies about equally often, changes between epochs, and keeps its own
    study and its own recording; another seed draws others."""
    counts = np.zeros((TRAIN, COPIES), dtype=int)
    plain, copied, other = reader(folder, copies=()), reader(folder), reader(folder, seed=6)
    met: dict[str, list[int]] = {"copied": [], "other": []}  # the copies of row 0, epoch by epoch
    for position in range(30 * TRAIN):
        for name, source in (("copied", copied), ("other", other)):
            sample = source.sample(position)
            copy, row = divmod(int(sample.views.flat[0]), 100)
            assert row == sample.sample - 1
            met[name] += [copy] if row == 0 else []
            counts[row, copy] += name == "copied"
    assert counts.min() >= 2
    assert abs(counts.sum(axis=0) - 80).max() < 4.5 * (240 * 2 / 9) ** 0.5
    assert len(met["copied"]) == 30
    assert met["copied"] != met["other"]
    for position in range(TRAIN):
        np.testing.assert_array_equal(copied.sample(position).ecg, plain.sample(position).ecg)
        np.testing.assert_array_equal(copied.sample(position).segments, plain.sample(position).segments)


def test_the_draw_knows_no_rank_and_no_history(folder: Path) -> None:
    """Steps 3 to 5 of two ranks against those of a run from step 0 on one."""
    whole = training_batches(reader(folder), start=0, stop=6, g=4, accumulation=1, rank=0, world_size=1, workers=0)
    expected = [drawn(batch.views) for (batch,) in whole][3:]
    halves = [
        training_batches(reader(folder), start=3, stop=6, g=4, accumulation=1, rank=rank, world_size=2, workers=0)
        for rank in range(2)
    ]
    found = [drawn(first.views) + drawn(second.views) for (first,), (second,) in zip(*halves, strict=True)]
    assert found == expected
    assert len({copy for step in expected for copy in step}) > 1


def test_evaluation_reads_the_first_set_only(folder: Path) -> None:
    """StenCE draws a copy in validation, too."""
    for split in ("train", "val"):
        rows = np.arange(len(ShardSet.open(folder / "shards0").table(split)))
        for batch in evaluation_batches(reader(folder, split), rows, 4, 0):
            assert set(drawn(batch.views)) == {0}


def pretraining(folder: Path, *copies: int) -> PretrainConfig:
    """A pretraining config over the first set and copies."""
    sets = [str(folder / f"shards{copy}") for copy in copies]
    return PretrainConfig(
        run_dir="unused",
        steps=1,
        data=DataConfig(shards=str(folder / "shards0"), copies=sets),
        image_tower=TokensConfig(),
        loss=LossConfig(stenosis_weight=0),
        engine=EngineConfig(global_batch_size=4),
    )


def test_a_run_knows_its_copies_by_content(folder: Path, tmp_path: Path) -> None:
    """The identity has their fingerprints, in order, and nothing where there are none; a moved folder is the same."""

    def identity(config: PretrainConfig) -> dict[str, object]:
        return plan(config, torch.device("cpu")).identity

    alone, both = identity(pretraining(folder)), identity(pretraining(folder, 1, 2))
    assert "data.copies" not in alone
    assert both == alone | {"data.copies": [ShardSet.open(folder / f"shards{copy}").fingerprint for copy in (1, 2)]}
    (tmp_path / "shards1").symlink_to(folder / "shards1")
    moved = pretraining(folder, 1, 2)
    moved.data.copies[0] = str(tmp_path / "shards1")
    assert identity(moved) == both


@pytest.mark.parametrize("copy", [7, 8])
def test_sets_of_other_rows_or_views_are_refused(folder: Path, copy: int) -> None:
    """One view instead of two, and a cohort that lacks a row."""
    config = pretraining(folder, 1, copy)
    with pytest.raises(DataError, match=rf"data\.copies=.*shards{copy} does not hold the training rows"):
        plan(config, torch.device("cpu"))


def losses(folder: Path, run: Path, *keys: str) -> tuple[list[str], list[float]]:
    """Batch hashes and contrastive losses of eight steps of `launch/pretrain.py` over stored features."""
    model = ["embedding=16", "ecg_encoder.widths=[8,16]", "ecg_encoder.seconds=1", "image_tower=tokens"]
    model += [f"image_tower.{key}" for key in ("width=16", "depth=1", "heads=2", "feedforward=32")]
    still = ["optimizer.ecg_lr=0", "optimizer.image_lr=0", "loss.stenosis_weight=0"]
    length = ["steps=8", "log_every=1", "engine.global_batch_size=2", "data.workers=0", "pictures_every=0"]
    places = [f"data.shards={folder / 'shards0'}", f"run_dir={run}"]
    run_script("launch/pretrain.py", [*places, *model, *still, *length, *keys])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    return [row["batch_hash"] for row in rows], [row["contrastive"] for row in rows]


@pytest.mark.dist
def test_a_run_reads_its_copies(folder: Path, tmp_path: Path) -> None:
    """A run over stored features: the same ECGs in the same order, and at rates of 0, with all weights as they began,
    other losses in batches with a study of a copy, which the reader's own draws name; equal ones in all others."""
    hashes, alone = losses(folder, tmp_path / "alone")
    keys = [f"data.copies=[{folder / 'shards1'},{folder / 'shards2'}]"]
    copied = losses(folder, tmp_path / "copied", *keys)
    assert copied[0] == hashes
    whole = training_batches(
        reader(folder, seed=0), start=0, stop=8, g=2, accumulation=1, rank=0, world_size=1, workers=0
    )
    expected = [any(drawn(batch.views)) for (batch,) in whole]
    assert 0 < sum(expected) < 8
    assert [one != other for one, other in zip(alone, copied[1], strict=True)] == expected
