"""Run a script as several ranks on this machine, and end them all whatever happens."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from forks import Forks, rank_environments

_GRACE_S = 10.0  # how long ranks may go on once one of them has failed


@dataclass(frozen=True)
class RankResult:
    """How one rank ended."""

    returncode: int
    output: str  # stdout and stderr, in order


def run_ranks(
    script: Path | str,
    world_size: int,
    args: Sequence[str] = (),
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
) -> list[RankResult]:
    """Results of `script *args` as `world_size` ranks of one gloo group, one thread each, in rank order.

    The ranks find RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in their environment, as from torchrun.
    Once one fails, the others are killed after a grace period. Raises TimeoutError with every rank's output, after
    killing all, when `timeout` seconds pass.
    """
    shared = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    forks = Forks([str(script), *args], rank_environments(world_size, shared))
    try:
        in_time = _wait(forks, time.monotonic() + timeout)
    finally:
        forks.kill()
    if not in_time:
        outputs = "\n---\n".join(rank.output for rank in forks.ranks)
        raise TimeoutError(f"{script} {' '.join(args)} did not end in {timeout} s:\n{outputs}")
    return [RankResult(rank.wait(), rank.output) for rank in forks.ranks]


def _wait(forks: Forks, deadline: float) -> bool:
    """True once all ranks have ended, or one has failed and the grace period is over; False at the deadline."""
    while None in (codes := [rank.poll() for rank in forks.ranks]):
        if any(codes):
            deadline = min(deadline, time.monotonic() + _GRACE_S)
            while None in [rank.poll() for rank in forks.ranks] and time.monotonic() < deadline:
                time.sleep(0.02)
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
