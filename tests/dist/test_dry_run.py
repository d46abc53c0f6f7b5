"""Two steps of everything, on started ranks."""

from pathlib import Path

import pytest
from pretraining import LAUNCHER, PLAIN, SMALL, pretrain

pytestmark = pytest.mark.dist

RUN = [*SMALL, "engine.global_batch_size=12", "dry_run=true", "data.workers=1", "epochs=40"]


def test_a_dry_run_does_everything_and_leaves_nothing(small_shards: Path, tmp_path: Path) -> None:
    """Two ranks train, save, load, validate and report; then only the message is left, with the length of the run."""
    arguments = [*RUN, f"data.shards={small_shards}", f"run_dir={tmp_path / 'run'}"]
    output = pretrain(LAUNCHER, 2, arguments)
    assert "going on after step 1" in output
    assert "step 2 val/recall@5" in output
    assert "dry run passed in" in output, output[-3000:]
    assert "so 60 steps take about" in output  # 40 passes over 18 pairs, 12 per step
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_that_fails_says_what_training_would(small_shards: Path, tmp_path: Path) -> None:
    """The refusal of the real run, with its exit code."""
    arguments = [*RUN, f"data.shards={small_shards}", f"run_dir={tmp_path / 'run'}", "engine.global_batch_size=64"]
    output = pretrain(PLAIN, 1, arguments, expected=2)
    assert "engine.global_batch_size=64" in output
