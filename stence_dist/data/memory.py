"""Memory for large reads, lent again once nothing refers to it any more."""

import weakref
from threading import RLock

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class LentMemory:
    """Lends memory and takes it back by itself: to fill fresh pages takes about as long again as the read that does.

    Up to `most` bytes that came back are kept for the next to ask. Safe across threads.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._free: list[Bytes] = []
        self._lock = RLock()  # memory may come back in the middle of anything, in the same thread

    def lend(self, size: int) -> memoryview:
        """Writable memory of `size` bytes, of any content; it comes back when no array or view shares it any more."""
        whole = self._taken(size)
        lent = whole[:size]
        weakref.finalize(lent, self._take_back, whole).atexit = False
        return lent.data

    def _taken(self, size: int) -> Bytes:
        """Memory of `size` bytes or more, nobody's."""
        with self._lock:
            for number in reversed(range(len(self._free))):  # the last that came back may still be in a cache
                if size <= len(self._free[number]) <= 2 * size:
                    return self._free.pop(number)
        return np.empty(size, dtype=np.uint8)

    def _take_back(self, whole: Bytes) -> None:
        with self._lock:
            self._free.append(whole)
            while sum(map(len, self._free)) > self.most:
                del self._free[0]
