"""Memory that is lent: whose it is while somebody holds it, and what happens to it afterwards."""

import numpy as np

from stence_dist.data.memory import LentMemory


def address(memory: memoryview) -> int:
    """Where its first byte lies."""
    return int(np.frombuffer(memory, dtype=np.uint8).ctypes.data)


def test_what_is_held_is_not_lent_again() -> None:
    """By the view itself, by a slice of it, or by an array on a slice; then it is the next one's, smaller or equal."""
    memory = LentMemory(10_000)
    lent = memory.lend(1000)
    place = address(lent)
    slice_of_it = lent[10:20]
    del lent
    assert address(memory.lend(1000)) != place
    array = np.frombuffer(slice_of_it, dtype=np.uint8)
    del slice_of_it
    assert address(memory.lend(1000)) != place
    del array
    assert address(memory.lend(600)) == place


def test_no_more_is_kept_than_allowed() -> None:
    """The oldest goes first; half as large a request does not waste what is kept."""
    memory = LentMemory(2500)
    held = [memory.lend(1000) for _ in range(4)]
    places = [address(lent) for lent in held]
    while held:
        del held[0]
    small = memory.lend(499)
    again = [memory.lend(1000) for _ in range(2)]
    assert [address(lent) for lent in again] == [places[3], places[2]]
    assert address(small) not in places
    assert len(small) == 499
