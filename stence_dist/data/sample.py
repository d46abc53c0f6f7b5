"""One cohort row as the three members of a tar, and back."""

import functools
import io
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


def _decode_views(content: Buffer) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Views (V, ...) and angulation (V, 2) of a `views.safetensors`; bfloat16 tokens come back as float32, exactly.

    The layout is the published one: 8 bytes with the length of a JSON header, the header, the data. The library would
    copy every tensor twice; here views that lie one behind the other, as up to ten do, are not copied at all.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:start]))
    header.pop("__metadata__", None)
    body = content[start:]
    angulation = _array(body, header.pop("angulation"))
    prefix = "frames" if "frames_0" in header else "tokens"
    ordered = [header[f"{prefix}_{number}"] for number in range(len(header))]
    if angulation.shape != (len(ordered), 2) or angulation.dtype != np.float32:
        raise ValueError("angulation does not fit the views")
    if any((entry["shape"], entry["dtype"]) != (ordered[0]["shape"], ordered[0]["dtype"]) for entry in ordered):
        raise ValueError("views differ in shape or type")
    ends = [entry["data_offsets"] for entry in ordered]
    if all(one[1] == other[0] for one, other in itertools.pairwise(ends)):
        together = {"shape": [len(ordered), *ordered[0]["shape"]], "data_offsets": [ends[0][0], ends[-1][1]]}
        return _array(body, {**ordered[0], **together}), angulation
    return np.stack([_array(body, entry) for entry in ordered]), angulation


def _array(body: Buffer, entry: dict[str, Any]) -> NDArray[Any]:
    """One tensor of a safetensors body, as its header entry describes it; memory is shared but for bfloat16.

    Raises ValueError, KeyError or TypeError for an entry that does not describe a stretch of the body.
    """
    (low, high), shape, dtype = entry["data_offsets"], entry["shape"], np.dtype(_STORED_AS[entry["dtype"]])
    if not (0 <= low <= high <= len(body) and all(side >= 0 for side in shape)):
        raise ValueError("a tensor lies outside of the member")
    if math.prod(shape) * dtype.itemsize != high - low:
        raise ValueError("a tensor's shape does not fit its bytes")
    stored = np.frombuffer(body[low:high], dtype=dtype).reshape(shape)
    if entry["dtype"] == "BF16":
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
        meta = json.loads(bytes(members["meta.json"]))
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
