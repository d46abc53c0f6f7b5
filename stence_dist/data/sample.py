"""One cohort row as the three members of a tar, and back."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from stence_dist.data.readers.record import EcgRecord, ImageStudy, to_millivolts
from stence_dist.errors import DataError
from stence_dist.files import canonical_json

# Their order in the tar is the order of the index' columns.
MEMBERS = ("ecg.npy", "views.safetensors", "meta.json")
SAMPLE_FORMAT = 1
_PREFIX = {"pixels": "frames", "tokens": "tokens"}


@dataclass(frozen=True)
class StoredSample:
    """One row of a shard set, as stored."""

    values: NDArray[np.int16]  # (12, T), -32768 = missing
    scale: float  # mV per step
    sampling_rate: float  # Hz
    leads: tuple[str, ...]
    views: list[NDArray[Any]] | None  # V arrays, (F, H, W) uint8 or (F, N, D) float; None: ECG only, or not asked for
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


def _decode_views(content: bytes) -> tuple[list[NDArray[Any]], NDArray[np.float32]]:
    """V arrays and angulation (V, 2) of a `views.safetensors`; bfloat16 tokens come back as float32, exactly."""
    tensors = load_tensors(content)
    angulation = tensors.pop("angulation").numpy()
    prefix = "frames" if "frames_0" in tensors else "tokens"
    ordered = [tensors[f"{prefix}_{number}"] for number in range(len(tensors))]
    return [(view.float() if view.dtype == torch.bfloat16 else view).numpy() for view in ordered], angulation


def decode(members: Mapping[str, bytes]) -> StoredSample:
    """The inverse of `encode`. Raises DataError where a member is not what a shard holds."""
    try:
        values = np.lib.format.read_array(io.BytesIO(members["ecg.npy"]), allow_pickle=False)
        meta = json.loads(members["meta.json"])
        ecg = meta["ecg"]
        views: list[NDArray[Any]] | None = None
        angulation = np.zeros((0, 2), dtype=np.float32)
        if "views.safetensors" in members:
            views, angulation = _decode_views(members["views.safetensors"])
        sample = StoredSample(
            values, float(ecg["scale"]), float(ecg["sampling_rate"]), tuple(ecg["leads"]), views, angulation, meta
        )
    except Exception as error:  # three parsers on bytes that may be damaged: each raises its own kinds
        raise DataError(f"a member cannot be parsed ({type(error).__name__})") from None
    if values.dtype != np.int16 or values.ndim != 2 or len(values) != len(sample.leads):
        raise DataError(f"ecg.npy is {values.dtype} {values.shape}, expected int16 (12, T)")
    return sample
