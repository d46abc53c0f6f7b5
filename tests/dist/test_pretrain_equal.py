"""The same run under every launcher, number of ranks, ZeRO stage and number of loader workers."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pretraining import LAUNCHER, PLAIN, SMALL, pretrain, steps
from safetensors.numpy import load_file

from stence_dist.config.load import load
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.files import read_json
from stence_dist.models.ecg_tower import build_ecg_tower

pytestmark = pytest.mark.dist

LAUNCHES = [("torchrun", ranks, stage) for ranks in (1, 2, 4) for stage in range(4)]
LAUNCHES += [("deepspeed", 2, stage) for stage in range(4)] + [("python", 1, stage) for stage in (0, 2, 3)]
ALL = [(optimizer, *launch) for optimizer in ("adamw", "sgd") for launch in LAUNCHES]
CROSSING = [("adamw", "deepspeed", 2, 2), ("adamw", "forks", 4, 3), ("sgd", "torchrun", 2, 0)]
CASES = ALL if os.environ.get("SLOW") else CROSSING
# 20 steps of 12 over a number of pairs that 12 does not divide.
RUN = [*SMALL, "steps=20", "engine.global_batch_size=12", "eval_every=20", "save_every=100"]


def tower(run: Path) -> dict[str, np.ndarray]:
    """The final ECG tower in float64."""
    return {name: value.astype(np.float64) for name, value in load_file(run / "ecg_tower.safetensors").items()}


def norm(values: dict[str, np.ndarray]) -> float:
    """The Euclidean norm of all tensors together."""
    return float(np.sqrt(sum((value**2).sum() for value in values.values())))


@pytest.fixture(scope="module")
def reference(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[str], Path]]:
    """From an optimizer to (arguments, plain one-process run at ZeRO 1), each run made when first asked for."""

    @functools.cache
    def run_of(optimizer: str) -> tuple[list[str], Path]:
        arguments = [*RUN, f"data.shards={small_shards}", f"optimizer={optimizer}"]
        if optimizer == "sgd":
            arguments += ["optimizer.ecg_lr=0.05", "optimizer.image_lr=0.05"]
        run = tmp_path_factory.mktemp(f"reference_{optimizer}") / "run"
        # In the suite one of the two is a plain python that nothing was imported for.
        launcher = "python" if optimizer == "adamw" else PLAIN
        pretrain(launcher, 1, [*arguments, f"run_dir={run}", "engine.zero_stage=1"])
        return arguments, run

    return run_of


@pytest.mark.parametrize(("optimizer", "launcher", "ranks", "stage"), CASES)
def test_losses_and_weights_are_those_of_one_process(
    reference: Callable[[str], tuple[list[str], Path]],
    optimizer: str,
    launcher: str,
    ranks: int,
    stage: int,
    tmp_path: Path,
) -> None:
    """20 losses within 1e-5, equal batch hashes; under SGD the weights moved alike. Reference: plain python, ZeRO 1."""
    arguments, expected = reference(optimizer)
    run = tmp_path / "run"
    pretrain(launcher, ranks, [*arguments, f"run_dir={run}", f"engine.zero_stage={stage}"])
    here, there = steps(run), steps(expected)
    assert [row["step"] for row in here] == list(range(1, 21))
    assert [row["batch_hash"] for row in here] == [row["batch_hash"] for row in there]
    for name in ("loss", "contrastive", "stenosis"):
        np.testing.assert_allclose([row[name] for row in here], [row[name] for row in there], rtol=1e-5)
    if optimizer == "sgd":
        before = start_of(arguments)
        moved, moved_there = tower(run), tower(expected)
        change = {name: moved_there[name] - before[name] for name in before}
        apart = {name: moved[name] - moved_there[name] for name in before}
        assert norm(change) >= 1e-3 * norm(before)
        assert norm(apart) <= 1e-4 * norm(change)
        assert norm(apart) <= 1e-5 * norm(moved_there)


def start_of(arguments: list[str]) -> dict[str, np.ndarray]:
    """The ECG tower's weights before the first step, in float64."""
    config = load(PretrainConfig, "pretrain", [*arguments, "run_dir=unused"])
    tower = build_ecg_tower(config.ecg_encoder, config.embedding, config.seed)
    return {name: value.double().numpy() for name, value in tower.state_dict().items()}


@pytest.mark.parametrize("stage", range(4) if os.environ.get("SLOW") else [2])
def test_accumulated_negatives_change_nothing_but_memory(
    reference: Callable[[str], tuple[list[str], Path]], stage: int, tmp_path: Path
) -> None:
    """Two micro-batches with one pool on two ranks are the run of one: same identity, losses within 1e-5."""
    arguments, expected = reference("adamw")
    run = tmp_path / "run"
    cached = ["engine.accumulation=2", "engine.negatives=accumulated", f"engine.zero_stage={stage}"]
    pretrain(LAUNCHER, 2, [*arguments, *cached, f"run_dir={run}"])
    assert read_json(run / "data.json")["identity"] == read_json(expected / "data.json")["identity"]
    for name in ("loss", "contrastive", "stenosis", "grad_norm"):
        here, there = ([row[name] for row in steps(folder)] for folder in (run, expected))
        np.testing.assert_allclose(here, there, rtol=1e-5)


@pytest.mark.parametrize("workers", [1, 4] if os.environ.get("SLOW") else [4])
def test_loader_workers_change_nothing(
    reference: Callable[[str], tuple[list[str], Path]], workers: int, tmp_path: Path
) -> None:
    """0, 1 and 4 loader workers: every metric and the final weights bitwise equal."""
    arguments, expected = reference("adamw")
    run = tmp_path / "run"
    pretrain(PLAIN, 1, [*arguments, f"run_dir={run}", "engine.zero_stage=1", f"data.workers={workers}"])
    assert steps(run) == steps(expected)
    assert (run / "ecg_tower.safetensors").read_bytes() == (expected / "ecg_tower.safetensors").read_bytes()


def test_it_learns(reference: Callable[[str], tuple[list[str], Path]]) -> None:
    """The mean of the last five losses lies below that of the first five."""
    losses = [row["loss"] for row in steps(reference("adamw")[1])]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
