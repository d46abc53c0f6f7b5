"""The comparison end to end on a small shard set: schema, pairing, equality with finetune, and the report of both."""

import csv
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from labelled_shards import SIZES, labelled_shards

from stence_dist.config.compare import CompareConfig
from stence_dist.config.ecg_encoder import ResNetConfig
from stence_dist.config.finetune import FinetuneConfig, LabelledDataConfig, SupervisedConfig
from stence_dist.config.report import ReportConfig
from stence_dist.config.targets import TargetsConfig
from stence_dist.errors import ConfigError, DataError, SpecMismatchError
from stence_dist.evaluate.report.page import report
from stence_dist.models.ecg_tower import build_ecg_tower, save_ecg_tower
from stence_dist.train.compare import compare
from stence_dist.train.finetune import finetune

TINY = ResNetConfig(seconds=1.0, windows=2, widths=[4, 8])
ARM_KEYS = {"arm", "cohort", "labels", "stenosis_weight", "mean", "low", "high"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, cohort_writer: Callable[..., Path]) -> Path:
    """The shared labelled set."""
    return labelled_shards(tmp_path_factory, cohort_writer)


def tower(path: Path, seed: int, **encoder: object) -> str:
    """The file of a tiny tower."""
    save_ecg_tower(path, build_ecg_tower(dataclasses.replace(TINY, **encoder), 6, seed))
    return str(path)


def config(shards: Path, folder: Path, **changes: object) -> CompareConfig:
    """All arms, 12 and all labels, two draws."""
    values = {
        "run_dir": str(folder / "compare"),
        "weights": tower(folder / "paired.safetensors", 1),
        "unsupervised_weights": tower(folder / "unsupervised.safetensors", 2),
        "shuffled_weights": tower(folder / "shuffled.safetensors", 3),
        "labels": ["12", "all"],
        "draws": 2,
        "workers": 1,
        "bootstrap": 40,
        "data": LabelledDataConfig(shards=str(shards)),
        "targets": TargetsConfig(unreported="normal"),
        "supervised": SupervisedConfig(steps=2, batch_size=8),
    }
    return CompareConfig(**(values | changes))


@pytest.fixture(scope="module")
def compared(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished comparison of all arms, made by two processes."""
    folder = tmp_path_factory.mktemp("compare")
    compare(config(shards, folder, workers=2))
    return folder


def strict(path: Path) -> dict:
    """Parsed JSON without NaN."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in {path.name}"))


def test_summary_has_the_schema(compared: Path) -> None:
    """Every arm at every number of labels, probe and finetune at both weights; differences as the schema names them."""
    summary = strict(compared / "compare" / "summary.json")
    arms = {(row["arm"], row["labels"], row["stenosis_weight"]) for row in summary["arms"]}
    fixed = ("scratch", "random", "shuffled", "hand", "age_sex")
    expected = {(arm, n, 0.3) for arm in ("probe", "finetune", *fixed) for n in (12, "all")}
    assert arms == expected | {(arm, n, 0.0) for arm in ("probe", "finetune") for n in (12, "all")}
    assert all(set(row) == ARM_KEYS and row["cohort"] == "main" for row in summary["arms"])
    names = {row["name"] for row in summary["differences"]}
    assert names == {
        "probe-scratch",
        "finetune-scratch",
        "probe-shuffled",
        "shuffled-random",
        "probe-hand",
        "scratch-hand",
    }
    means = {(row["arm"], row["labels"], row["stenosis_weight"]): row["mean"] for row in summary["arms"]}
    row = next(
        r for r in summary["differences"] if (r["name"], r["labels"], r["stenosis_weight"]) == ("probe-scratch", 12, 0)
    )
    assert row["mean"] == pytest.approx(means["probe", 12, 0.0] - means["scratch", 12, 0.3])


@pytest.mark.parametrize("mode", ["probe", "finetune", "scratch"])
def test_a_cell_is_what_finetune_gives(mode: str, compared: Path, shards: Path, tmp_path: Path) -> None:
    """Test probabilities of the first draw equal those of finetune, in one process, with label_seed=0 and seed=0."""
    settings = config(shards, compared)
    finetune(
        FinetuneConfig(
            run_dir=str(tmp_path),
            weights=settings.weights,
            mode=mode,
            labels="12",
            bootstrap=5,
            data=settings.data,
            targets=settings.targets,
            supervised=settings.supervised,
        )
    )
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        alone = [float(row["probability"]) for row in csv.DictReader(file) if row["split"] == "test"]
    with open(compared / "compare" / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if (r["arm"], r["labels"], r["stenosis_weight"]) == (mode, "12", "0.3")]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], alone, atol=1e-6)


def test_a_null_cohort_has_its_own_rows(shards: Path, tmp_path: Path) -> None:
    """Three arms with 99 % bounds, and no differences."""
    compare(config(shards, tmp_path, null=True, labels=["12"], unsupervised_weights=None))
    summary = strict(tmp_path / "compare" / "summary.json")
    assert [row["arm"] for row in summary["arms"]] == ["probe", "finetune", "scratch"]
    assert all(set(row) == ARM_KEYS | {"low99", "high99"} for row in summary["arms"])
    assert summary["differences"] == []


