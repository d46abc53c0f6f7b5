"""Views of stored tokens, whatever file they came from."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.images.views_table import ViewNote
from stence_dist.data.readers.record import View, study_error


def check_tokens(tokens: NDArray[Any], dtype: str) -> None:
    """Raise ReaderError unless tokens are (F, N, D) and of values that `dtype`, as they are stored, can hold."""
    if tokens.ndim != 3 or 0 in tokens.shape:
        raise study_error(f"tokens of a view have shape {tokens.shape}; expected (F, N, D).")
    largest = np.abs(tokens.astype(np.float32)).max()
    if not np.isfinite(largest) or (dtype == "float16" and largest > np.finfo(np.float16).max):
        raise study_error("tokens of a view hold NaN, infinity, or values beyond float16.")


def token_view(tokens: NDArray[Any], note: ViewNote | None) -> View:
    """The view of tokens (F, N, D) with what views.csv says of it."""
    angulation = note.angulation if note else np.full(2, np.nan, dtype=np.float32)
    key_frame = note.key_frame if note else None
    meta = {"key_frame": key_frame, "key_frame_source": "views.csv" if key_frame is not None else None}
    return View(tokens, angulation, {**meta, "frame_time": None, "frames": len(tokens)})
