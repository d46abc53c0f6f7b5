"""ECGs in numpy files, with declared rate, unit and lead order.

`FILE.npy` (leads, samples) with a sidecar `FILE.json` {"sampling_rate": 500, "unit": "mV", "leads": ["I", ...]}, or
`FILE.npz` with the entries `signal`, `sampling_rate`, `unit`, `leads`.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.readers.record import (
    MAX_VALUES,
    EcgRecord,
    ReaderError,
    choose_leads,
    millivolts_per_unit,
    quantize,
)
from stence_dist.data.readers.relations import einthoven_residual
from stence_dist.ecg import LEADS

NPY_MAGIC = b"\x93NUMPY"
NPZ_MAGIC = b"PK\x03\x04"
_DECLARED = ("sampling_rate", "unit", "leads")


def is_array(path: Path) -> bool:
    """Whether `path` is a .npy or .npz file, by its first bytes."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(len(NPY_MAGIC))
    return start == NPY_MAGIC or (start.startswith(NPZ_MAGIC) and zipfile.is_zipfile(path))


def load_npy(path: Path, field: str) -> NDArray[Any]:
    """The array of a .npy file, never unpickled. Raises ReaderError for a damaged, object or oversized one."""
    try:
        # Mapping first compares the declared size with the file's, before memory is taken.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise ReaderError("the .npy file is truncated, damaged, or holds Python objects.", field) from None
    if array.size > MAX_VALUES:
        raise ReaderError(f"the .npy file holds {array.size} values; at most {MAX_VALUES} are read.", field)
    return np.array(array)


def _load_npz(path: Path) -> dict[str, NDArray[Any]]:
    needed = ("signal", *_DECLARED)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > 8 * MAX_VALUES:
            raise ReaderError(f"the .npz file unpacks to {size} bytes; at most {8 * MAX_VALUES} are read.")
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in needed if name not in archive]
            if missing:
                raise ReaderError(f"the .npz file lacks {', '.join(missing)}; expected {', '.join(needed)}.")
            return {name: archive[name] for name in needed}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile):
        raise ReaderError("the .npz file is truncated, damaged, or holds Python objects.") from None


def _load_declared(path: Path) -> dict[str, Any]:
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        raise ReaderError(f"the .npy file has no sidecar of the same name in .json with {', '.join(_DECLARED)}.")
    try:
        declared = json.loads(sidecar.read_text(encoding="utf-8"))
    except ValueError:
        raise ReaderError("the sidecar .json is not valid JSON.") from None
    missing = [name for name in _DECLARED if not isinstance(declared, dict) or name not in declared]
    if missing:
        raise ReaderError(f"the sidecar .json lacks {', '.join(missing)}; expected {', '.join(_DECLARED)}.")
    return dict(declared)


def read_array(path: Path, wfdb_scale: str) -> EcgRecord:
    """The 12 leads of a .npy or .npz file. `wfdb_scale` does not concern it. Raises ReaderError."""
    with open(path, "rb") as file:
        is_npy = file.read(len(NPY_MAGIC)) == NPY_MAGIC
    if is_npy:
        declared: dict[str, Any] = _load_declared(path)
        signal = load_npy(path, "ecg_path")
    else:
        declared = dict(_load_npz(path))
        signal = declared.pop("signal")
    try:
        sampling_rate = float(declared["sampling_rate"])
        unit = str(declared["unit"])
        leads = [str(lead) for lead in declared["leads"]]
    except (TypeError, ValueError):
        raise ReaderError("sampling_rate must be a number, unit a text, leads a list of texts.") from None
    if signal.dtype.kind not in "iuf":
        raise ReaderError(f"the signal is of type {signal.dtype}; expected integers or floats.")
    if signal.ndim != 2 or signal.shape[0] != len(leads):
        turned = " Transpose it." if signal.ndim == 2 and signal.shape[1] == len(leads) else ""
        raise ReaderError(f"the signal has shape {signal.shape}; expected ({len(leads)} leads, samples).{turned}")
    millivolts = signal[choose_leads(leads)].astype(np.float64) * millivolts_per_unit(unit)
    flags = {"scale_source": "declared", "einthoven_residual": einthoven_residual(millivolts)}
    return quantize(millivolts, LEADS, sampling_rate, flags)
