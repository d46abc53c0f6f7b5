"""Pictures of a run: there, readable, named as expected, and without any effect on what is trained."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import Forks
from PIL import Image
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stence_dist.data.shards import ShardSet
from stence_dist.evaluate.stored_embeddings import load_embeddings

TAGS = {
    *("pairs/similarity", "pairs/ecg_1", "pairs/ecg_2", "pairs/attention", "stenosis/roc"),
    *("embeddings/stenosis", "embeddings/age", "embeddings/site"),
}
# All runs in one process, which starts once; in the last one drawing fails.
RUNS = """
import dataclasses, sys
import stence_dist.train.pictures
from stence_dist.config.load import load
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.train.pretrain import start_ranks, train

config = load(PretrainConfig, "pretrain", sys.argv[1:])
device = start_ranks(config)


def fail(*_):
    raise ValueError("no ink")


for every in (2, 0, 1):
    if every == 1:
        stence_dist.train.pictures.pictures = fail
    run_dir = f"{config.run_dir}/{every}"
    train(dataclasses.replace(config, run_dir=run_dir, pictures_every=every), device)
"""
KEYS = [
    *("steps=3", "eval_every=1", "save_every=3", "log_every=1", "embedding=8", "targets.threshold=90"),
    *("ecg_encoder.seconds=1", "ecg_encoder.widths=[4,8]", "image_tower.width=8", "image_tower.depth=1"),
    *("image_tower.heads=2", "image_tower.feedforward=8", "image_tower.channels=[4,8]", "loss.stenosis_weight=0"),
    *("engine.global_batch_size=4", "engine.precision=fp32", "data.workers=0", "targets.unreported=normal"),
    "reference_samples=12",
]


@pytest.fixture(scope="module")
def runs(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """pictures_every -> the folder of a run that differs in nothing else; with 1 no picture can be drawn."""
    folder = tmp_path_factory.mktemp("pictures")
    keys = [*KEYS, f"data.shards={small_shards}", f"run_dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    script = folder / "runs.py"
    script.write_text(RUNS)
    process = Forks([str(script), *keys], [environment])
    output, _ = process.communicate()
    assert process.returncode == 0, output[-3000:]
    return {every: folder / str(every) for every in (2, 0, 1)}


def board(run: Path) -> EventAccumulator:
    """What TensorBoard reads of a run."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return events


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if not name.endswith("_s")} for line in lines]


def test_pictures_change_nothing(runs: dict[int, Path]) -> None:
    """Every loss, metric and weight has the bits of the run without pictures, at validations before the last, too."""
    assert rows(runs[2]) == rows(runs[0])
    assert sum("loss" in row for row in rows(runs[2])) == 3
    for name in ("ecg_tower.safetensors", "ecg_tower_best.safetensors"):
        assert (runs[2] / name).read_bytes() == (runs[0] / name).read_bytes()
    assert load_file(runs[2] / "ecg_tower.safetensors")


def test_a_run_survives_its_pictures(runs: dict[int, Path]) -> None:
    """Where drawing fails, each validation warns and says why; the run goes on to its end, the same in all else."""
    assert rows(runs[1]) == rows(runs[0])
    assert json.loads((runs[1] / "status.json").read_text())["state"] == "finished"
    log = (runs[1] / "log.txt").read_text()
    for step in (1, 2, 3):
        assert f"step {step}: pictures could not be drawn" in log
    assert "ValueError: no ink" in log


def test_tensorboard_holds_the_pictures(runs: dict[int, Path]) -> None:
    """Every second validation and the last, each tag with an image that decodes; none where they are off; numbers of
    alignment and uniformity beside them in both."""
    events = board(runs[2])
    assert set(events.Tags()["images"]) == TAGS
    for tag in TAGS:
        images = events.Images(tag)
        assert [image.step for image in images] == [2, 3]
        with Image.open(io.BytesIO(images[-1].encoded_image_string)) as decoded:
            pixels = np.asarray(decoded.convert("RGB"))
        assert pixels.shape[:2] == (images[-1].height, images[-1].width)
        assert pixels.std() > 5
    without = board(runs[0])
    assert without.Tags()["images"] == []
    for read in (events, without):
        scalars = read.Tags()["scalars"]
        assert {"val/alignment", "val/ecg_uniformity", "val/image_uniformity"} <= set(scalars)
    assert "could not be drawn" not in (runs[2] / "log.txt").read_text()


def test_the_last_validation_is_kept(runs: dict[int, Path], small_shards: Path) -> None:
    """With and without pictures: unit-norm embeddings of all validation pairs, whose alignment is the logged one."""
    table = ShardSet.open(small_shards).table("val")
    for run in runs.values():
        stored = load_embeddings(run)
        assert stored is not None
        assert stored.sample.tolist() == table.sample[table.has_study].tolist()
        for values in (stored.ecg, stored.image):
            assert values.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-6)
        logged = [row["val/alignment"] for row in rows(run) if row.get("split") == "val"][-1]
        assert ((stored.ecg - stored.image) ** 2).sum(axis=1).mean() == pytest.approx(logged, rel=1e-5)
