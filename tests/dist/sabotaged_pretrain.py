"""launch/pretrain.py in which one thing goes wrong: SABOTAGE="RANK POINT CALL ACTION", RANK a number or `all`.

At the CALL-th call (from 1) of what POINT names on that rank, ACTION happens. The product has no hooks: functions are
replaced before it starts. STRUCK names a file that is touched at that moment.

CRASH="RANK SAVE OPERATION" kills a rank before the OPERATION-th file operation or collective of its SAVE-th save, or
after its last. OWN_FOLDERS=1 gives every rank a run folder of its own, PAUSE_S makes updates slow.
"""

import errno
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from stence_dist import checkpoint, files, train_step
from stence_dist.data.loader import PairReader
from stence_dist.errors import DataError
from stence_dist.losses.tiles import Tiles
from stence_dist.models.pair_model import PairModel
from stence_dist.train import run, run_folder

POINTS: dict[str, tuple[Any, str]] = {
    "model": (run, "build_pair_model"),
    "load": (PairReader, "training_samples"),
    "forward": (PairModel, "forward"),
    "backward": (Tiles, "pull_back"),
    "step": (train_step, "_apply"),
    "row": (run_folder.RunFolder, "row"),
    "part": (checkpoint, "save_file"),  # a rank's part of a checkpoint is written
    "json": (files, "write_json"),  # status, environment, or the manifest of a checkpoint
    "commit": (os, "rename"),
}


def bad_sample(*_: object) -> None:
    raise DataError("cohort row 7 (train), patient 0123abcd: the ECG is damaged.")


def out_of_memory(*_: object) -> None:
    raise MemoryError("no 3 GB left")


def full(*_: object) -> None:
    no_more_writing(errno.ENOSPC)


def read_only(*_: object) -> None:
    no_more_writing(errno.EROFS)


def no_more_writing(code: int) -> NoReturn:
    """From now on nothing is written on this rank, status.json neither."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    files.replacing = refuse
    refuse()


def kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def freeze(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def stop(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def dawdle(*_: object) -> None:
    time.sleep(4)


ACTIONS: dict[str, Callable[..., None]] = {
    action.__name__: action for action in (bad_sample, out_of_memory, full, read_only, kill, freeze, stop, dawdle)
}


def sabotage(rank: str, point: str, call: str, action: str) -> None:
    """Replace what `point` names, on the rank that is meant."""
    if rank not in ("all", os.environ.get("RANK", "0")):
        return
    owner, name = POINTS[point]
    original, left = getattr(owner, name), [int(call)]

    def replaced(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            if "STRUCK" in os.environ:
                Path(os.environ["STRUCK"]).touch()
            ACTIONS[action]()
        return original(*arguments, **named)

    setattr(owner, name, replaced)


def crash(rank: str, save: str, operation: str) -> None:
    """Replace `checkpoint.save` by one that ends the process on its way; STRUCK then holds what it had done."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from crashes import OPERATIONS

    if rank != os.environ["RANK"]:
        return
    original, left, done = checkpoint.save, [int(save)], []

    def strike() -> NoReturn:
        Path(os.environ["STRUCK"]).write_text("\n".join(done))
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            if len(done) == int(operation) - 1:
                strike()
            result = call(*arguments, **named)
            done.append(name)
            return result

        return counting

    def saved(*arguments: Any, **named: Any) -> None:
        left[0] -= 1
        if left[0]:
            return original(*arguments, **named)
        with ExitStack() as stack:
            for owner, name in OPERATIONS:
                stack.enter_context(mock.patch.object(owner, name, counted(name, getattr(owner, name))))
            original(*arguments, **named)
        strike()

    checkpoint.save = saved


def slow_down(pause_s: float) -> None:
    """Make every update take `pause_s` longer, so that others have time to join."""
    apply = train_step._apply

    def slowly(*arguments: Any) -> float:
        time.sleep(pause_s)
        return apply(*arguments)

    train_step._apply = slowly


if __name__ == "__main__":
    slow_down(float(os.environ.get("PAUSE_S", "0")))
    if os.environ.get("SABOTAGE"):
        sabotage(*os.environ["SABOTAGE"].split())
    if os.environ.get("CRASH"):
        crash(*os.environ["CRASH"].split())
    if os.environ.get("OWN_FOLDERS"):
        sys.argv = [f"{value}_{os.environ['RANK']}" if value.startswith("run_dir=") else value for value in sys.argv]
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "launch" / "pretrain.py"), run_name="__main__")
