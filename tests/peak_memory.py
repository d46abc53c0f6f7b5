"""How much memory something takes at its highest, whatever this process has held before."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

_FORGET_PEAK = "5"  # proc(5), clear_refs: VmHWM becomes the memory that is resident now


@contextlib.contextmanager
def less_than(megabytes: int) -> Iterator[None]:
    """Assert that the resident memory rises by less than this, however briefly: libraries' own allocations count."""
    Path("/proc/self/clear_refs").write_text(_FORGET_PEAK)
    before = _peak_kib()
    yield
    grown = (_peak_kib() - before) / 1000
    assert grown < megabytes, f"the resident memory rose by {grown:.0f} MB at its highest"


def _peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
