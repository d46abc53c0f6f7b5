"""One cohort row as the three members of a tar, and back."""

import functools
import io
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors

from stence_dist.data.readers.record import EcgRecord, ImageStudy, to_millivolts
from stence_dist.errors import DataError
from stence_dist.files import canonical_json

# Their order in the tar is the order of the index' columns.
MEMBERS = ("ecg.npy", "views.safetensors", "meta.json")
SAMPLE_FORMAT = 1
Buffer = bytes | memoryview
_PREFIX = {"pixels": "frames", "tokens": "tokens"}
_STORED_AS = {"U8": np.uint8, "F16": np.float16, "BF16": np.uint16, "F32": np.float32}


@dataclass(frozen=True)
class StoredSample:
    """One row of a shard set, as stored."""

    values: NDArray[np.int16]  # (12, T), -32768 = missing
    scale: float  # mV per step
    sampling_rate: float  # Hz
    leads: tuple[str, ...]
    views: NDArray[Any] | None  # (V, F, H, W) uint8 or (V, F, N, D) float; None: ECG only, or not asked for
    angulation: NDArray[np.float32]  # (V, 2) degrees, NaN = unknown
    meta: dict[str, Any]

    def signal(self) -> NDArray[np.float32]:
        """Signal (12, T) in mV, float32, NaN where missing, medians removed; the same bits as the raw file gives."""
        return to_millivolts(self.values, self.scale)


def sample_key(split: str, sample: int) -> str:
    """The name that a sample's members share in the tar: ASCII, without dots."""
    return f"{split}-{sample:09d}"


def encode(record: EcgRecord, study: ImageStudy | None, meta: dict[str, Any]) -> dict[str, bytes]:
    """The members of one row, in their fixed order; equal input gives equal bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(record.values), version=(1, 0), allow_pickle=False)
    described = {
        **meta,
        "format": SAMPLE_FORMAT,
        "ecg": {
            "scale": record.scale,
            "medians": [float(value) for value in record.medians],
            "sampling_rate": record.sampling_rate,
            "units": "mV",
            "leads": list(record.leads),
        },
        "flags": record.flags,
        "views": [view.meta for view in study.views] if study else [],
        "other_files": study.others if study else 0,
    }
    members = {"ecg.npy": buffer.getvalue()}
    if study:
        prefix = _PREFIX[study.kind]
        stored_as = {"uint8": torch.uint8, "float16": torch.float16, "bfloat16": torch.bfloat16}[study.dtype]
        tensors = {
            f"{prefix}_{number}": torch.from_numpy(np.ascontiguousarray(view.frames)).to(stored_as)
            for number, view in enumerate(study.views)
        }
        tensors["angulation"] = torch.from_numpy(np.stack([view.angulation for view in study.views]))
        members["views.safetensors"] = save_tensors(tensors)
    members["meta.json"] = canonical_json(described)
    return members


class _Stretch(NamedTuple):
    """Where one tensor lies in a safetensors body, and what it is."""

    low: int
    high: int
    shape: tuple[int, ...]
    stored: str  # the name of its type there
    dtype: np.dtype[Any]


def _stretch(entry: dict[str, Any]) -> _Stretch:
    """What a header's entry describes. Raises ValueError, KeyError or TypeError where that is no tensor."""
    (low, high), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), np.dtype(_STORED_AS[entry["dtype"]])
    if not 0 <= low <= high or any(side < 0 for side in shape):
        raise ValueError("a tensor lies outside of the member")
    if math.prod(shape) * dtype.itemsize != high - low:
        raise ValueError("a tensor's shape does not fit its bytes")
    return _Stretch(low, high, shape, entry["dtype"], dtype)


@functools.lru_cache(maxsize=256)
def _views_layout(header: bytes) -> tuple[tuple[_Stretch, ...], _Stretch]:
    """Views and angulation that a `views.safetensors` header announces; studies of as many views have the same header.

    Views that lie one behind the other, as up to ten do, are one stretch (V, ...). Raises as `_stretch`.
    """
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    angulation = _stretch(entries.pop("angulation"))
    prefix = "frames" if "frames_0" in entries else "tokens"
    views = [_stretch(entries[f"{prefix}_{number}"]) for number in range(len(entries))]
    if angulation.shape != (len(views), 2) or angulation.dtype != np.float32:
        raise ValueError("angulation does not fit the views")
    if any((view.shape, view.stored) != (views[0].shape, views[0].stored) for view in views):
        raise ValueError("views differ in shape or type")
    if all(one.high == other.low for one, other in itertools.pairwise(views)):
        whole = views[0]._replace(high=views[-1].high, shape=(len(views), *views[0].shape))
        return (whole,), angulation
    return tuple(views), angulation


def _decode_views(content: Buffer) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Views (V, ...) and angulation (V, 2) of a `views.safetensors`; bfloat16 tokens come back as float32, exactly.

    The layout is the published one: 8 bytes with the length of a JSON header, the header, the data. The library would
    copy every tensor twice; here one stretch of views is not copied at all.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    views, angulation = _views_layout(bytes(content[8:start]))
    body = content[start:]
    found = [_array(body, view) for view in views]
    return found[0] if len(found) == 1 else np.stack(found), _array(body, angulation)


def _array(body: Buffer, place: _Stretch) -> NDArray[Any]:
    """One tensor of a safetensors body; memory is shared but for bfloat16. Raises ValueError beyond the body's end."""
    if place.high > len(body):
        raise ValueError("a tensor lies outside of the member")
    stored = np.frombuffer(body[place.low : place.high], dtype=place.dtype).reshape(place.shape)
    if place.stored == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored


@functools.lru_cache(maxsize=256)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, Fortran order, dtype) that a `.npy` header announces; samples of one length have the same header."""
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("unexpected version")
    return np.lib.format.read_array_header_1_0(stream)


def _decode_ecg(content: Buffer) -> NDArray[np.int16]:
    """Values (12, T) of an `ecg.npy`, sharing its memory."""
    start = 10 + int.from_bytes(content[8:10], "little")  # magic, version and length come before the header's text
    shape, fortran, dtype = _npy_header(bytes(content[:start]))
    if fortran or dtype != np.int16:
        raise ValueError("unexpected layout")
    return np.frombuffer(content[start:], dtype=np.int16).reshape(shape)


def decode(members: Mapping[str, Buffer]) -> StoredSample:
    """The inverse of `encode`; its arrays share the members' memory. Raises DataError where a member is not what a
    shard holds.
    """
    try:
        values = _decode_ecg(members["ecg.npy"])
        meta = json.loads(str(members["meta.json"], "utf-8"))
        ecg = meta["ecg"]
        views: NDArray[Any] | None = None
        angulation = np.zeros((0, 2), dtype=np.float32)
        if "views.safetensors" in members:
            views, angulation = _decode_views(members["views.safetensors"])
        sample = StoredSample(
            values, float(ecg["scale"]), float(ecg["sampling_rate"]), tuple(ecg["leads"]), views, angulation, meta
        )
    except Exception as error:  # three parsers on bytes that may be damaged: each raises its own kinds
        raise DataError(f"a member cannot be parsed ({type(error).__name__})") from None
    if values.ndim != 2 or len(values) != len(sample.leads):
        raise DataError(f"ecg.npy has the shape {values.shape}, expected (12, T)")
    return sample
