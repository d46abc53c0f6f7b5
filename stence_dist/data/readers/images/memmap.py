"""Bare arrays on disk (`NAME.dat`), read as memory maps by a shape that is declared beside them.

Frames of a run: `NAME.json` beside `NAME.dat` holds `{"shape": [F, H, W], "dtype": "uint8"}`. The types uint16 and
float32 also need `"range": [black, white]`, since their bits say nothing of it; values beyond are clipped.

Tokens, as StenCE stores them: one file per study, `KEY.dat`, and a `shapes.json` in its folder or in one of the two
above that maps KEY to the shape: [V, N, D] or [V, F, N, D], or [N, D] for one view of one frame, in float32. For
another type, the entry is `{"shape": [...], "dtype": "float16"}` (or "bfloat16"). `study_path` names the file itself;
`views.csv` beside it knows its views as `KEY.dat#0`, `KEY.dat#1`, ...

Arrays are little endian, in C order, without a header; a file of any other length than its shape asks for is refused.
"""

import functools
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.frames import FrameSettings, to_bytes
from stence_dist.data.readers.images.run import Run, check_size, to_view
from stence_dist.data.readers.images.tokens import check_tokens, token_view
from stence_dist.data.readers.images.views_table import read_views_table
from stence_dist.data.readers.record import MAX_VALUES, ImageStudy, study_error

SHAPES_TABLE = "shapes.json"
_FRAME_TYPES = {"uint8": "<u1", "uint16": "<u2", "float32": "<f4"}
_TOKEN_TYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}  # bfloat16: the upper half of a float32
_LARGEST_DECLARATION = 100_000_000  # bytes: shapes.json has an entry per patient


@functools.lru_cache(maxsize=4)
def _parse(path: Path, _size: int, _modified: int) -> dict[str, Any]:
    try:
        declared = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise study_error("the .json that declares a .dat file is not valid JSON.") from None
    if not isinstance(declared, dict):
        raise study_error("the .json that declares a .dat file holds no object.")
    return declared


def _declaration(path: Path) -> dict[str, Any]:
    """The entries of a .json file, parsed once for many studies. Raises ReaderError."""
    state = path.stat()
    if state.st_size > _LARGEST_DECLARATION:
        raise study_error(
            f"a .json of {state.st_size} bytes declares .dat files; at most {_LARGEST_DECLARATION} are read."
        )
    return _parse(path, state.st_size, state.st_mtime_ns)


def _shapes_table(path: Path) -> Path | None:
    """The shapes.json that has an entry for the file `path`; None without one."""
    for folder in path.parents[:3]:
        table = folder / SHAPES_TABLE
        if table.is_file() and path.stem in _declaration(table):
            return table
    return None


def is_declaration(path: Path) -> bool:
    """Whether a file declares .dat files, rather than being part of the study itself."""
    return path.suffix == ".json" and (path.name == SHAPES_TABLE or path.with_suffix(".dat").is_file())


def is_frame_map(path: Path, _start: bytes) -> bool:
    """Whether `path` is a .dat file with a .json of its name beside it."""
    return path.suffix == ".dat" and path.with_suffix(".json").is_file()


def is_token_map(path: Path, _start: bytes) -> bool:
    """Whether `path` is a .dat file that a shapes.json declares."""
    return path.suffix == ".dat" and _shapes_table(path) is not None


def _mapped(path: Path, shape: Any, dtype: Any, types: dict[str, str], axes: tuple[int, ...]) -> NDArray[Any]:
    """The array of a .dat file, mapped, its declared size compared with the file's first. Raises ReaderError."""
    if not isinstance(dtype, str) or dtype not in types:
        raise study_error(f"a .dat file is declared with an unknown dtype; expected one of {', '.join(types)}.")
    whole = isinstance(shape, list) and all(type(side) is int and 1 <= side <= MAX_VALUES for side in shape)
    if not whole or len(shape) not in axes:
        raise study_error(f"a .dat file is declared without a shape of {' or '.join(map(str, axes))} whole numbers.")
    stored = np.dtype(types[dtype])
    expected, found = math.prod(shape) * stored.itemsize, path.stat().st_size
    if found != expected:
        raise study_error(f"a .dat file holds {found} bytes; its shape {shape} of {dtype} asks for {expected}.")
    return np.memmap(path, dtype=stored, mode="r", shape=tuple(shape))


def _gray_range(declared: dict[str, Any]) -> tuple[float, float]:
    """Black and white as a declaration states them; 0 and 255 for uint8 that states nothing. Raises ReaderError."""
    ends = declared.get("range", [0, 255] if declared.get("dtype") == "uint8" else None)
    if isinstance(ends, list) and len(ends) == 2 and all(type(end) in (int, float) for end in ends):
        black, white = float(ends[0]), float(ends[1])
        if math.isfinite(black) and math.isfinite(white) and black < white:
            return black, white
    raise study_error('frames of uint16 or float32 need "range": [black, white] in their .json, e.g. [0, 4095].')


def _gray_frames(
    frames: NDArray[Any], ends: tuple[float, float], indices: list[int] | None
) -> Iterator[NDArray[np.float32]]:
    for index in range(len(frames)) if indices is None else indices:
        frame = np.array(frames[index])
        if not np.isfinite(frame).all():
            raise study_error("a frame in a .dat file holds NaN or infinity.")
        yield to_bytes(frame, *ends, inverted=False)


def read_frame_maps(folder: Path, paths: list[Path], settings: FrameSettings) -> ImageStudy:
    """The runs of a study in .dat files, by file name; key frames and angles from views.csv. Raises ReaderError."""
    notes = read_views_table(folder)
    views = []
    for path in paths:
        declared = _declaration(path.with_suffix(".json"))
        frames = _mapped(path, declared.get("shape"), declared.get("dtype"), _FRAME_TYPES, (3,))
        check_size(*frames.shape)
        run = Run(partial(_gray_frames, frames, _gray_range(declared)), *frames.shape)
        views.append(to_view(run, notes.get(path.relative_to(folder).as_posix()), settings))
    return ImageStudy("pixels", views)


def read_token_map(folder: Path, paths: list[Path], _settings: FrameSettings) -> ImageStudy:
    """The views of the one .dat file of tokens that a study is; angles from views.csv. Raises ReaderError."""
    if len(paths) > 1:
        raise study_error(
            f"the study holds {len(paths)} .dat files of tokens; {SHAPES_TABLE} declares one per study. Name the file "
            "itself in study_path."
        )
    notes = read_views_table(folder)
    path = paths[0]
    table = _shapes_table(path)
    assert table is not None
    entry = _declaration(table)[path.stem]
    declared = entry if isinstance(entry, dict) else {"shape": entry, "dtype": "float32"}
    dtype = declared.get("dtype", "float32")
    tokens = _mapped(path, declared.get("shape"), dtype, _TOKEN_TYPES, (2, 3, 4))
    if tokens.size > MAX_VALUES:
        raise study_error(f"a .dat file holds {tokens.size} values; at most {MAX_VALUES} are read.")
    if tokens.ndim < 4:
        views, (patches, width) = len(tokens) if tokens.ndim == 3 else 1, tokens.shape[-2:]
        tokens = tokens.reshape(views, 1, patches, width)
    stored_as = "bfloat16" if dtype == "bfloat16" else "float16"
    read = []
    for number, view in enumerate(tokens):
        values = (view.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else np.array(view)
        check_tokens(values, stored_as)
        read.append(token_view(values, notes.get(f"{path.relative_to(folder).as_posix()}#{number}")))
    return ImageStudy("tokens", read, 0, stored_as)
