"""The engine and its checkpoints over several gloo ranks, against plain float64 torch in one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks
from safetensors.torch import load_file
from small_pair_model import SmallPairModel, configuration, distance, global_batch, known_counts, micro_batches, sgd
from small_pair_model import plain_run as plain

from stence_dist import checkpoint, distributed, engine, train_step

pytestmark = pytest.mark.dist
STAGES = (0, 1, 2, 3)


def reports(part: str, folder: Path, world_size: int, **environment: str) -> list[dict[str, Any]]:
    """What the ranks of `engine_ranks.py part folder` report."""
    script = Path(__file__).with_name("engine_ranks.py")
    env = {"DS_ACCELERATOR": "cpu", **environment}
    results = run_ranks(script, world_size, [part, str(folder)], timeout=150, env=env)
    assert all(result.returncode == 0 for result in results), "\n".join(result.output[-3000:] for result in results)
    return [json.loads((folder / f"{part}-{rank}.json").read_text()) for rank in range(world_size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks of this module write."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def stages(folder: Path) -> list[dict[str, Any]]:
    """Reports of two ranks, fp32."""
    return reports("stages", folder, 2)


@pytest.mark.parametrize("stage", STAGES)
def test_three_sgd_steps_equal_one_process(stage: int, stages: list[dict[str, Any]], folder: Path) -> None:
    """Three SGD steps at W=2 with accumulation and missing targets equal one float64 process. SGD, because Adam hides
    constant factors.
    """
    losses, expected = plain(configuration(stage, sgd()), 3)
    for report in stages:
        assert report[f"losses{stage}"] == pytest.approx(losses, rel=1e-6)
    assert distance(load_file(folder / f"sgd{stage}.safetensors"), expected) < 1e-6
    assert distance(SmallPairModel().state_dict(), expected) > 1e-3


@pytest.mark.parametrize("stage", STAGES)
def test_resume_at_the_same_size_is_bitwise(stage: int, stages: list[dict[str, Any]]) -> None:
    """Weights, moments and counts right after loading, and losses two steps later, on each of two ranks."""
    assert [report[f"resumes{stage}"] for report in stages] == [True, True]


@pytest.mark.parametrize("stage", STAGES)
def test_one_rank_s_nan_ends_all_before_the_update(stage: int, stages: list[dict[str, Any]]) -> None:
    """Both ranks raise the same error, which names the step and rank 1's sample; no weight has changed."""
    for kind in ("", "cached_"):
        assert stages[0][f"{kind}nan{stage}"] == stages[1][f"{kind}nan{stage}"]
        assert stages[0][f"{kind}nan{stage}"].startswith("NonFiniteError: step 4: the loss on rank 1 on")
        assert "not finite: 320." in stages[0][f"{kind}nan{stage}"]  # the fourth batch, 2nd part, rank 1's third row
        assert all(report[f"{kind}kept{stage}"] for report in stages)


def test_two_ranks_hand_over_to_one(stages: list[dict[str, Any]], folder: Path) -> None:
    """Saved at W=2, stage 2; W=1, stage 3 goes on with the same losses and weights to 1e-5."""
    if not distributed.active():
        distributed.start(60)
    config = configuration(3)
    built = engine.build(SmallPairModel(seed=1), config, device=torch.device("cpu"))
    loaded = checkpoint.load_newest(folder / "handover", built)
    assert loaded is not None
    assert loaded.state.step == 2
    for step, expected in zip(range(2, 5), stages[0]["handover"], strict=True):
        batch = global_batch(step)
        known = known_counts(batch, config)
        result = train_step.train_step(built, micro_batches(batch), step=step, total=8, known=known, config=config)
        assert result.loss == pytest.approx(expected, rel=1e-5)
    assert distance(engine.full_state(built), load_file(folder / "handover.safetensors")) < 1e-5


def test_one_rank_s_full_disk_fails_the_save_on_all(stages: list[dict[str, Any]]) -> None:
    """Both ranks raise an error that names rank 1 and the reason; the previous checkpoint stays alone."""
    for report in stages:
        assert report["full"].startswith("SaveError: The checkpoint could not be written (rank 1 on ")
        assert "No space left" in report["full"]
        assert report["after_full"] == ["step_000000002"]


def test_ranks_agree_to_skip_a_damaged_part(stages: list[dict[str, Any]]) -> None:
    """A flipped byte in rank 1's part of the newest, or a newest that is another one on rank 1: both load the one
    before it.
    """
    assert [report["loaded"] for report in stages] == [5, 5]
    assert [report["agreed"] for report in stages] == [5, 5]


def test_fp16_repeats_a_step_whose_gradient_overflows(tmp_path: Path) -> None:
    """Stage 0, two ranks: the scale falls, nothing is counted, three steps end near float64, the scale is resumed; a
    gradient that never fits is an error after 20 repeats.
    """
    ranks = reports("fp16", tmp_path, 2)
    losses, expected = plain(configuration(0, sgd()), 3)
    cached_losses, cached_expected = plain(configuration(0, sgd(), negatives="accumulated"), 3)
    for report in ranks:
        assert report["skipped"] > 0, "nothing overflowed, so nothing was tried"
        assert report["scale"] == 65536 / 2 ** report["skipped"]
        assert report["steps"] == 3
        assert report["losses"] == pytest.approx(losses, rel=1e-2)
        assert report["cached"] == pytest.approx(cached_losses, rel=1e-2)
        assert report["cached_skipped"] > 0
        assert report["resumed_scale"] == report["scale"]
        assert report["same"]
        assert report["endless"].startswith("NonFiniteError: step 1")
        assert report["endless_skipped"] == 21
    assert distance(load_file(tmp_path / "fp16.safetensors"), expected) < 1e-2
    assert distance(load_file(tmp_path / "fp16_cached.safetensors"), cached_expected) < 1e-2


def test_bf16_trains_and_resumes(tmp_path: Path) -> None:
    """Two ranks at stages 0 and 3: close to float64, alike across stages, bitwise on resume."""
    ranks = reports("bf16", tmp_path, 2)
    losses, expected = plain(configuration(0, sgd()), 3)
    for report in ranks:
        for stage in (0, 3):
            assert report[f"losses{stage}"] == pytest.approx(losses, rel=3e-2)
            assert report[f"resumes{stage}"]
    states = [load_file(tmp_path / f"bf16_{stage}.safetensors") for stage in (0, 3)]
    assert all(distance(state, expected) < 3e-2 for state in states)
    assert distance(*states) < 1e-6


@pytest.mark.slow
def test_a_chain_of_sizes_and_stages_is_one_run(tmp_path: Path) -> None:
    """W = 2, 3, 4, 1 at stages 2, 3, 0, 1, two AdamW steps each, equal eight steps of one uninterrupted rank."""
    losses = []
    for world_size, stage in ((2, 2), (3, 3), (4, 0), (1, 1)):
        losses += reports("link", tmp_path, world_size, STAGE=str(stage))[0]["losses"]
    if not distributed.active():
        distributed.start(60)
    config = configuration(1)
    built = engine.build(SmallPairModel(), config, device=torch.device("cpu"))
    for step in range(8):
        batch = global_batch(step)
        known = known_counts(batch, config)
        result = train_step.train_step(built, micro_batches(batch), step=step, total=8, known=known, config=config)
        assert losses[step] == pytest.approx(result.loss, rel=1e-5)
    assert distance(load_file(tmp_path / "chain.safetensors"), engine.full_state(built)) < 1e-5
