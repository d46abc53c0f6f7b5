"""A verb from its command line to the end of its process: help, log format, and from an error to an exit code."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

from stence_dist import launchers
from stence_dist.config.help import help_text
from stence_dist.config.load import load
from stence_dist.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_REFUSED,
    EXIT_STOPPED,
    CheckFailedError,
    CommonFailureError,
    RefusedError,
    StoppedError,
)

C = TypeVar("C")


def run(config_class: type[C], verb: str, main: Callable[[C], int | None]) -> NoReturn:
    """Compose the config from the command line, call `main`, and end the process with the code that fits.

    0 done, 1 failure, 2 usage, configuration or data refused, 75 stopped on request and resumable.
    """
    sys.exit(_end_ranks(_guarded(config_class, verb, main)))


def _guarded(config_class: type[C], verb: str, main: Callable[[C], int | None]) -> int:
    rank, world_size = launchers.place(os.environ)
    where = f"rank {rank}: " if world_size > 1 else ""
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING, format=f"{where}%(message)s", stream=sys.stderr
    )
    try:
        arguments = sys.argv[1:]
        if any(argument in ("-h", "--help") for argument in arguments):
            if rank == 0:
                sys.stdout.write(help_text(config_class, verb, arguments))
            return EXIT_DONE
        return main(load(config_class, verb, arguments)) or EXIT_DONE
    except RefusedError as error:
        if error.quiet:
            _let_first_rank_speak()
        else:
            sys.stderr.write(f"{where}error: {error}{_notes(error)}\n")
        return EXIT_REFUSED
    except StoppedError as stop:
        sys.stderr.write(f"{where}{stop}\n")
        # A stop is no failure that torchrun should mend. It flattens the code in any case; status.json says "stopped".
        # But where a node of several leaves, or one joins, the agents of the others start their ranks again.
        goes_on = stop.terminated and launchers.has_other_nodes(os.environ)
        return EXIT_DONE if launchers.would_restart(os.environ) and not goes_on else EXIT_STOPPED
    except CheckFailedError as error:
        sys.stderr.write(f"{where}{error}\n")
        return EXIT_FAILURE
    except KeyboardInterrupt:
        sys.stderr.write(f"{where}interrupted\n")
        return EXIT_FAILURE
    except CommonFailureError as error:
        if rank == 0:
            sys.stderr.write(f"{where}failed: {type(error).__name__}: {error}{_notes(error)}\n")
        else:
            _let_first_rank_speak()
        return EXIT_FAILURE
    except Exception as error:
        if type(error).__name__ == "PeerLostError":
            sys.stderr.write(f"{where}{error}\n")
        else:
            message = f"failed: {type(error).__name__}: {error}{_notes(error)}"
            sys.stderr.write(f"{where}{traceback.format_exc()}{where}{message}\n")
        return EXIT_FAILURE


def _notes(error: Exception) -> str:
    """What was added to an error on its way up, e.g. rank, host and step."""
    return "".join(f" {note}" for note in getattr(error, "__notes__", []))


def _let_first_rank_speak() -> None:
    """Wait until rank 0 is gone. Launchers end all ranks when one leaves, also one that has not said yet why."""
    distributed = sys.modules.get("stence_dist.distributed")
    if distributed is not None and distributed.active():
        with contextlib.suppress(RuntimeError):  # rank 0 does not join: it leaves, and that breaks the connection
            distributed.barrier()


def _end_ranks(code: int) -> int:
    """In a process group, leave through `distributed.finish`; otherwise return `code`."""
    distributed = sys.modules.get("stence_dist.distributed")
    if distributed is not None and distributed.active():
        distributed.finish(code)
    return code
