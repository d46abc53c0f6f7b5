"""ECGs in files of torch.save, as StenCE and OTiS keep them: a list of (name, tensor) pairs, or one tensor.

A recording is (leads, samples) or (1, leads, samples); a bare tensor may be (recordings, leads, samples). `FILE.pt#17`
names one of many, from 0. The files state neither rate nor unit nor leads, and many hold normalized signals: a sidecar
`FILE.json` {"sampling_rate": 500, "unit": "mV", "leads": [...]} declares them, and a unit that is no voltage is
refused. Names are not read. Nothing but tensors is ever built: torch.load(weights_only=True).
"""

import functools
import zipfile
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stence_dist.data.readers.ecg.declared import Declared, entry_number, read_sidecar
from stence_dist.data.readers.ecg.waveform import Waveform, check_size, millivolts_per_unit
from stence_dist.data.readers.record import ReaderError

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE = "/data.pkl"
_LARGEST_PICKLE = 500_000_000  # bytes: some hundred for each recording


def is_tensors(path: Path, start: bytes) -> bool:
    """Whether a file comes from torch.save: a zip archive that begins with the `data.pkl` of its one folder."""
    if not start.startswith(_ZIP_MAGIC):
        return False
    # Of the first member alone: listing an archive of many recordings takes long, for each of them.
    length = int.from_bytes(start[26:28], "little")
    return start[30 : 30 + length].endswith(_PICKLE.encode())


def read_tensors(path: Path, entry: str | None) -> Waveform:
    """One recording of a torch file and its sidecar. Raises ReaderError."""
    declared = Declared.parse(read_sidecar(path), "the sidecar .json")
    millivolts_per_unit(declared.unit)  # before a file of normalized signals is loaded for nothing
    status = path.stat()
    recording = _recording(_load(path, status.st_size, status.st_mtime_ns), entry)
    return declared.waveform(_to_numpy(recording))


@functools.lru_cache(maxsize=1)  # a cohort names recording after recording of one file; its tensors are mapped
def _load(path: Path, size: int, changed: int) -> Any:
    """What a torch file of `size` bytes, changed at `changed`, holds. Raises ReaderError."""
    import torch

    _check_archive(path, size)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # its messages quote the file
        raise ReaderError(
            "the torch file is damaged or holds more than tensors, lists and texts; nothing of it was run. Save a list"
            " of (name, tensor) pairs, or one tensor."
        ) from None


def _check_archive(path: Path, size: int) -> None:
    """Refuse an archive that unpacks to more than itself, by its directory."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (ValueError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile):
        raise ReaderError("the torch file is truncated or damaged.") from None
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > size:
        raise ReaderError("the torch file is packed, which torch.save never does; save it again.")
    pickles = [member.file_size for member in members if member.filename.endswith(_PICKLE)]
    if len(pickles) != 1 or pickles[0] > _LARGEST_PICKLE:
        raise ReaderError(f"the torch file describes its tensors in {sum(pickles)} bytes; save it in parts.")


def _recording(content: Any, entry: str | None) -> Any:
    """The tensor that `entry` names, (leads, samples)."""
    import torch

    if isinstance(content, torch.Tensor):
        if content.ndim == 3:
            return content[entry_number(entry, len(content))]
        entry_number(entry, 1)
        return content
    if not isinstance(content, list) or not content:
        raise ReaderError("the torch file holds neither a tensor nor a list of (name, tensor) pairs.")
    pair = content[entry_number(entry, len(content))]
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[1], torch.Tensor):
        raise ReaderError("that recording of the torch file is no pair of a name and a tensor.")
    tensor = pair[1]
    return tensor[0] if tensor.ndim == 3 and len(tensor) == 1 else tensor


def _to_numpy(tensor: Any) -> NDArray[Any]:
    """A tensor's values; float32 for bfloat16. Its size is checked before: a tensor may repeat one stored value."""
    import torch

    check_size(1, tensor.numel())
    try:
        plain = tensor.detach()
        values: NDArray[Any] = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    except (TypeError, RuntimeError):  # sparse, quantized, without values
        raise ReaderError("the torch file's tensor is of an unusual kind; expected plain numbers.") from None
    return values
