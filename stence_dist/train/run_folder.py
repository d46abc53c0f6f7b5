"""What a run leaves on disk while it goes: config, status, metrics, log, TensorBoard.

Only rank 0 writes. Every row of metrics.jsonl is flushed when logged; a resumed run first cuts the rows that its
checkpoint has not seen, so no step appears twice and none is missing.
"""

import contextlib
import json
import logging
import math
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from stence_dist import distributed, files
from stence_dist.config.load import to_dict, to_yaml
from stence_dist.config.pretrain import PretrainConfig
from stence_dist.errors import ConfigError, DataError, RefusedError

logger = logging.getLogger("stence_dist")

# What may change between two calls that continue one run: how it is spread, watched and stored.
_FREE_KEYS = (
    "run_dir",
    "steps",  # the identity holds the length in steps instead, however it was given
    "epochs",
    "log_every",
    "save_every",
    "eval_every",
    "keep_last",
    "best_metric",
    "reference_samples",
    "knn_neighbors",
    "knn_distance",
    "pictures_every",
    "init_from",  # the identity of a run that has one holds the file's sha256 instead
    "data.shards",  # the identity holds the index fingerprint instead
    "data.copies",  # likewise, where there are any
    "data.workers",
    "data.verify",
    "engine.accumulation",  # the identity holds the pool instead
    "engine.negatives",
    "engine.zero_stage",
    "engine.timeout_s",
    "engine.profile",
)


def identity(config: PretrainConfig, *, total_steps: int, fingerprint: str) -> dict[str, Any]:
    """Everything that decides what a run computes, as flat keys; its hash is the run's `config_hash`.

    Not in it: the number of ranks, the ZeRO stage, workers, logging and paths.
    """
    flat = {name: value for name, value in _flatten(to_dict(config)).items() if name not in _FREE_KEYS}
    return {**flat, "length": total_steps, "engine.pool": config.engine.pool, "data.fingerprint": fingerprint}


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and all(isinstance(inner, str) for inner in value):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


# What a start writes before the identity; a start that was killed leaves some of these.
_STARTED = {"config.yaml", "environment.json", "status.json", "log.txt", "tensorboard", "STOP"}


def check_same_run(folder: Path, new: dict[str, Any]) -> str | None:
    """The state of the run that `folder` holds ("running", "finished", …), or None for a new folder.

    Raises ConfigError naming the keys that differ where it holds a run of another identity, and where it holds
    files but no run.
    """
    if not (folder / "data.json").exists():
        present = {path.name for path in folder.iterdir()} if folder.exists() else set()
        strangers = {name for name in present - _STARTED if not name.startswith(".")}
        if strangers:
            raise ConfigError(
                f"run_dir={folder} holds files but no run (e.g. {sorted(strangers)[0]}). Choose a new or empty folder."
            )
        return None
    old = files.read_json(folder / "data.json")["identity"]
    new = json.loads(json.dumps(new))
    differing = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if differing:
        listed = ", ".join(f"{name} ({old.get(name)} there, {new.get(name)} now)" for name in differing)
        raise ConfigError(
            f"run_dir={folder} holds a run of another config: {listed}. "
            "Give the same keys to resume it, or another run_dir for a new run."
        )
    status = folder / "status.json"
    return str(files.read_json(status)["state"]) if status.exists() else "running"


def check_shared(folder: Path, patience_s: float = 10.0) -> None:
    """Raise RefusedError on all ranks unless every rank sees what rank 0 writes into `folder`. Collective.

    Ranks with folders of their own would each keep their part of every checkpoint. File systems that are shared over
    a network may need some seconds to show a new file.
    """
    name = f"{files.TEMPORARY_PREFIX}shared-" + distributed.broadcast_bytes(secrets.token_hex(8).encode()).decode()
    if distributed.rank() == 0:
        (folder / name).touch()
    distributed.barrier()
    deadline = time.monotonic() + patience_s
    while not (folder / name).exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            os.listdir(folder)  # makes a network file system look again
        time.sleep(0.1)
    answer = b"" if (folder / name).exists() else f"rank {distributed.rank()} on {socket.gethostname()}".encode()
    blind = [answer.decode() for answer in distributed.all_gather_bytes(answer) if answer]
    if distributed.rank() == 0:
        (folder / name).unlink()
    if blind:
        error = RefusedError(
            f"run_dir={folder} is not one folder for all ranks: {', '.join(blind)} cannot see what rank 0 writes "
            "there. Put it on a file system that all nodes share."
        )
        error.quiet = distributed.rank() != 0
        raise error


