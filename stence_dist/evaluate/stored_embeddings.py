"""The validation pairs as the last weights of a run see them, kept so that a report needs no model."""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stence_dist.errors import DataError
from stence_dist.files import replacing

NAME = "embeddings/val.npz"
_MOST = 10_000  # pairs: 20 MB at 256 dimensions


class StoredEmbeddings(NamedTuple):
    """n pairs of the validation split."""

    sample: NDArray[np.int64]  # (n,) numbers in the shard set
    ecg: NDArray[np.float32]  # (n, E) unit norm
    image: NDArray[np.float32]  # (n, E) unit norm


def save_embeddings(folder: Path, embeddings: StoredEmbeddings) -> None:
    """Write NAME into a run folder, whole or not at all; of more pairs than 10,000 an even selection."""
    n = len(embeddings.sample)
    kept = np.unique(np.linspace(0, n - 1, min(n, _MOST)).round().astype(np.int64))
    arrays = {name: values[kept] for name, values in embeddings._asdict().items()}
    with replacing(folder / NAME) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_embeddings(folder: Path) -> StoredEmbeddings | None:
    """What a run folder holds; None where it holds none. Raises DataError for a file that is not one of these."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = StoredEmbeddings(*(stored[name] for name in StoredEmbeddings._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not what a run writes ({type(error).__name__}). Remove it, or run again.") from None
    shapes = {len(found.sample)}, {found.ecg.shape, found.image.shape}
    if found.sample.ndim != 1 or found.ecg.ndim != 2 or any(len(each) > 1 for each in shapes):
        raise DataError(f"{path} holds arrays of unequal shapes. Remove it, or run again.")
    return found
