"""Keys that change what a run trains on, minimizes or leaves behind, each met in a run of its own."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from pretraining import PLAIN, SMALL, pretrain, steps

from stence_dist.data.shards import ShardSet
from stence_dist.errors import DataError
from stence_dist.files import read_json
from stence_dist.models.ecg_tower import load_ecg_tower
from stence_dist.profile import PROFILED_STEPS, SKIPPED_STEPS, SPANS, WARMUP_STEPS

pytestmark = pytest.mark.dist

RUN = [*SMALL, "steps=3", "engine.global_batch_size=9"]  # of 18 pairs: two steps meet each patient once


def run_of(shards: Path, run: Path, *keys: str) -> Path:
    """The folder of a finished run in one process."""
    pretrain(PLAIN, 1, [*RUN, f"data.shards={shards}", f"run_dir={run}", *keys])
    return run


@pytest.fixture(scope="module")
def plain(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the others differ from by their keys."""
    return run_of(small_shards, tmp_path_factory.mktemp("plain") / "run")


def test_shuffled_pairs_meet_other_studies(plain: Path, small_shards: Path, tmp_path: Path) -> None:
    """The same ECGs in the same order, and from the first step on, before any update, another loss of the same model;
    the tower says of which run it is."""
    shuffled = run_of(small_shards, tmp_path / "run", "shuffle_pairs=true")
    here, there = steps(shuffled), steps(plain)
    assert [row["batch_hash"] for row in here] == [row["batch_hash"] for row in there]
    assert abs(here[0]["contrastive"] - there[0]["contrastive"]) > 1e-4
    for run, stated in ((shuffled, True), (plain, False)):
        made_by = load_ecg_tower(run / "ecg_tower.safetensors").pretraining
        assert made_by == {
            "shards": ShardSet.open(small_shards).fingerprint,
            "stenosis_weight": 0.3,
            "shuffle_pairs": stated,
        }


def damage(shards: ShardSet, split: str, row: int) -> None:
    """Overwrite what a shard holds of one row, so that reading it is an error."""
    (shard, _), entry = shards._find(split, row), shards.table(split).entries[row]
    with open(shards.folder / shard.name, "r+b") as file:
        for offset, length in zip(entry["offset"], entry["length"], strict=True):
            file.seek(offset)
            file.write(bytes(length))
    with pytest.raises(DataError, match="damaged"):
        shards.read(split, row, verify=True)


def test_excluded_rows_are_never_read(small_shards: Path, tmp_path: Path) -> None:
    """A run over a set whose excluded rows are damaged ends well, with counts of the table's own columns. The same run
    has its steps profiled: every part of a step took some of the time."""
    copy = tmp_path / "shards"
    shutil.copytree(small_shards, copy)
    shards, pairs, left_out = ShardSet.open(copy), {}, {}
    for split in ("train", "val", "test"):
        table = shards.table(split)
        named = (table.age < 50) | (table.days_between > 25)
        pairs[split], left_out[split] = int((table.has_study & ~named).sum()), int(named.sum())
        for row in np.flatnonzero(named):
            damage(shards, split, int(row))
    length = SKIPPED_STEPS + WARMUP_STEPS + PROFILED_STEPS
    profiled = ["engine.profile=true", f"steps={length + 2}", f"eval_every={length - 2}", "save_every=4"]
    run = run_of(copy, tmp_path / "run", 'cohort.exclude=["age<50","days_between>25"]', *profiled)
    data = read_json(run / "data.json")
    assert data["pairs"] == {split: pairs[split] for split in ("train", "val")}
    assert data["excluded"]["all"] == left_out
    assert left_out["train"] >= 4
    rows = [json.loads(line) for line in (run / "profile" / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(length - PROFILED_STEPS + 1, length + 1))
    assert all(max(row[f"{name}_s"] for row in rows) > 0 for name in SPANS)
    assert read_json(run / "profile" / "trace_rank00000.json")["traceEvents"]


def test_the_sigmoid_loss_learns_its_temperature_and_bias(small_shards: Path, tmp_path: Path) -> None:
    """At a temperature of 1000 every logit is the bias b: the first loss is log(1+exp(-b)) + 8 log(1+exp(b)), not
    InfoNCE's log(9). Adam's first update moves both by the rate: b down, the logarithm of the scale either way."""

    def all_alike(bias: float) -> float:
        return math.log1p(math.exp(-bias)) + 8 * math.log1p(math.exp(bias))

    keys = ["loss.contrastive=sigmoid", "loss.temperature=1000", "loss.bias=-1"]
    learnable = ["loss.learnable=true", "optimizer.scale_lr=0.1", "optimizer.warmup=0", "optimizer.final=1"]
    fixed, learned = (
        steps(run_of(small_shards, tmp_path / name, *keys, *more)) for name, more in (("f", []), ("l", learnable))
    )
    for row in (fixed[0], fixed[1], learned[0]):
        assert row["contrastive"] == pytest.approx(all_alike(-1), abs=3e-3)
    assert learned[1]["contrastive"] == pytest.approx(all_alike(-1.1), abs=3e-3)
    assert all_alike(-1) - all_alike(-1.1) > 0.1
    assert [row["logit_scale"] for row in fixed] == pytest.approx([1e-3] * 3, rel=1e-6)
    assert abs(math.log(learned[1]["logit_scale"] / learned[0]["logit_scale"])) == pytest.approx(0.1, rel=0.01)
