"""Start `launch/pretrain.py` under each launcher, or as forks, and read what it wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from forks import Forks, free_port, rank_environments

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "pretrain.py"
SABOTAGED = Path(__file__).with_name("sabotaged_pretrain.py")  # the same, with a failure planted
# How ranks are started where the launcher is not what is tested: forked from a process that has all imports behind it.
# SLOW=1 takes torchrun, and plain python for one rank.
LAUNCHER, PLAIN = ("torchrun", "python") if os.environ.get("SLOW") else ("forks", "forks")
# Small enough for a test, with every part of the model in use.
SMALL = [
    "embedding=16",
    "ecg_encoder.widths=[8,16]",
    "image_tower.width=16",
    "image_tower.depth=1",
    "image_tower.heads=2",
    "image_tower.feedforward=32",
    "image_tower.channels=[4,8]",
    "engine.precision=fp32",
    "log_every=1",
    "data.workers=0",  # starts seconds sooner; the tests of workers say otherwise
    "pictures_every=0",  # likewise, and those of pictures
]


def command(launcher: str, ranks: int, arguments: list[str], script: Path = SCRIPT) -> list[str]:
    """The command line that starts pretraining under `python`, `torchrun` or `deepspeed`."""
    bin_folder = Path(sys.executable).parent
    if launcher == "python":
        start = [sys.executable]
    elif launcher == "torchrun":
        start = [str(bin_folder / "torchrun"), "--nproc_per_node", str(ranks), "--master_port", str(free_port())]
    else:
        start = [str(bin_folder / "deepspeed"), "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return [*start, str(script), *arguments]


def environment(**more: str) -> dict[str, str]:
    """One thread per rank, CPU only; `more` variables."""
    bin_folder = str(Path(sys.executable).parent)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


Started = subprocess.Popen[str] | Forks


def start(launcher: str, ranks: int, arguments: list[str], script: Path = SCRIPT, **variables: str) -> Started:
    """The running launcher in a process group of its own, or the ranks as forks, with `variables` in the environment.

    One fork is what plain `python` starts.
    """
    if launcher == "forks":
        shared = environment(**variables)
        return Forks([str(script), *arguments], [shared] if ranks == 1 else rank_environments(ranks, shared))
    return subprocess.Popen(
        command(launcher, ranks, arguments, script),
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ranks_of(started: Started) -> list[psutil.Process]:
    """The living rank processes, in no order under a launcher."""
    if isinstance(started, Forks):
        return [psutil.Process(rank.pid) for rank in started.ranks if rank.poll() is None]
    children = psutil.Process(started.pid).children(recursive=True)
    return [child for child in children if is_rank(child)]


def is_rank(process: psutil.Process) -> bool:
    """True for a living process of one of the two scripts."""
    try:
        named = any(Path(part).name in (SCRIPT.name, SABOTAGED.name) for part in process.cmdline())
        return named and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pretrain(launcher: str, ranks: int, arguments: list[str], expected: int = 0, timeout: float = 240) -> str:
    """The output of a run that must end with the code `expected`."""
    process = start(launcher, ranks, arguments)
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == expected, f"{launcher} x {ranks} ended with {process.returncode}:\n{output[-4000:]}"
    return output


def rows(run: Path) -> list[dict[str, Any]]:
    """All rows of metrics.jsonl without the fields that equal runs may differ in."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.endswith("_s")} for line in lines]


def steps(run: Path) -> list[dict[str, Any]]:
    """The rows of training steps."""
    return [row for row in rows(run) if "loss" in row]
