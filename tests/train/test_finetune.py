"""Fine-tuning end to end on a small shard set: files, schema, reproducibility and refusals."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled_shards import SIZES, labelled_shards

from stence_dist.config.build import BuildConfig
from stence_dist.config.cohort import CohortConfig
from stence_dist.config.ecg_encoder import ResNetConfig
from stence_dist.config.finetune import FinetuneConfig, LabelledDataConfig, SupervisedConfig, TaskConfig
from stence_dist.config.report import ReportConfig
from stence_dist.config.targets import TargetsConfig
from stence_dist.data.build import build
from stence_dist.data.exclusion import exclusion_counts
from stence_dist.data.shards import ShardSet
from stence_dist.errors import ConfigError, DataError
from stence_dist.evaluate.report.page import report
from stence_dist.evaluate.statistics import auroc
from stence_dist.models.ecg_tower import build_ecg_tower, save_ecg_tower
from stence_dist.train.finetune import finetune
from stence_dist.train.labelled import labelled_rows, rows_to_learn_from
from stence_dist.train.supervised import EcgClassifier, rate_at, train_classifier, training_reader, updates_for

TINY = ResNetConfig(seconds=1.0, windows=2, widths=[4, 8])
# Percent 0 where seg_3 is not reported: otherwise a patient without severe segments would be unknown.
NORMAL = TargetsConfig(unreported="normal")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, cohort_writer: Callable[..., Path]) -> Path:
    """The shared labelled set."""
    return labelled_shards(tmp_path_factory, cohort_writer)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tower with a projector."""
    path = tmp_path_factory.mktemp("weights") / "ecg_tower.safetensors"
    save_ecg_tower(path, build_ecg_tower(TINY, 6, seed=1))
    return path


def config(shards: Path, run_dir: Path, weights: Path | None, **changes: Any) -> FinetuneConfig:
    """A run of seconds."""
    return FinetuneConfig(
        **{
            "run_dir": str(run_dir),
            "weights": str(weights) if weights else None,
            "bootstrap": 50,
            "data": LabelledDataConfig(shards=str(shards)),
            "targets": NORMAL,
            "ecg_encoder": TINY,
            "supervised": SupervisedConfig(steps=3, batch_size=8),
            **changes,
        }
    )