def test_unlike_towers_are_refused(shards: Path, tmp_path: Path) -> None:
    """Towers of two recipes, a weight given twice, a missing file, an unknown arm."""
    other = tower(tmp_path / "other.safetensors", 1, seconds=0.5)
    with pytest.raises(SpecMismatchError, match="one recipe"):
        compare(config(shards, tmp_path, shuffled_weights=other))
    with pytest.raises(ConfigError, match="two runs at stenosis weight 0"):
        compare(config(shards, tmp_path, stenosis_weight=0.0))
    stated = tmp_path / "stated.safetensors"
    save_ecg_tower(stated, build_ecg_tower(TINY, 6, 1), pretraining={"stenosis_weight": 1.0})
    with pytest.raises(ConfigError, match=r"^weights=.* pretrained with loss\.stenosis_weight=1, and 0\.3 is wanted"):
        compare(config(shards, tmp_path, weights=str(stated), stenosis_weight=0.3))
    with pytest.raises(DataError, match="does not exist"):
        compare(config(shards, tmp_path, weights=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="magic"):
        config(shards, tmp_path, arms=["magic"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare(config(shards, tmp_path, arms=["shuffled"], shuffled_weights=None))


@pytest.mark.parametrize(
    ("key", "stated"),
    [
        ("weights", {"shuffle_pairs": True}),
        ("unsupervised_weights", {"stenosis_weight": 0.3}),
        ("shuffled_weights", {"shuffle_pairs": False}),
    ],
)
def test_a_tower_in_the_wrong_role_is_refused(
    key: str, stated: dict[str, object], shards: Path, tmp_path: Path
) -> None:
    """Its own file says how it was pretrained."""
    path = tmp_path / "stated.safetensors"
    save_ecg_tower(path, build_ecg_tower(TINY, 6, 1), pretraining=stated)
    with pytest.raises(ConfigError, match=f"^{key}=.*stated"):
        compare(config(shards, tmp_path, **{key: str(path)}))


def test_shuffled_pairs_are_compared_at_their_own_weight(shards: Path, tmp_path: Path) -> None:
    """Both towers pretrained at weight 1: the control is there at weight 1, and nothing of it at 0.3."""
    paths = {}
    for name, shuffled in (("weights", False), ("shuffled_weights", True)):
        paths[name] = str(tmp_path / f"{name}.safetensors")
        pretraining = {"stenosis_weight": 1.0, "shuffle_pairs": shuffled}
        save_ecg_tower(paths[name], build_ecg_tower(TINY, 6, 1), pretraining=pretraining)
    arms = ["probe", "shuffled", "random"]
    compare(config(shards, tmp_path, labels=["12"], arms=arms, unsupervised_weights=None, **paths))
    rows = strict(tmp_path / "compare" / "summary.json")["differences"]
    assert [(row["name"], row["stenosis_weight"]) for row in rows] == [("probe-shuffled", 1), ("shuffled-random", 1)]


def test_shares_stand_in_order_of_patients(shards: Path, tmp_path: Path) -> None:
    """In table and plot, whatever the order asked for; the smallest number of labels is the one in the tiles."""
    arms = ["probe", "scratch"]
    compare(config(shards, tmp_path, labels=["all", "50%", "8"], arms=arms, unsupervised_weights=None))
    report(ReportConfig(run_dir=str(tmp_path / "compare")))
    page = (tmp_path / "compare" / "report.html").read_text(encoding="utf-8")
    assert "<th>8</th><th>50%</th><th>all</th>" in page
    assert "probe − scratch at 8 labels" in page


def test_the_report_needs_nothing_else(compared: Path) -> None:
    """report.html holds the summary's numbers, plots, ECGs and frames; no request, no script, no patient identifier."""
    rows = [{"step": step, "loss": 4 - step / 100, "contrastive": 4.0, "stenosis": 0.5} for step in range(10, 60, 10)]
    rows.append({"step": 50, "split": "val", "val/recall@5": 0.2, "val/probe_auroc": None, "val/<b>": 1.0})
    lines = [json.dumps(row) for row in rows]
    (compared / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 60, "lo')
    report(ReportConfig(run_dir=str(compared)))
    page = (compared / "report.html").read_text(encoding="utf-8")
    summary = strict(compared / "compare" / "summary.json")
    assert f"{summary['arms'][0]['mean']:.3f}" in page
    assert page.count("data:image/png;base64,") == 6
    assert page.count("<svg") == 5  # label efficiency, ROC, loss, stenosis loss, recall
    assert f"{sum(SIZES['train'])}" in page
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    assert not re.search(r"<script|url\((?!#)|@import", page)
    assert "Research use only" in page
    assert not re.search(r"patient-\d", page)
    for name in ("compare/summary.json", "compare/predictions.csv", "metrics.jsonl", "compare/data.json"):
        assert name in page


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    """A folder without results, and no folder."""
    with pytest.raises(DataError, match="holds no"):
        report(ReportConfig(run_dir=str(tmp_path)))
    with pytest.raises(DataError, match="not a folder"):
        report(ReportConfig(run_dir=str(tmp_path / "none")))
