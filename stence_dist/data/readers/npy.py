"""Numpy's own files, never unpickled."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.record import MAX_VALUES, ReaderError

NPY_MAGIC = b"\x93NUMPY"


def map_npy(path: Path, field: str) -> NDArray[Any]:
    """The array of a .npy file, mapped: its declared size is compared with the file's before memory is taken.

    Raises ReaderError for a damaged file and for Python objects.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise ReaderError("the .npy file is truncated, damaged, or holds Python objects.", field) from None
    return array


def load_npy(path: Path, field: str) -> NDArray[Any]:
    """The array of a .npy file in memory. Raises ReaderError for a damaged, object or oversized one."""
    array = map_npy(path, field)
    if array.size > MAX_VALUES:
        raise ReaderError(f"the .npy file holds {array.size} values; at most {MAX_VALUES} are read.", field)
    return np.array(array)
