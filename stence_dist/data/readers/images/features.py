"""Stored backbone features: one `.npy` or `.safetensors` file of tokens (F, N, D) per view in a study folder."""

import json
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError

from stence_dist.data.frames import FrameSettings
from stence_dist.data.readers.images.tokens import check_tokens, token_view
from stence_dist.data.readers.images.views_table import read_views_table
from stence_dist.data.readers.npy import NPY_MAGIC, load_npy
from stence_dist.data.readers.record import MAX_VALUES, ImageStudy, study_error

_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


def is_features(path: Path, start: bytes) -> bool:
    """Whether `path` is a .npy or .safetensors file, by its first bytes."""
    if start.startswith(NPY_MAGIC):
        return True
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 2 <= length <= min(_LARGEST_HEADER, path.stat().st_size)


def _load_tokens(path: Path) -> tuple[NDArray[Any], str]:
    """Tokens (F, N, D) of one file, and the type that they are stored as: float16, or bfloat16 where they came so."""
    with open(path, "rb") as file:
        is_npy = file.read(len(NPY_MAGIC)) == NPY_MAGIC
    if is_npy:
        tokens = load_npy(path, "study_path")
        if tokens.dtype.kind != "f":
            raise study_error(f"tokens are of type {tokens.dtype.name}; expected float16 or float32.")
        return tokens, "float16"
    import torch  # seconds that no other kind of view needs; numpy knows no bfloat16
    from safetensors.torch import load_file

    size = path.stat().st_size
    if size > 4 * MAX_VALUES:
        raise study_error(f"a .safetensors file has {size} bytes; at most {4 * MAX_VALUES} are read.")
    try:
        tensors = load_file(path)
    except (SafetensorError, json.JSONDecodeError, OSError, ValueError):
        raise study_error("a .safetensors file of tokens is truncated or damaged.") from None
    if "tokens" not in tensors and len(tensors) != 1:
        raise study_error(f"a .safetensors file holds {len(tensors)} tensors; expected one, or 'tokens'.")
    tensor = tensors.get("tokens", next(iter(tensors.values())))
    if not tensor.is_floating_point():
        raise study_error(f"tokens are of type {tensor.dtype}; expected float16, bfloat16 or float32.")
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy(), "bfloat16"
    return tensor.numpy(), "float16"


def read_features(folder: Path, paths: list[Path], _settings: FrameSettings) -> ImageStudy:
    """The views of a study of stored features, by file name; angles from views.csv. Raises ReaderError."""
    notes = read_views_table(folder)
    views, kinds = [], set()
    for path in paths:
        tokens, dtype = _load_tokens(path)
        check_tokens(tokens, dtype)
        views.append(token_view(tokens, notes.get(path.relative_to(folder).as_posix())))
        kinds.add(dtype)
    if len(kinds) > 1:
        raise study_error("the views of a study mix bfloat16 and other floats; store them alike.")
    return ImageStudy("tokens", views, 0, kinds.pop())
