"""The page of a run folder: its sections follow its files, its numbers follow from them, and it names nobody."""

import csv
import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from labelled_shards import SIZES, labelled_shards

from stence_dist import files
from stence_dist.config.report import ReportConfig
from stence_dist.data.shards import ShardSet
from stence_dist.errors import DataError
from stence_dist.evaluate.calibration import measure_calibration
from stence_dist.evaluate.report.page import report
from stence_dist.evaluate.statistics import measure, measure_difference, patient_counts
from stence_dist.evaluate.stored_embeddings import NAME, StoredEmbeddings, save_embeddings

COUNTS = {"rows": 16, "patients": 16, "positive": 8}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, cohort_writer: Callable[..., Path]) -> ShardSet:
    """The shared labelled set."""
    return ShardSet.open(labelled_shards(tmp_path_factory, cohort_writer))


def describe(folder: Path, shards: ShardSet, **more: object) -> None:
    """config.yaml and data.json of a run over `shards`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("targets: {unreported: normal}\n")
    named = {"shards": str(shards.folder), "fingerprint": shards.fingerprint, "excluded": {}}
    files.write_json(folder / "data.json", named | more)


def write_result(folder: Path, shards: ShardSet, target: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A fine-tuning result with random probabilities of the labelled test rows: labels, probabilities, patients."""
    describe(folder, shards)
    table, rng = shards.table("test"), np.random.default_rng(len(target))
    labels = (np.nanmax(table.segments, axis=1) >= 70).astype(int)
    probability = np.clip(0.25 + 0.4 * labels + rng.normal(size=len(labels)) * 0.5, 0.01, 0.99)
    with open(folder / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["patient_key", "sample", "split", "target", "label", "probability"])
        for key, sample, truth, value in zip(table.patient_key, table.sample, labels, probability, strict=True):
            writer.writerow([key, sample, "test", target, truth, repr(float(value))])
    counts = patient_counts(np.unique(table.patient_key, return_inverse=True)[1], 20, seed=0)
    metrics = {
        "mode": "probe",
        "target": target,
        "rows": "all",
        "threshold": 0.5,
        "interval": {"level": 0.95, "draws": 20, "unit": "patient"},
        "counts": dict.fromkeys(("train", "val", "test", "pool"), COUNTS),
        "test": measure(labels, probability, counts, threshold=0.5, level=0.95),
        "age_sex": measure(labels, 1 - probability, counts, threshold=0.5, level=0.95),
        "difference_to_age_sex": measure_difference(labels, probability, 1 - probability, counts, level=0.95),
    }
    files.write_json(folder / "metrics.json", metrics)
    return labels, probability, table.patient_key


def page_of(folder: Path) -> str:
    """The page's text without tags, spaces joined."""
    report(ReportConfig(run_dir=str(folder)))
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", text)
    assert not re.search(r"<script|url\((?!#)|@import", text)
    assert not re.search(r"patient-\d", text)
    return re.sub(
        r"\s+", " ", html.unescape(re.sub(r"<svg.*?</svg>|<style>.*?</style>|<[^>]+>", " ", text, flags=re.S))
    )


def test_every_result_has_its_row_and_curves(shards: ShardSet, tmp_path: Path) -> None:
    """Two targets, one of them a label column two levels down: numbers of metrics.json, calibration of its own fit,
    four figures where percent is known and three where the target is no artery; flow counts of the index."""
    truth = write_result(tmp_path / "patient", shards, "patient")
    write_result(tmp_path / "more" / "label_af", shards, "label_af")
    page = page_of(tmp_path)
    metrics = json.loads((tmp_path / "patient" / "metrics.json").read_text())
    assert f"{metrics['test']['auroc']:.3f} {metrics['test']['auroc_low']:.3f} to" in page
    keys = np.unique(truth[2], return_inverse=True)[1]
    expected = measure_calibration(truth[0], truth[1], patient_counts(keys, 200, seed=0), level=0.95)
    assert f"slope {expected['slope']:.3f} [{expected['slope_low']:.3f}, ".replace("-", "−") in page
    assert page.index("patient, probe") < page.index("label_af, probe")
    assert "more/label_af" in page
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert raw.count("<svg") == 4 + 3
    pairs, alone = (sum(sizes[kind] for sizes in SIZES.values()) for kind in (0, 1))
    assert f"{pairs + alone} rows of the cohort table {pairs + alone} recordings in the shard set" in page
    train, val, test = (sum(SIZES[split]) for split in ("train", "val", "test"))
    assert f"train {train} · val {val} · test {test}" in page
    assert "16 16 16" not in page  # counts are labelled, never bare
    assert "The joint space" not in page