def is_unused(folder: Path) -> bool:
    """True for a folder that holds nothing but its lock and the status of a start that was refused."""
    return {path.name for path in folder.iterdir()} <= {".lock", "status.json"} and not (folder / "data.json").exists()


class RunFolder:
    """Writers of one run's files; on ranks other than 0 every method does nothing."""

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.folder = folder
        self.writes = writes
        self._board: SummaryWriter | None = None
        self._handler: logging.Handler | None = None

    def open(self, config: PretrainConfig, data: dict[str, Any], *, step: int) -> None:
        """Write what describes the run and continue its metrics after `step`."""
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        files.sweep(self.folder)
        self._handler = logging.FileHandler(self.folder / "log.txt", encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(self._handler)
        files.write_text(self.folder / "config.yaml", to_yaml(config))
        files.write_json(self.folder / "environment.json", environment())
        files.write_json(self.folder / "data.json", data)
        self._cut_metrics(step)
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def _cut_metrics(self, step: int) -> None:
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line that a crash left half-written is later than any checkpoint
            if row["step"] <= step:
                kept.append(line + "\n")
        files.write_text(path, "".join(kept))

    def status(self, state: str, step: int, message: str = "", *, saved_step: int = 0) -> None:
        """Write status.json: state running | finished | stopped | failed."""
        if self.writes:
            write_status(self.folder, state, step, message, saved_step=saved_step)

    def row(self, values: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl and its numbers to TensorBoard; NaN becomes null."""
        if not self.writes:
            return
        step = int(values["step"])
        strict = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(strict, allow_nan=False) + "\n")
            file.flush()
        assert self._board is not None, "row() before open()"
        for name, value in strict.items():
            if isinstance(value, (int, float)) and name != "step":
                self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)
        self._board.flush()

    def picture(self, tag: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Add one picture (H, W, 3) to TensorBoard."""
        if self.writes:
            assert self._board is not None, "picture() before open()"
            self._board.add_image(tag, pixels, step, dataformats="HWC")

    def sync(self) -> None:
        """Make all rows durable: a checkpoint must not outlive the rows of the steps before it."""
        if self.writes:
            with open(self.folder / "metrics.jsonl", "ab") as file:
                os.fsync(file.fileno())
            files.sync_folder(self.folder)

    def close(self) -> None:
        """Close the writers."""
        if self._board is not None:
            self._board.close()
        if self._handler is not None:
            logger.removeHandler(self._handler)
            self._handler.close()


def write_status(folder: Path, state: str, step: int, message: str, *, saved_step: int = 0) -> None:
    """Write `folder/status.json` atomically. It remembers the largest `saved_step`, that of a committed checkpoint."""
    saved = max(saved_step, _saved_step(folder))
    files.write_json(folder / "status.json", {"state": state, "step": step, "message": message, "saved_step": saved})


def _saved_step(folder: Path) -> int:
    try:
        return int(files.read_json(folder / "status.json").get("saved_step", 0))
    except DataError:
        return 0


def check_nothing_saved(folder: Path) -> None:
    """Raise DataError where a run has committed a checkpoint before: none being there now, it would start again."""
    saved = _saved_step(folder)
    if saved:
        raise DataError(
            f"{folder} saved a checkpoint of step {saved}, and {folder / 'checkpoints'} holds none. Bring the folder "
            "back, or choose another run_dir to start from step 0."
        )


def environment() -> dict[str, Any]:
    """Versions, devices and the command: what someone needs to repeat a run."""
    packages = {}
    for name in ("stence_dist", "torch", "deepspeed", "numpy", "scipy", "numba", "webdataset", "hydra-core", "wfdb"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "commit": _commit(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _commit() -> str | None:
    """The checkout's commit; None outside a checkout or where git is not installed."""
    git = shutil.which("git")
    if git is None:
        return None
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run([git, "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
