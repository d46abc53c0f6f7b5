"""One run over changing numbers of ranks: moved by hand, and by torchrun when a node dies or joins."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from forks import free_port
from pretraining import SABOTAGED, SMALL, environment, pretrain, rows, start, steps

pytestmark = [pytest.mark.dist, pytest.mark.slow]

RUN = [*SMALL, "engine.global_batch_size=24", "engine.accumulation=2", "eval_every=100", "save_every=4"]
RUN += ["targets.unreported=normal"]  # every patient of this cohort has a lesion, and most segments are not reported


@pytest.fixture(scope="module")
def shards(cohort_writer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with more than 24 training pairs."""
    from stence_dist.config.build import BuildConfig
    from stence_dist.data.build import build

    folder = tmp_path_factory.mktemp("elastic")
    table = cohort_writer(folder, pairs=48, ecg_only=4)
    build(BuildConfig(cohort=str(table), out=str(folder / "shards"), image_size=32, workers=1, shard_size=20))
    return folder / "shards"


def test_two_ranks_then_one_four_and_three(shards: Path, tmp_path: Path) -> None:
    """W = 2, 1, 4, 3 at ZeRO 2, 3, 0, 1, five steps each, stopped by SIGUSR1 in the fourth: the batches of one process,
    losses within 1e-5.
    """
    arguments = [*RUN, "steps=20", f"data.shards={shards}"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    pretrain("python", 1, [*arguments, f"run_dir={whole}"])
    for number, (ranks, stage) in enumerate([(2, 2), (1, 3), (4, 0), (3, 1)]):
        stop = {"SABOTAGE": "0 step 4 stop"} if number < 3 else {}
        call = [*arguments, f"run_dir={run}", f"engine.zero_stage={stage}"]
        process = start("torchrun", ranks, call, script=SABOTAGED, **stop)
        output, _ = process.communicate(timeout=240)
        status = json.loads((run / "status.json").read_text())
        assert status["state"] == ("stopped" if number < 3 else "finished"), output[-3000:]
        assert status["step"] == 5 * (number + 1)
    here, there = steps(run), steps(whole)
    assert [row["step"] for row in here] == list(range(1, 21))
    assert [row["batch_hash"] for row in here] == [row["batch_hash"] for row in there]
    np.testing.assert_allclose([row["loss"] for row in here], [row["loss"] for row in there], rtol=1e-5)


# So many steps at the usual rates amplify the last bit, in which numbers of ranks differ, beyond any tolerance.
LONG_RUN = [*RUN, "steps=150", "optimizer.ecg_lr=2e-4", "optimizer.image_lr=2e-4"]
# torch 2.13's agents otherwise keep the first round's store to themselves: a node that joins waits for it in vain.
SEPARATE_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class Agents:
    """torchrun agents of one elastic group of 1 to 2 nodes on this machine."""

    def __init__(self, arguments: list[str], logs: Path) -> None:
        self.arguments, self.logs = arguments, logs
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """One more agent with one rank."""
        self.logs.mkdir(exist_ok=True)
        command = [str(Path(sys.executable).parent / "torchrun"), "--nnodes", "1:2", "--nproc_per_node", "1"]
        command += ["--max-restarts", "4", "--rdzv_backend", "c10d", "--rdzv_endpoint", self.endpoint]
        command += ["--rdzv_id", "elastic", "--rdzv_conf", "last_call_timeout=3,keep_alive_interval=1", str(SABOTAGED)]
        with (self.logs / f"agent{len(self.processes)}.txt").open("wb") as log:
            process = subprocess.Popen(
                [*command, *self.arguments],
                env=environment(PAUSE_S="0.2", **SEPARATE_STORE),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)

    def kill(self, number: int) -> None:
        """The node of one agent dies: the agent and its rank, at once."""
        agent = psutil.Process(self.processes[number].pid)
        for process in [agent, *agent.children(recursive=True)]:
            process.send_signal(signal.SIGKILL)
        self.processes[number].wait()

    def drain(self, number: int) -> None:
        """The node of one agent is taken away with notice: SIGTERM to the agent, which passes it on."""
        self.processes[number].send_signal(signal.SIGTERM)
        self.processes[number].wait(timeout=60)

    def text(self) -> str:
        """The end of all logs."""
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in sorted(self.logs.iterdir()))


@pytest.fixture
def agents(shards: Path, tmp_path: Path) -> Iterator[Agents]:
    """No agent yet; whatever is left is killed at the end."""
    arguments = [*LONG_RUN, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", "engine.timeout_s=20"]
    group = Agents(arguments, tmp_path / "logs")
    yield group
    for process in group.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(run: Path, condition: Callable[[list[dict[str, object]]], bool], agents: Agents, limit: float) -> None:
    """Return when the run's rows fulfil `condition`."""
    deadline = time.monotonic() + limit
    while not ((run / "metrics.jsonl").exists() and condition(rows(run))):
        assert time.monotonic() < deadline, agents.text()
        assert any(process.poll() is None for process in agents.processes), agents.text()
        time.sleep(0.2)


def world_size(run: Path) -> int:
    """Ranks of the latest start."""
    return int(json.loads((run / "environment.json").read_text())["world_size"])


@pytest.mark.parametrize("leave", [Agents.kill, Agents.drain])
def test_torchrun_goes_on_when_a_node_joins_and_when_one_leaves(
    leave: Callable[[Agents, int], None], agents: Agents, shards: Path, tmp_path: Path
) -> None:
    """1:2 nodes: starts on one, takes in the second, loses it again; the rows are those of one undisturbed process."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    agents.start()
    wait_for(run, lambda found: len(found) >= 10, agents, 120)
    assert world_size(run) == 1
    agents.start()
    wait_for(run, lambda found: world_size(run) == 2, agents, 120)
    reached = len(rows(run))
    wait_for(run, lambda found: len(found) >= reached + 10, agents, 120)
    leave(agents, 1)
    wait_for(run, lambda found: world_size(run) == 1, agents, 120)
    assert agents.processes[0].wait(timeout=240) == 0, agents.text()
    pretrain("python", 1, [*LONG_RUN, f"data.shards={shards}", f"run_dir={whole}"])
    here, there = steps(run), steps(whole)
    assert [row["step"] for row in here] == list(range(1, 151))
    assert [row["batch_hash"] for row in here] == [row["batch_hash"] for row in there]
    np.testing.assert_allclose([row["loss"] for row in here], [row["loss"] for row in there], rtol=1e-5)
