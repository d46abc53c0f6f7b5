"""Start scripts in processes forked from one that has imported torch, DeepSpeed and the package already.

Each rank is a process of its own, with its own signals and exit code, but starts in a fraction of a second instead of
the seconds that the imports take. `python forks.py` is the process that is forked.
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]

# What ranks import sooner or later; much of it only when it is first used.
_IMPORTED = (
    "stence_dist.train.dry_run",
    "torch._dynamo",
    "deepspeed.runtime.engine",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.stage3",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "sklearn.pipeline",
    "sklearn.preprocessing",
    "torch.utils.tensorboard",
)


class Fork:
    """A script in a forked process: what tests use of subprocess.Popen, output in a file."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._log = log
        self.pid: int = _ask({"command": list(command), "env": dict(env), "log": str(log)})
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"poll": self.pid})
        return self.returncode

    def wait(self) -> int:
        """The exit code, once it has ended."""
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def output(self) -> str:
        """Its stdout and stderr so far, in order."""
        return self._log.read_text(errors="replace")


class Forks:
    """The ranks of one group as forks; ends like one process, with the first code in rank order that is not 0."""

    def __init__(self, command: Sequence[str], ranks: Sequence[Mapping[str, str]]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        logs = [Path(self._folder.name) / f"rank{rank}.txt" for rank in range(len(ranks))]
        self.ranks = [Fork(command, env, log) for env, log in zip(ranks, logs, strict=True)]

    @property
    def returncode(self) -> int | None:
        """None while any rank runs."""
        codes = [rank.poll() for rank in self.ranks]
        return None if None in codes else next((code for code in codes if code), 0)

    def poll(self) -> int | None:
        """The exit code, None while any rank runs."""
        return self.returncode

    @property
    def pid(self) -> int:
        """That of rank 0."""
        return self.ranks[0].pid

    def kill(self) -> None:
        """SIGKILL to all ranks."""
        for rank in self.ranks:
            rank.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 120) -> tuple[str, None]:
        """All ranks' output once they have ended. Raises TimeoutError with it, after killing all."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"still running after {timeout} s:\n{self._output()}")
            time.sleep(0.01)
        return self._output(), None

    def _output(self) -> str:
        return "".join(rank.output for rank in self.ranks)


def run_script(name: str, arguments: Sequence[str], expected: int = 0) -> str:
    """What `launch/embed.py`, say, prints with these arguments; it must end with the code `expected`."""
    process = Forks([str(ROOT / name), *arguments], [{**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}])
    output, _ = process.communicate()
    assert process.returncode == expected, f"{name} ended with {process.returncode}:\n{output[-4000:]}"
    return output


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def rank_environments(ranks: int, shared: Mapping[str, str]) -> list[dict[str, str]]:
    """What torchrun would tell each of `ranks` ranks of one node, beside `shared`."""
    meeting = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    meeting |= {"LOCAL_WORLD_SIZE": str(ranks)}
    return [{**shared, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


@functools.cache
def _server() -> "subprocess.Popen[str]":
    """The process to fork, one per test process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    server = subprocess.Popen(
        [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.kill)
    return server


def _ask(request: dict[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _run(command: Sequence[str], env: Mapping[str, str], log: str) -> None:
    """In the fork: become the script."""
    os.setsid()
    null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, buffering=1) for number, mode in enumerate("rww"))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    sys.argv, sys.path[0] = list(command), str(Path(command[0]).parent)
    code: Any = 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        threading._shutdown()  # joblib's workers end here, as where an interpreter ends
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _serve(requests: IO[str], answers: IO[str]) -> None:
    """Fork and say the number of the process; or say how a fork has ended."""
    for name in _IMPORTED:
        importlib.import_module(name)
    for line in requests:
        request = json.loads(line)
        if "poll" in request:
            ended, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if answer == 0:
                _run(**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
