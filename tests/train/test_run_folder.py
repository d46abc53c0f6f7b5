"""A run folder refuses what it cannot continue, and its metrics end where a checkpoint does."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stence_dist import files
from stence_dist.config.build import BuildConfig
from stence_dist.config.load import load
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.data.build import build
from stence_dist.data.order import global_batch
from stence_dist.errors import ConfigError, DataError, RefusedError
from stence_dist.targets import STENOSIS_PARTS
from stence_dist.train.plan import _partners, plan
from stence_dist.train.run_folder import RunFolder, check_same_run, identity


def config(shards: Path | str, *arguments: str) -> PretrainConfig:
    """A pretraining config over `shards`."""
    return load(PretrainConfig, "pretrain", [f"data.shards={shards}", "run_dir=R", "steps=4", *arguments])


def flat(*arguments: str) -> dict[str, object]:
    """The identity of a run."""
    return identity(config("S", *arguments), total_steps=4, fingerprint="f")


@pytest.mark.parametrize(
    "free",
    [
        *("engine.zero_stage=3", "data.workers=4", "log_every=1", "save_every=7", "keep_last=3", "data.verify=always"),
        *("pictures_every=0", "engine.profile=true"),
    ],
)
def test_identity_leaves_out_what_changes_nothing(free: str) -> None:
    """ZeRO stage, workers, logging, checks and the profiler are free."""
    assert flat(free) == flat()


def test_accumulation_is_free_where_the_pool_stays() -> None:
    """Micro-batches that meet all pairs of a step are the run of one large batch; smaller pools are another run."""
    assert flat("engine.accumulation=2", "engine.negatives=accumulated") == flat()
    assert flat("engine.accumulation=2") != flat()


@pytest.mark.parametrize("bound", ["seed=1", "loss.temperature=0.1", "optimizer.ecg_lr=1e-3", "optimizer=sgd"])
def test_identity_holds_what_matters(bound: str) -> None:
    """Seed, loss and optimizer are part of a run's identity."""
    assert flat(bound) != flat()


def test_another_config_is_refused_by_key(tmp_path: Path) -> None:
    """The message names the differing key with both values; foreign files are no run; a killed start is a new run."""
    files.write_json(tmp_path / "data.json", {"identity": flat()})
    assert check_same_run(tmp_path, flat()) == "running"
    with pytest.raises(ConfigError, match=r"loss\.temperature \(0\.2 there, 0\.1 now\)"):
        check_same_run(tmp_path, flat("loss.temperature=0.1"))
    (tmp_path / "data.json").unlink()
    (tmp_path / "log.txt").touch()
    assert check_same_run(tmp_path, flat()) is None
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(ConfigError, match=r"thesis\.docx"):
        check_same_run(tmp_path, flat())


def test_metrics_are_cut_to_the_checkpoint(tmp_path: Path) -> None:
    """Rows after the checkpoint's step and a half-written last line go; non-finite values become null."""
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 5, "lo')
    folder = RunFolder(tmp_path, writes=True)
    folder.open(config("S"), {"identity": {}}, step=2)
    folder.row({"step": 3, "split": "val", "val/auroc": float("nan")})
    folder.sync()
    folder.close()
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept == [json.loads(line) for line in lines[:2]] + [{"step": 3, "split": "val", "val/auroc": None}]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["engine.global_batch_size=4096"], "The largest that works is 18"),
        (["targets.unreported=unknown", "targets.threshold=100"], "targets.unreported=normal"),
        (["best_metric=val/recall@7"], "Use one of: val/recall@1"),
        (["best_metric=val/ecg_to_image/median_rank"], "not better when larger"),
    ],
)
def test_plan_refuses_what_cannot_work(small_shards: Path, arguments: list[str], part: str) -> None:
    """G > N and a one-class patient target end before any model is built, with the key to change."""
    with pytest.raises(RefusedError) as caught:
        plan(config(small_shards, "engine.global_batch_size=8", *arguments), torch.device("cpu"))
    assert part in str(caught.value)


@pytest.mark.parametrize(("split", "refused"), [("train", True), ("val", True), ("test", False)])
def test_pretraining_needs_pairs_in_train_and_val_only(
    split: str, refused: bool, cohort_writer: Callable[..., Path], tmp_path: Path
) -> None:
    """A split whose patients have ECGs alone."""
    table = cohort_writer(tmp_path, pairs=24, ecg_only=0)
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["split"] = ("train", "train", "val", "test")[number % 4]
        if row["split"] == split:
            row |= {"study_path": "", "days_between": ""}
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    build(BuildConfig(cohort=str(table), out=str(tmp_path / "set"), image_size=16, workers=1))
    arguments = ["engine.global_batch_size=4", "loss.stenosis_weight=0"]
    if refused:
        with pytest.raises(RefusedError, match=f"0 pairs in {split}; pretraining needs 2 or more"):
            plan(config(tmp_path / "set", *arguments), torch.device("cpu"))
    else:
        assert len(plan(config(tmp_path / "set", *arguments), torch.device("cpu")).rows) == 12


def test_plan_without_labels_needs_none(small_shards: Path) -> None:
    """With stenosis_weight=0 a one-class target is no error."""
    arguments = ["engine.global_batch_size=8", "targets.threshold=100", "loss.stenosis_weight=0"]
    assert plan(config(small_shards, *arguments), torch.device("cpu")).total_steps == 4


def test_plan_follows_epochs(small_shards: Path) -> None:
    """Length by epochs is rounded up to whole steps; the known labels of any step are those of its global batch."""
    arguments = ["engine.global_batch_size=8", "steps=null", "epochs=3", "targets.unreported=normal"]
    prepared = plan(config(small_shards, *arguments, "loss.stenosis_weight=0"), torch.device("cpu"))
    assert prepared.total_steps == -(-3 * len(prepared.rows) // 8)
    assert len(prepared.batch_hash(0)) == 16
    for start in (0, 5):
        for step, counted in zip(range(start, start + 70), prepared.known_counts(start), strict=False):
            _, chosen = global_batch(step, 8, len(prepared.rows), prepared.config.seed)
            known = ~np.isnan(prepared.labels[chosen])
            assert counted.tolist() == [known[:, part].sum() for part in STENOSIS_PARTS]


def test_missing_shards_are_explained(tmp_path: Path) -> None:
    """A folder without an index says what to do."""
    with pytest.raises(DataError, match="index"):
        plan(config(tmp_path), torch.device("cpu"))


def test_shuffled_partners_are_other_patients() -> None:
    """The control pairs every row with a row of another patient, each study used once, by the seed alone."""
    patient = np.repeat(np.arange(20), np.arange(20) % 3 + 1)
    rows = np.arange(len(patient)) * 2
    partners = _partners(patient, rows, seed=1)
    assert sorted(partners) == rows.tolist()
    assert (patient[partners // 2] != patient).all()
    assert (partners == _partners(patient, rows, seed=1)).all()
    assert (partners != _partners(patient, rows, seed=2)).any()


def test_a_machine_without_git_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git on PATH a run is described all the same, its commit unknown."""
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = RunFolder(tmp_path / "run", writes=True)
    folder.open(config("S"), {"identity": {}}, step=0)
    folder.close()
    assert files.read_json(tmp_path / "run" / "environment.json")["commit"] is None
