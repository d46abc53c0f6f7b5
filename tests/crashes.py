"""The end of a process, enumerated: die before or after the n-th file operation or collective of an action."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from stence_dist import checkpoint, distributed

OPERATIONS: list[tuple[Any, str]] = [
    *((os, name) for name in ("fsync", "replace", "rename", "rmdir", "unlink", "mkdir", "fchmod")),
    (Path, "write_bytes"),
    (checkpoint, "save_file"),
    *((distributed, name) for name in ("barrier", "all_gather_bytes", "broadcast_bytes")),
]


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it, and nothing happens after it."""


class _Counter:
    """Lets operations pass until the one to die at; from then on every one dies."""

    def __init__(self, last: int, after: bool) -> None:
        self.last, self.after = last, after
        self.names: list[str] = []
        self.dead = False

    def wrap(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        """`operation`, counted."""

        def counted(*arguments: Any, **named: Any) -> Any:
            if self.dead:
                raise Killed
            self.names.append(name)
            self.dead = len(self.names) == self.last
            if self.dead and not self.after:
                raise Killed
            result = operation(*arguments, **named)
            if self.dead:
                raise Killed
            return result

        return counted


def run(action: Callable[[], object], last: int, *, after: bool) -> list[str]:
    """Run `action`, dying before or after its operation number `last` (from 1); the names of what was called."""
    counter = _Counter(last, after)
    with ExitStack() as stack:
        for owner, name in OPERATIONS:
            stack.enter_context(mock.patch.object(owner, name, counter.wrap(name, getattr(owner, name))))
        try:
            action()
        except Killed:
            assert counter.dead
    return counter.names


def every_crash(prepare: Callable[[], Callable[[], object]]) -> Iterator[tuple[str, bool]]:
    """For each operation of the action that `prepare` makes ready, before and after it: the action has just died
    there. Yields (the operation's name, whether it was done); the last time the action was not disturbed.
    """
    names = run(prepare(), 0, after=False)
    assert names, "the action has no operation to die at"
    yield "", True
    for last, name in enumerate(names, start=1):
        for after in (False, True):
            run(prepare(), last, after=after)
            yield name, after