def test_what_was_left_out_is_counted(shards: ShardSet, tmp_path: Path) -> None:
    """Pairs that a run used fewer of, with the rule that named them."""
    left = {"age<50": {"train": 3, "val": 0, "test": 1}, "all": {"train": 3, "val": 0, "test": 1}}
    describe(tmp_path, shards, excluded=left, pairs={"train": SIZES["train"][0] - 3, "val": SIZES["val"][0]})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    page = page_of(tmp_path)
    used = SIZES["train"][0] - 3 + SIZES["val"][0]
    assert f"− 3 left out (recordings named by each rule: age<50 4) {used} pairs of pretraining" in page


def test_the_joint_space_needs_its_file(shards: ShardSet, tmp_path: Path) -> None:
    """Of four pairs whose ECGs all lie at the first angiogram: ranks by hand, the own one marked once per example. No
    section without the file, nor where the shard set is another one by now."""
    describe(tmp_path, shards)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    table = shards.table("val")
    sample = table.sample[table.has_study]
    image = np.eye(4, dtype=np.float32)
    ecg = np.tile(np.array([0.8, 0.4, 0.4, 0.2], dtype=np.float32), (4, 1))
    ecg[:, 1] += 0.1
    save_embeddings(tmp_path, StoredEmbeddings(sample, ecg / np.linalg.norm(ecg, axis=1, keepdims=True), image))
    page = page_of(tmp_path)
    assert "4 validation pairs as the last weights see them" in page
    examples = re.findall(r"(An? \w+ one): val sample (\d+)", page)
    assert [name for name, _ in examples] == ["An easy one", "A middling one", "A hard one"]
    owned = re.findall(r"(\d)\. its own cosine [−\d.]+ sample (\d+)", page)
    assert [(sample.tolist().index(int(number)) + 1, int(rank)) for rank, number in owned] == [(1, 1), (3, 3), (4, 4)]
    assert [number for _, number in examples] == [number for _, number in owned]
    assert "the probe needs two sites of five patients or more" in page
    describe(tmp_path, shards, fingerprint="another")
    page = page_of(tmp_path)
    assert "The joint space" not in page
    assert "its fingerprint differs" in page
    describe(tmp_path, shards)
    (tmp_path / NAME).unlink()
    assert "The joint space" not in page_of(tmp_path)


def test_what_weakens_a_result_is_said(shards: ShardSet, tmp_path: Path) -> None:
    """Another pretraining set, paired rows, few of a class, no age and sex, a threshold of its own for one segment."""
    write_result(tmp_path, shards, "lad")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    weak = {"pretrained_on": "another shard set", "rows": "paired", "age_sex": None, "difference_to_age_sex": None}
    files.write_json(tmp_path / "metrics.json", metrics | weak)
    (tmp_path / "config.yaml").write_text("targets: {unreported: normal, segment_thresholds: {6: 50}}\n")
    page = page_of(tmp_path)
    assert "pretrained on another shard set" in page
    assert "patients whom pretraining has seen" in page
    assert "Fewer than ten test ECGs of one class" in page
    assert "Age and sex are not known here" in page
    assert (
        "at 70 % diameter stenosis or more, segment 6 at 50 %; a segment that is not reported counts as normal" in page
    )
    assert "dashed the threshold" not in page  # 50 and 70 decide lad together


@pytest.mark.parametrize("name", ["metrics.json", "summary.json"])
def test_a_foreign_result_is_left_out(
    name: str, shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program's file of the same name two levels below ends in a warning, not in a traceback."""
    write_result(tmp_path, shards, "patient")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_text('{"accuracy": 1}')
    page_of(tmp_path)
    assert f"other/{name} is not what compare or finetune writes" in caplog.text


def test_a_truncated_embeddings_file_is_named(shards: ShardSet, tmp_path: Path) -> None:
    """As a copied run folder may have it."""
    describe(tmp_path, shards)
    rows = np.eye(4, dtype=np.float32)
    save_embeddings(tmp_path, StoredEmbeddings(np.arange(4), rows, rows))
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"val\.npz is not what a run writes"):
        page_of(tmp_path)
