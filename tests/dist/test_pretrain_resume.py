"""Runs that are killed, stopped or moved to other ranks continue as if nothing had happened."""

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from pretraining import LAUNCHER, PLAIN, SABOTAGED, SMALL, Started, pretrain, ranks_of, rows, start, steps

pytestmark = pytest.mark.dist

RUN = [*SMALL, "steps=24", "engine.global_batch_size=12", "save_every=3", "eval_every=8"]
# Kills at random moments, and how slow updates are meanwhile, so that a run outlasts the pause before its kill.
KILLS, PAUSE_S = (10, "0.5") if os.environ.get("SLOW") else (1, "0.05")

# Where a rank may die in a run that saves every 3 steps: (point, largest call number).
KILL_AT = {"load": 12, "forward": 12, "backward": 12, "step": 12, "row": 12, "part": 4, "json": 6, "commit": 4}
CHOSEN_KILLS = 50 if os.environ.get("SLOW") else 4


@pytest.fixture(scope="module")
def whole(small_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """(arguments, uninterrupted run on two ranks at ZeRO 2)."""
    arguments = [*RUN, f"data.shards={small_shards}", "engine.zero_stage=2"]
    run = tmp_path_factory.mktemp("whole") / "run"
    pretrain(LAUNCHER, 2, [*arguments, f"run_dir={run}"])
    return arguments, run


def wait_for_rows(run: Path, count: int, process: Started) -> None:
    """Return when metrics.jsonl has `count` rows or the run has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= count:
            return
        time.sleep(0.02)


def last_state(run: Path) -> list[object]:
    """The final ECG tower, and the last checkpoint's manifest: with the hashes of all weights and moments."""
    manifest = json.loads((run / "checkpoints" / "step_000000024" / "manifest.json").read_text())
    return [(run / "ecg_tower.safetensors").read_bytes(), manifest]


def assert_undisturbed(run: Path, expected: Path) -> None:
    """A finished run with the rows and the weights, bitwise, of the uninterrupted one."""
    assert rows(run) == rows(expected)
    assert last_state(run) == last_state(expected)
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_kills_leave_no_trace(whole: tuple[list[str], Path], tmp_path: Path) -> None:
    """kill -9 of one rank or all at random moments, then the same command: rows and weights as if uninterrupted."""
    arguments, expected = [*whole[0], "data.workers=1"], whole[1]
    run, draw = tmp_path / "run", random.Random(20)
    hit = 0
    for kill in range(KILLS):
        fresh = not run.exists()
        process = start(LAUNCHER, 2, [*arguments, f"run_dir={run}"], script=SABOTAGED, PAUSE_S=PAUSE_S)
        wait_for_rows(run, draw.randint(1, 9), process)
        while not ranks_of(process) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(draw.random() * (0.3 if fresh else 10))  # the rows of runs before are there from the start
        ranks, killed = ranks_of(process), time.monotonic()
        for victim in ranks if draw.random() < 0.5 else draw.sample(ranks, min(1, len(ranks))):
            victim.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        if process.returncode:
            hit += 1
            assert time.monotonic() - killed < 10, output[-3000:]
        else:  # ended before its kill: what it did counts, the next kill meets a new run
            assert "finished" in output, output[-2000:]
            assert_undisturbed(run, expected)
            run = tmp_path / f"run_{kill}"
    pretrain(LAUNCHER, 2, [*arguments, f"run_dir={run}"])
    assert_undisturbed(run, expected)
    assert hit >= KILLS * 0.8, "too few of the runs were killed"


def test_kills_at_chosen_places_leave_no_trace(whole: tuple[list[str], Path], tmp_path: Path) -> None:
    """kill -9 of one rank or all, at drawn calls of loading, forward, backward, update, logging and every part of a
    save; then the same command: rows and final weights bitwise those of the undisturbed run.
    """
    draw = random.Random(4)
    arguments, expected = whole
    run = tmp_path / "run"
    hit = 0
    for kill in range(CHOSEN_KILLS):
        point = list(KILL_AT)[kill % len(KILL_AT)] if CHOSEN_KILLS > 4 else ("backward", "part", "commit", "row")[kill]
        rank = "0" if point in ("row", "json", "commit") else draw.choice(["0", "1", "all"])
        call = draw.randint(1, min(KILL_AT[point], 3) if run.exists() else KILL_AT[point])
        process = start(
            LAUNCHER, 2, [*arguments, f"run_dir={run}"], script=SABOTAGED, SABOTAGE=f"{rank} {point} {call} kill"
        )
        process.communicate(timeout=120)
        hit += process.returncode != 0
        if process.returncode == 0 or kill == CHOSEN_KILLS - 1:
            pretrain(LAUNCHER, 2, [*arguments, f"run_dir={run}"])
            assert_undisturbed(run, expected)
            run = tmp_path / f"run_{kill}"
    assert hit >= CHOSEN_KILLS * 0.8, "too few of the runs were killed"


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_crash_at_any_point_of_a_save_leaves_no_trace(
    rank: str, whole: tuple[list[str], Path], tmp_path: Path
) -> None:
    """kill -9 of one rank of two before each file operation and collective of the second save, and after the last;
    then the same command: rows and final weights bitwise those of the undisturbed run.
    """
    arguments, expected = whole
    operation, done = 0, None
    while done is None or len(done) == operation - 1:
        operation += 1
        run, struck = tmp_path / f"run_{operation}", tmp_path / f"struck_{operation}"
        process = start(
            "forks",
            2,
            [*arguments, f"run_dir={run}"],
            script=SABOTAGED,
            CRASH=f"{rank} 2 {operation}",
            STRUCK=str(struck),
        )
        output, _ = process.communicate(timeout=120)
        assert process.returncode != 0, output[-3000:]
        assert struck.exists(), output[-3000:]
        done = struck.read_text().split()
        pretrain("forks", 2, [*arguments, f"run_dir={run}"])
        assert_undisturbed(run, expected)
    assert {"save_file", "fsync", "replace", "barrier"} <= set(done), "the save was not followed"
    assert rank != "0" or "rename" in done


def test_stop_and_move_to_other_ranks(whole: tuple[list[str], Path], tmp_path: Path) -> None:
    """SIGUSR1 to the ranks saves and exits; W=2 at ZeRO 2 goes on at W=1, ZeRO 3 with losses within 1e-5."""
    arguments, expected = whole
    run = tmp_path / "run"
    process = start(LAUNCHER, 2, [*arguments, f"run_dir={run}"])
    wait_for_rows(run, 6, process)
    ranks_of(process)[-1].send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "stopped", output[-2000:]
    assert 6 <= status["step"] < 24
    moved = [argument for argument in arguments if "zero_stage" not in argument]
    pretrain(PLAIN, 1, [*moved, "engine.zero_stage=3", f"run_dir={run}"])
    here, there = steps(run), steps(expected)
    assert [row["batch_hash"] for row in here] == [row["batch_hash"] for row in there]
    np.testing.assert_allclose([row["loss"] for row in here], [row["loss"] for row in there], rtol=1e-5)


def test_stop_file_and_finished_run(whole: tuple[list[str], Path], tmp_path: Path) -> None:
    """RUN_DIR/STOP ends plain python with code 75; a finished run says so and exits 0; another config is refused, and
    another best_metric begins anew."""
    arguments, _ = whole
    run = tmp_path / "run"
    process = start(PLAIN, 1, [*arguments, f"run_dir={run}"])
    wait_for_rows(run, 10, process)
    (run / "STOP").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output[-2000:]
    assert not (run / "STOP").exists()
    refused = pretrain(PLAIN, 1, [*arguments, f"run_dir={run}", "loss.temperature=0.1"], expected=2)
    assert "loss.temperature (0.2 there, 0.1 now)" in refused
    other = pretrain(PLAIN, 1, [*arguments, f"run_dir={run}", "best_metric=val/recall@10"])
    assert "best_metric was val/recall@5 and is val/recall@10 now" in other
    assert "finished already" in pretrain(PLAIN, 1, [*arguments, f"run_dir={run}"])


def test_second_start_is_refused(whole: tuple[list[str], Path], tmp_path: Path) -> None:
    """A second start on a live run exits 2 and names the holder."""
    arguments = [*whole[0], "steps=100000", "save_every=100000", "eval_every=100000"]
    run = tmp_path / "run"
    process = start(PLAIN, 1, [*arguments, f"run_dir={run}"])
    wait_for_rows(run, 1, process)
    message = pretrain(PLAIN, 1, [*arguments, f"run_dir={run}"], expected=2)
    process.kill()
    process.communicate()
    assert f"process {process.pid}" in message


def test_a_slow_start_is_no_part_of_the_rate(small_shards: Path, tmp_path: Path) -> None:
    """Models take four seconds to build; one step of twelve pairs then takes less than that."""
    arguments = [*RUN, "steps=1", f"data.shards={small_shards}", f"run_dir={tmp_path / 'run'}"]
    process = start(PLAIN, 1, arguments, script=SABOTAGED, SABOTAGE="all model 1 dawdle")
    output, _ = process.communicate(timeout=240)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1, output[-3000:]
    assert 12 / first["samples_per_s"] < 4