def predictions(run_dir: Path) -> list[dict[str, str]]:
    """Rows of predictions.csv."""
    with open(run_dir / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("mode", ["probe", "finetune", "scratch"])
def test_each_mode_writes_metrics_and_predictions(mode: str, shards: Path, weights: Path, tmp_path: Path) -> None:
    """Strict JSON whose test AUROC follows from predictions.csv; val rows are ECG only, test rows all labelled ones."""
    finetune(config(shards, tmp_path / "run", None if mode == "scratch" else weights, mode=mode))
    text = (tmp_path / "run" / "metrics.json").read_text()
    metrics = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in metrics.json"))
    rows = predictions(tmp_path / "run")
    assert list(rows[0]) == ["patient_key", "sample", "split", "target", "label", "probability"]
    assert [sum(row["split"] == split for row in rows) for split in ("train", "val", "test")] == [
        0,
        SIZES["val"][1],
        sum(SIZES["test"]) ,
    ]  # fmt: skip
    assert metrics["rows"] == "ecg_only"
    assert metrics["counts"]["train"] == {"rows": 24, "patients": 24, "positive": 12}
    test = [row for row in rows if row["split"] == "test"]
    found = auroc(np.array([int(row["label"]) for row in test]), np.array([float(row["probability"]) for row in test]))
    assert metrics["test"]["auroc"] == pytest.approx(found)
    assert metrics["test"]["auroc_low"] <= metrics["test"]["auroc"] <= metrics["test"]["auroc_high"]
    for name in ("auprc", "brier", "sensitivity", "specificity", "ppv", "npv"):
        assert name in metrics["test"]
    difference = metrics["test"]["auroc"] - metrics["age_sex"]["auroc"]
    assert metrics["difference_to_age_sex"]["auroc"] == pytest.approx(difference)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"


def test_the_same_command_gives_the_same_bytes(shards: Path, weights: Path, tmp_path: Path) -> None:
    """Two runs in two folders, one with a loader process, write equal predictions; a second call reuses the first."""
    for name, workers in (("a", 0), ("b", 1)):
        data = LabelledDataConfig(shards=str(shards), workers=workers)
        finetune(config(shards, tmp_path / name, weights, mode="finetune", labels="12", data=data))
    first, second = ((tmp_path / name / "predictions.csv").read_bytes() for name in "ab")
    assert first == second
    before = (tmp_path / "a" / "metrics.json").stat().st_mtime_ns
    finetune(config(shards, tmp_path / "a", weights, mode="finetune", labels="12"))
    assert (tmp_path / "a" / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="label_seed"):
        finetune(config(shards, tmp_path / "a", weights, mode="finetune", labels="12", label_seed=1))


@pytest.mark.parametrize(
    ("changes", "error", "part"),
    [
        ({"task": TaskConfig(target="seg_2")}, DataError, "targets.unreported=normal"),
        ({"task": TaskConfig(target="seg_3"), "targets": TargetsConfig()}, DataError, "none of the"),
        ({"labels": "1"}, DataError, "more labels"),
        ({"labels": "25"}, ConfigError, "24 training patients"),
        ({"task": TaskConfig(target="seg_17")}, ConfigError, "seg_17"),
    ],
)
def test_useless_labels_are_refused(
    changes: dict[str, Any], error: type[Exception], part: str, shards: Path, weights: Path, tmp_path: Path
) -> None:
    """One class, no label, too many labels: an error that says what to change, and no result."""
    with pytest.raises(error, match=part):
        finetune(config(shards, tmp_path, weights, **changes))
    assert not (tmp_path / "metrics.json").exists()


def test_a_diverged_training_is_named(shards: Path, weights: Path, tmp_path: Path) -> None:
    """Its scores would have an area all the same."""
    wild = SupervisedConfig(steps=20, batch_size=8, lr=1e30)
    with pytest.raises(DataError, match=r"the loss of update \d+ of 20 is nan\. Lower supervised\.lr=1e\+30"):
        finetune(config(shards, tmp_path / "run", weights, mode="finetune", supervised=wild))
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


def test_without_age_and_sex_there_is_no_baseline(
    cohort_writer: Callable[..., Path], weights: Path, tmp_path: Path
) -> None:
    """A constant is nothing that a model could be better than; the report does without it."""
    table = cohort_writer(tmp_path, pairs=6, ecg_only=24)
    with open(table, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for number, line in enumerate(lines):
        line |= {f"seg_{segment}": "0" for segment in range(1, 17)}
        line |= {"age": "", "sex": "NA", "seg_1": "80" if number % 2 else "10"}
        line["split"] = ("train", "val", "test")[number // 2 % 3]
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    build(BuildConfig(cohort=str(table), out=str(tmp_path / "set"), image_size=16, workers=1, shard_size=7))
    finetune(config(tmp_path / "set", tmp_path / "run", weights))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"]["auroc"] is not None
    assert [metrics[name] for name in ("age_sex", "age_sex_val", "difference_to_age_sex")] == [None] * 3
    report(ReportConfig(run_dir=str(tmp_path / "run")))
    assert "there is no baseline" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_rows_choose_train_and_validation_only(shards: Path) -> None:
    """paired and all give other rows; unknown labels never count."""
    opened = ShardSet.open(shards)
    whole = config(shards, Path("none"), None, mode="scratch")
    for rows, count in (("ecg_only", 24), ("paired", 10), ("all", 34)):
        assert len(labelled_rows(opened, "train", whole, rows).rows) == count
    assert rows_to_learn_from(opened, whole) == "ecg_only"
    assert rows_to_learn_from(opened, dataclasses.replace(whole, rows="all")) == "all"
    unknown = dataclasses.replace(whole, task=TaskConfig(target="rca"), targets=TargetsConfig())
    assert len(labelled_rows(opened, "test", unknown, "all").rows) < 16


Lines = list[dict[str, str]]


def built(writer: Callable[..., Path], folder: Path, change: Callable[[Lines, Lines], None]) -> ShardSet:
    """The set of 12 pairs and 6 ECGs alone, spread over the splits, after `change` of the rows of both."""
    table = writer(folder, pairs=12, ecg_only=6)
    with open(table, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    paired, alone = ([line for line in lines if bool(line["study_path"]) == pair] for pair in (True, False))
    for number, line in enumerate([*paired, *alone]):
        line["split"] = ("train", "val", "test")[number % 3]
    change(paired, alone)
    with open(table, "w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, list(lines[0]))
        rows.writeheader()
        rows.writerows(lines)
    build(BuildConfig(cohort=str(table), out=str(folder / "set"), image_size=16, workers=1))
    return ShardSet.open(folder / "set")


def test_ecg_only_rows_are_not_left_out_in_silence(
    cohort_writer: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """None in validation: finetune, which needs it, takes pairs and says so; compare needs no validation."""

    def none_in_validation(_: Lines, alone: Lines) -> None:
        for number, line in enumerate(alone):
            line["split"] = ("train", "test")[number % 2]

    opened = built(cohort_writer, tmp_path, none_in_validation)
    whole = config(tmp_path / "set", Path("none"), None, mode="scratch")
    assert rows_to_learn_from(opened, whole) == "paired"
    assert "3 labelled ECG-only training rows are left out, as val has none" in caplog.text
    assert rows_to_learn_from(opened, whole, ("train",)) == "ecg_only"


def test_whom_pretraining_knows_is_not_ecg_only(cohort_writer: Callable[..., Path], tmp_path: Path) -> None:
    """A further ECG without a study, of a patient who has a pair, is no row for `ecg_only`, nor for `auto`."""

    def of_paired_patients(paired: Lines, alone: Lines) -> None:
        for first, second in zip(paired, alone, strict=False):
            second |= {"patient_id": first["patient_id"], "split": first["split"]}

    opened = built(cohort_writer, tmp_path, of_paired_patients)
    whole = config(tmp_path / "set", Path("none"), None, mode="scratch")
    assert (~opened.table("train").has_study).any()
    assert rows_to_learn_from(opened, whole) == "paired"
    with pytest.raises(DataError, match="none of the 0 train rows"):
        labelled_rows(opened, "train", whole, "ecg_only")


@pytest.mark.parametrize(
    ("stated", "said"), [(None, "not stated"), ("this", "this shard set"), ("f00", "another shard set")]
)
def test_weights_of_another_set_are_said_to_be(
    stated: str | None, said: str, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """metrics.json says what the tower was pretrained on; of another set, whose patients may be tested, a warning."""
    path = tmp_path / "tower.safetensors"
    fingerprint = ShardSet.open(shards).fingerprint if stated == "this" else stated
    pretraining = {"shards": fingerprint} if fingerprint else None
    save_ecg_tower(path, build_ecg_tower(TINY, 6, seed=1), pretraining=pretraining)
    finetune(config(shards, tmp_path / "run", path))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["pretrained_on"] == said
    assert ("may be among the test patients" in caplog.text) == (said == "another shard set")


def test_labels_of_any_task_and_excluded_rows(cohort_writer: Callable[..., Path], tmp_path: Path) -> None:
    """label_* columns travel with the set and are targets; cohort.exclude leaves rows out, and is refused where the
    set cannot know.
    """
    table = cohort_writer(tmp_path, pairs=6, ecg_only=24)
    with open(table, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for number, line in enumerate(lines):
        line |= {"label_af": ["0", "1", ""][number % 3], "acute": str(int(number % 5 == 0)), "lvef": str(30 + number)}
        line |= {"device": "MAC 5500" if number % 2 else "", "split": ["train", "val", "test"][number % 3 % 2]}
    lines[0]["split"] = lines[2]["split"] = "test"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    build(BuildConfig(cohort=str(table), out=str(tmp_path / "set"), image_size=16, workers=1, shard_size=7))
    opened = ShardSet.open(tmp_path / "set")
    assert opened.columns == ("acute", "lvef", "device", "label_af")

    def chosen(exclude: list[str], split: str = "train") -> dict[int, float]:
        """Labels by cohort row, counted from 0."""
        changes = {"task": TaskConfig("label_af"), "cohort": CohortConfig(exclude)}
        settings = config(tmp_path / "set", tmp_path, None, mode="scratch", **changes)
        rows = labelled_rows(opened, split, settings, "all")
        return {int(sample) - 1: float(label) for sample, label in zip(rows.sample, rows.labels, strict=True)}

    train = [number for number in range(30) if number not in (0, 2) and number % 3 % 2 == 0]
    known = [number for number in train if number % 3 < 2]
    assert chosen([]) == {number: float(number % 3) for number in known}
    assert sorted(chosen(["acute"])) == [number for number in known if number % 5]
    assert sorted(chosen(["device=MAC 5500", "lvef<40"])) == [n for n in known if n % 2 == 0 and n >= 10]
    counts = exclusion_counts(opened, ["acute", "lvef<40"])
    assert counts["acute"]["train"] == sum(number % 5 == 0 for number in train)
    assert counts["all"]["train"] == sum(number % 5 == 0 or number < 10 for number in train)
    with pytest.raises(DataError, match=r"no row with device=MAC5500.*device there: MAC 5500"):
        chosen(["device=MAC5500"])
    with pytest.raises(DataError, match="does not hold prior_revascularization"):
        chosen(["prior_revascularization"])
    absent = config(tmp_path / "set", tmp_path, None, mode="scratch", task=TaskConfig("label_cabg"))
    with pytest.raises(DataError, match=r"holds no label_cabg \(label columns there: label_af\)"):
        labelled_rows(opened, "train", absent, "all")
    column = config(tmp_path / "set", tmp_path, None, mode="scratch", task=TaskConfig("device"))
    with pytest.raises(ConfigError, match=r"task\.target=device is not a target"):
        labelled_rows(opened, "train", column, "all")
    for entry in ("acute=1", "age", "patient_key=1", "age<old", "age<nan"):
        with pytest.raises(ConfigError, match=r"cohort\.exclude has the entry"):
            CohortConfig([entry])


def test_budget_and_rate() -> None:
    """60, 150, 500 updates at 50, 200, 1,000 labels, flat outside; the rate warms up to its peak and ends near 0."""
    assert [updates_for(count, SupervisedConfig()) for count in (5, 50, 200, 1000, 9000)] == [60, 60, 150, 500, 500]
    assert updates_for(100, SupervisedConfig()) == 105  # halfway in the logarithm
    rates = [rate_at(step, 100, SupervisedConfig()) for step in range(100)]
    assert np.argmax(rates) == 10
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] < 1e-5
    assert all(np.diff(rates[:11]) > 0)


def test_training_learns_a_planted_label(shards: Path) -> None:
    """The loss on a handful of recordings falls well below chance, and every tensor of the network moves."""
    opened = ShardSet.open(shards)
    rows = labelled_rows(opened, "train", config(shards, Path("none"), None, mode="scratch"), "ecg_only").draw("8", 0)
    tower = build_ecg_tower(TINY, None, seed=0)
    classifier = EcgClassifier(tower.encoder)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    settings = SupervisedConfig(steps=100, lr=1e-2)
    plain = dataclasses.replace(
        settings.augment, mask_probability=0.0, noise_probability=0.0, amplitude_probability=0.0
    )
    settings = dataclasses.replace(settings, augment=plain)
    reader = training_reader(opened, rows.rows, tower, settings, seed=0, verify="always")
    losses: list[float] = []
    labels = dict(zip(rows.sample.tolist(), rows.labels.tolist(), strict=True))
    train_classifier(classifier, reader, labels, settings, workers=0, on_update=lambda _, loss: losses.append(loss))
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)  # the head starts at zero
    assert np.mean(losses[-5:]) < 0.45
    assert all(not torch.equal(before[name], value) for name, value in classifier.state_dict().items())
