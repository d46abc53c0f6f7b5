"""What goes wrong on one rank ends them all, soon, with one message."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pretraining import LAUNCHER, SABOTAGED, SCRIPT, SMALL, Started, environment, ranks_of, rows, start

pytestmark = pytest.mark.dist

RUN = [*SMALL, "steps=12", "engine.global_batch_size=12", "save_every=3", "eval_every=6", "engine.zero_stage=2"]
HOST = os.uname().nodename


def fail(arguments: list[str], sabotage: str, struck: Path, timeout: float = 120) -> tuple[str, float]:
    """Output of two ranks of which one is sabotaged, which must fail, and the seconds from the failure to the end.

    `struck` is a file that the failing rank touches first.
    """
    process = start(LAUNCHER, 2, arguments, script=SABOTAGED, SABOTAGE=sabotage, STRUCK=str(struck))
    output, _ = process.communicate(timeout=timeout)
    took = time.time() - struck.stat().st_mtime
    assert process.returncode == 1, output[-3000:]
    return output, took


FAILURES = [
    ("1 step 4 out_of_memory", ["failed: MemoryError: no 3 GB left", "step 4 of 12, samples "]),
    ("0 part 2 full", ["SaveError", "OSError: [Errno 28] No space left", "step 6 of 12"]),
]
if os.environ.get("SLOW"):
    FAILURES += [
        ("1 load 5 bad_sample", ["error: cohort row 7 (train), patient 0123abcd: the ECG is damaged.", "step 5 of 12"]),
        ("1 forward 4 out_of_memory", ["failed: MemoryError: no 3 GB left", "step 4 of 12, samples "]),
        ("1 backward 4 out_of_memory", ["failed: MemoryError: no 3 GB left", "step 4 of 12, samples "]),
        ("0 commit 2 read_only", ["SaveError", "Read-only file system"]),
        ("0 row 3 full", ["failed: OSError: [Errno 28] No space left on device", "step 3 of 12"]),
    ]


@pytest.mark.parametrize(("sabotage", "expected"), FAILURES)
def test_one_rank_s_failure_ends_all(sabotage: str, expected: list[str], small_shards: Path, tmp_path: Path) -> None:
    """Within 10 s, exit 1, a message that names rank, host, step and samples; the same command then goes on."""
    arguments = [*RUN, f"data.shards={small_shards}", f"run_dir={tmp_path / 'run'}"]
    output, took = fail(arguments, sabotage, tmp_path / "struck")
    assert took < 10
    rank = sabotage.split()[0]
    for part in [*expected, f"rank {rank} on {HOST}"]:
        assert part in output, output[-3000:]
    if sabotage.split()[-1] in ("bad_sample", "out_of_memory"):  # on a full disk nothing is written any more
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert status["state"] == "failed"
        assert f"rank {rank} on {HOST}" in status["message"]
        assert " of 12" in status["message"]
    assert output.count("failed: ") + output.count("error: ") == 1, "one message"
    if "SaveError" in expected:
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000000003"]


def test_a_rank_killed_at_the_start_ends_the_other(small_shards: Path, tmp_path: Path) -> None:
    """While its peer builds groups and waits for it in C++: the launcher's SIGTERM still ends that one, within 10 s."""
    arguments = [*RUN, f"data.shards={small_shards}", f"run_dir={tmp_path / 'run'}"]
    process = start("torchrun", 2, arguments, script=SABOTAGED, SABOTAGE="1 model 1 kill")
    while "closing signal SIGTERM" not in (line := process.stdout.readline() if process.stdout else ""):
        assert line, "ended without a word"
    killed = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output[-3000:]
    assert time.monotonic() - killed < 10


