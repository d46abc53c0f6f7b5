"""The array beside each shard: where every member lies, and what is known of every sample without opening a tar."""

import io
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.sample import MEMBERS
from stence_dist.errors import DataError

# One entry per sample. Of the members, `views.safetensors` has length 0 in an ECG-only row.
SIDECAR = np.dtype(
    [
        ("sample", "<i8"),
        ("offset", "<i8", (len(MEMBERS),)),
        ("length", "<i8", (len(MEMBERS),)),
        ("crc", "<u4", (len(MEMBERS),)),
        ("patient_key", "S32"),
        ("view_count", "<i4"),
        ("segments", "<f4", (16,)),
        ("age", "<f4"),
        ("sex", "S1"),
        ("site", "<i4"),  # position in the index' list of sites
        ("days_between", "<f4"),
    ]
)
# Columns of a cohort that a set keeps where any row has them, beside its label_* columns: what confounds. `device` is a
# position in the index' list of devices, -1 = unknown.
CONFOUNDERS = (
    "acute",
    "prior_revascularization",
    "after_procedure",
    "high_pass_hz",
    "low_pass_hz",
    "lvef",
    "device",
)


def sidecar_name(shard: str) -> str:
    """The sidecar's file name beside a shard."""
    return shard.removesuffix(".tar") + ".npy"


def sidecar_type(columns: int) -> np.dtype[Any]:
    """The entries of a set that keeps `columns` more columns of its cohort."""
    return np.dtype([*SIDECAR.descr, ("columns", "<f4", (columns,))]) if columns else SIDECAR


@lru_cache(maxsize=64)
def _entry_count(header: bytes, columns: int) -> int:
    """Entries with `columns` more columns that a `.npy` header announces.

    Most shards of a set have the same header, and parsing one is slow.
    """
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("unexpected version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != sidecar_type(columns) or len(shape) != 1:
        raise ValueError("unexpected columns")
    return int(shape[0])


def load_sidecar(content: bytes, name: str, columns: int) -> NDArray[np.void]:
    """The entries (n,) of a sidecar's bytes, read-only. Raises DataError where they are not one.

    `columns` counts the set's further columns, as its index lists them.
    """
    start = 10 + int.from_bytes(content[8:10], "little")  # magic, version and length come before the header's text
    try:
        count = _entry_count(content[:start], columns)
        return np.frombuffer(content, dtype=sidecar_type(columns), count=count, offset=start)
    except ValueError as error:
        raise DataError(
            f"{name} is no sidecar of this set ({error}). Copy the shard set again, or build it again."
        ) from None


@dataclass(frozen=True)
class SampleTable:
    """Arrays over the rows of one split, from the sidecars alone; text columns are made when first asked for."""

    entries: NDArray[np.void]  # (n,) `sidecar_type`
    sites: tuple[str, ...]
    devices: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # names of the entries' further columns

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def sample(self) -> NDArray[np.int64]:
        """Sample numbers (n,): the cohort row each came from, counted from 1."""
        return np.ascontiguousarray(self.entries["sample"])

    @cached_property
    def patient(self) -> NDArray[np.int64]:
        """Patients (n,) as numbers: the key's first 8 bytes, shifted into the positive range."""
        digits = np.ascontiguousarray(self.entries["patient_key"]).view(np.uint8).reshape(len(self), -1)[:, :16]
        numbers = np.frombuffer(bytes.fromhex(digits.tobytes().decode("ascii")), dtype=">u8")
        return (numbers >> np.uint64(1)).astype(np.int64)

    @cached_property
    def patient_key(self) -> NDArray[np.str_]:
        """Patient keys (n,), 32 hex digits."""
        return self.entries["patient_key"].astype("U32")

    @cached_property
    def view_count(self) -> NDArray[np.int64]:
        """Views per row (n,); 0 = ECG only."""
        return self.entries["view_count"].astype(np.int64)

    @cached_property
    def segments(self) -> NDArray[np.float32]:
        """Percent diameter stenosis (n, 16), NaN = not reported."""
        return np.ascontiguousarray(self.entries["segments"])

    @cached_property
    def age(self) -> NDArray[np.float32]:
        """Years (n,), NaN = unknown."""
        return np.ascontiguousarray(self.entries["age"])

    @cached_property
    def sex(self) -> NDArray[np.str_]:
        """Sex (n,): "M", "F" or ""."""
        return self.entries["sex"].astype("U1")

    @cached_property
    def site(self) -> NDArray[np.str_]:
        """Site names (n,), "" = unknown."""
        names: NDArray[np.str_] = np.array([*self.sites, ""])
        return names[self.entries["site"].astype(np.int64)]  # -1 picks the last, empty one

    @cached_property
    def days_between(self) -> NDArray[np.float32]:
        """Study minus ECG in days (n,), NaN = unknown."""
        return np.ascontiguousarray(self.entries["days_between"])

    def column(self, name: str) -> NDArray[np.float32]:
        """One of `columns` (n,), NaN = unknown; NaN throughout where the set does not keep it."""
        if name not in self.columns:
            return np.full(len(self), np.nan, dtype=np.float32)
        return np.ascontiguousarray(self.entries["columns"][:, self.columns.index(name)])

    @cached_property
    def device(self) -> NDArray[np.str_]:
        """ECG devices (n,), "" = unknown."""
        names: NDArray[np.str_] = np.array([*self.devices, ""])
        return names[np.nan_to_num(self.column("device"), nan=-1).astype(np.int64)]

    @property
    def has_study(self) -> NDArray[np.bool_]:
        """Rows (n,) that are a pair."""
        return self.view_count > 0
