"""Start several ranks of a script on this machine, and end them all whatever happens."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_GRACE_S = 10.0  # how long ranks may go on once one of them has failed


@dataclass(frozen=True)
class RankResult:
    """How one rank ended."""

    returncode: int
    output: str  # stdout and stderr, in order


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_ranks(
    script: Path | str,
    world_size: int,
    args: Sequence[str] = (),
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
) -> list[RankResult]:
    """Results of `python script *args` as `world_size` ranks of one gloo group, one thread each, in rank order.

    The ranks find RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in their environment, as from torchrun.
    Once one fails, the others are killed after a grace period. Raises TimeoutError with every rank's output, after
    killing all, when `timeout` seconds pass.
    """
    shared = {
        **os.environ,
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        **(env or {}),
    }
    command = [sys.executable, str(script), *args]
    ranks: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"rank{rank}.txt" for rank in range(world_size)]
        try:
            for rank, log in enumerate(logs):
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                with log.open("wb") as file:
                    ranks.append(
                        subprocess.Popen(command, env={**shared, **place}, stdout=file, stderr=subprocess.STDOUT)
                    )
            in_time = _wait(ranks, time.monotonic() + timeout)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        outputs = [log.read_text(errors="replace") for log in logs]
    if not in_time:
        raise TimeoutError(f"{' '.join(command)} did not end in {timeout} s:\n" + "\n---\n".join(outputs))
    return [RankResult(process.returncode, output) for process, output in zip(ranks, outputs, strict=True)]


def _wait(ranks: Sequence["subprocess.Popen[bytes]"], deadline: float) -> bool:
    """True once all ranks have ended, or one has failed and the grace period is over; False at the deadline."""
    while any(process.poll() is None for process in ranks):
        if any(process.poll() for process in ranks):
            grace_ends = min(deadline, time.monotonic() + _GRACE_S)
            while any(process.poll() is None for process in ranks) and time.monotonic() < grace_ends:
                time.sleep(0.02)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