@pytest.mark.parametrize("point", ["forward", "step"])  # its peer then waits in our collective, or in DeepSpeed's
def test_a_frozen_rank_ends_the_others(point: str, small_shards: Path, tmp_path: Path) -> None:
    """A rank that neither works nor dies (SIGSTOP: what a cut link looks like from the other side): its peer ends
    within the collective timeout + 10 s and says what it lost.
    """
    timeout_s = 20 if os.environ.get("SLOW") else 5
    run = tmp_path / "run"
    arguments = [*RUN, f"data.shards={small_shards}", f"run_dir={run}", f"engine.timeout_s={timeout_s}"]
    process = start(LAUNCHER, 2, [*arguments, "save_every=100"], script=SABOTAGED, SABOTAGE=f"1 {point} 4 freeze")
    while (frozen := stopped_rank(process)) is None:
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)
    began = time.monotonic()
    while len(ranks_of(process)) > 1:
        assert time.monotonic() - began < timeout_s + 10
        time.sleep(0.1)
    frozen.send_signal(signal.SIGCONT)  # the launcher's SIGTERM waits for it to wake
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "rank 0 lost its peers" in output, output[-3000:]
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed"
    assert "PeerLostError" in status["message"]


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by one cable, 10.77.0.1 on the device end1, 10.77.0.2 on end2."""
    names = f"stence-a-{os.getpid()}", f"stence-b-{os.getpid()}"
    if shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", names[0]], capture_output=True).returncode:
        pytest.skip("network namespaces: not allowed here, or no `ip`")
    try:
        calls = [f"netns add {names[1]}", f"link add end1 netns {names[0]} type veth peer name end2 netns {names[1]}"]
        for last, name in enumerate(names, start=1):
            calls += [f"-n {name} addr add 10.77.0.{last}/24 dev end{last}"]
            calls += [f"-n {name} link set end{last} up", f"-n {name} link set lo up"]
        for call in calls:
            subprocess.run(["ip", *call.split()], check=True, capture_output=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_a_cut_link_ends_both_sides(two_hosts: tuple[str, str], small_shards: Path, tmp_path: Path) -> None:
    """Two hosts whose cable is pulled: both ranks end with exit 1 within the collective timeout + 10 s."""
    timeout_s = 20 if os.environ.get("SLOW") else 5
    run = tmp_path / "run"
    arguments = [*RUN, f"data.shards={small_shards}", f"run_dir={run}", f"engine.timeout_s={timeout_s}", "steps=100000"]
    ranks = []
    for rank, name in enumerate(two_hosts):
        place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        meeting = {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29511", "GLOO_SOCKET_IFNAME": f"end{rank + 1}"}
        command = ["ip", "netns", "exec", name, sys.executable, str(SCRIPT), *arguments, "save_every=100000"]
        ranks.append(
            subprocess.Popen(
                command,
                env=environment(**place, **meeting),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or len(rows(run)) < 3:
            assert time.monotonic() < deadline
            assert all(rank.poll() is None for rank in ranks), ranks[0].communicate()[0]
            time.sleep(0.1)
        subprocess.run(["ip", "-n", two_hosts[0], "link", "set", "end1", "down"], check=True)
        cut = time.monotonic()
        outputs = [rank.communicate(timeout=timeout_s + 30)[0] for rank in ranks]
        assert time.monotonic() - cut < timeout_s + 10
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert all(f"rank {number} lost its peers" in output for number, output in enumerate(outputs)), outputs


def stopped_rank(process: Started) -> psutil.Process | None:
    """The rank that has been stopped, None while there is none."""
    for rank in ranks_of(process):
        if rank.status() == psutil.STATUS_STOPPED:
            return rank
    return None


def test_torchrun_restarts_a_killed_rank_by_itself(small_shards: Path, tmp_path: Path) -> None:
    """Rank 1 is killed in step 6: with --max-restarts 1 the same command ends well, every step once in the rows."""
    arguments = [*RUN, f"data.shards={small_shards}", f"run_dir={tmp_path / 'run'}", "steps=8"]
    process = start("torchrun", 2, arguments, SABOTAGED, SABOTAGE="1 step 6 kill", PET_MAX_RESTARTS="1")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-3000:]
    assert "going on after step 3" in output
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == list(range(1, 9))


def test_run_folders_of_their_own_are_refused(small_shards: Path, tmp_path: Path) -> None:
    """Ranks that do not see one folder: refused before any training, naming the rank and its host."""
    arguments = [*RUN, f"data.shards={small_shards}", f"run_dir={tmp_path / 'run'}"]
    process = start(LAUNCHER, 2, arguments, script=SABOTAGED, OWN_FOLDERS="1")
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "is not one folder for all ranks" in output
    assert f"rank 1 on {HOST} cannot see" in output
    assert not (tmp_path / "run_0" / "metrics.jsonl").exists()


def test_ranks_that_do_not_fit_are_refused_at_once(small_shards: Path, tmp_path: Path) -> None:
    """G = 13 on 2 ranks: the same one message at every start that torchrun tries, and in status.json, within 15 s each
    and before any model is built.
    """
    arguments = [*RUN, f"data.shards={small_shards}", f"run_dir={tmp_path / 'run'}", "engine.global_batch_size=13"]
    began = time.monotonic()
    process = start("torchrun", 2, arguments, SABOTAGED, SABOTAGE="all model 1 kill", PET_MAX_RESTARTS="1")
    output, _ = process.communicate(timeout=120)
    assert time.monotonic() - began < 30
    assert process.returncode == 1, output[-3000:]  # 2, as torchrun flattens it; -9 where a model was begun
    messages = [line for line in output.splitlines() if "does not divide" in line]
    assert len(messages) == 2, output[-4000:]
    assert messages[0] == messages[1]
    assert "engine.global_batch_size=13 does not divide over 2 ranks x 1 micro-batches" in messages[0]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["message"].startswith("refused: engine.global_batch_size=13")
