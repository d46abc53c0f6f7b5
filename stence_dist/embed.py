"""ECG files to features: what a trained tower makes of recordings that never were in a shard set."""

import csv
import io
import logging
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from stence_dist import files
from stence_dist.config.embed import EmbedConfig
from stence_dist.data.readers import read_ecg
from stence_dist.data.readers.ecg import RECORDINGS, format_of
from stence_dist.data.readers.ecg.wfdb_record import parts_of
from stence_dist.data.readers.lookalike import is_mac_companion
from stence_dist.device import compute_device
from stence_dist.ecg import EcgSpec, prepare_windows
from stence_dist.errors import DataError, RefusedError
from stence_dist.models.ecg_tower import EcgTower, embed_windows, load_ecg_tower

logger = logging.getLogger("stence_dist")

# What a folder is searched for by name, and the formats that it is searched for by content: tables may be anything
# else, and are ECGs where a sidecar says so. A WFDB record is found by its header.
SUFFIXES = (".hea", ".npy", ".npz")
_BY_CONTENT = frozenset(RECORDINGS) - {"WFDB", "npz", "text table"}
_MANY = (".h5", ".hdf5", ".pt")

Windows = NDArray[np.float32]


def embed(config: EmbedConfig) -> None:
    """Write config.out: features (n, D), embeddings (n, E) unit norm where there is a projector, record (n,) text.

    Records are named by their files, which may name patients: the result is readable by its owner only.
    A recording of a folder that cannot be read is logged and listed in `OUT.rejects.csv`, and the others go on; a
    single recording that cannot be read raises DataError, and so does a folder without any that can.
    """
    tower = load_ecg_tower(config.weights)
    tower.to(compute_device())
    source = Path(config.ecg)
    rejects: list[tuple[str, str]] = []
    if config.prepared:
        total, recordings = prepared_windows(source, tower.spec)
    elif source.is_dir():
        found = _recordings(source)
        total, recordings = len(found), folder_windows(source, found, tower.spec, config.wfdb_scale, rejects)
    else:
        total, recordings = 1, single_windows(source, tower.spec, config.wfdb_scale)

    arrays = embed_recordings(tower, tqdm(recordings, total=total, desc="embed", disable=None), config.batch_size)
    listed = Path(f"{config.out}.rejects.csv")
    listed.unlink(missing_ok=True)
    if rejects:
        write_rejects(listed, rejects)
    if not arrays:
        see = f"could be read; see {listed}." if rejects else "is there: it holds no recording."
        raise DataError(f"None of the {total} recordings in {source} {see}")
    with files.replacing(config.out, mode=0o600) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    logger.info("%s: %d recordings, %d rejected", config.out, len(arrays["record"]), len(rejects))


def embed_recordings(
    tower: EcgTower, recordings: Iterable[tuple[str, Windows]], batch_size: int
) -> dict[str, NDArray[np.generic]]:
    """`features`, `embeddings` and `record` of (name, windows (windows, L, T)); empty where there is no recording."""
    device = next(tower.parameters()).device
    names: list[str] = []
    parts: dict[str, list[NDArray[np.float32]]] = {"features": [], "embeddings": []}
    for batch in _batches(recordings, batch_size):
        names += [name for name, _ in batch]
        with torch.inference_mode():
            ecg = torch.from_numpy(np.stack([windows for _, windows in batch])).to(device)
            features, projected = embed_windows(tower, ecg)
        parts["features"].append(features.cpu().numpy())
        if projected is not None:
            parts["embeddings"].append(torch.nn.functional.normalize(projected, dim=1).cpu().numpy())
    arrays: dict[str, NDArray[np.generic]] = {name: np.concatenate(values) for name, values in parts.items() if values}
    return arrays | {"record": np.array(names)} if names else {}


def _batches(recordings: Iterable[tuple[str, Windows]], size: int) -> Iterator[list[tuple[str, Windows]]]:
    batch: list[tuple[str, Windows]] = []
    for recording in recordings:
        batch.append(recording)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read_windows(path: Path, spec: EcgSpec, wfdb_scale: str) -> Windows:
    """Prepared windows (windows, L, T) of one file."""
    record = read_ecg(path, wfdb_scale=wfdb_scale)
    return prepare_windows(record.signal(), leads=record.leads, sampling_rate=record.sampling_rate, spec=spec)


def _recordings(folder: Path) -> list[Path]:
    """The recordings in a folder and below it. Raises DataError where there is none.

    A segment of a WFDB record is a part of that record, and a file of many recordings is left out with a warning.
    """
    files_there = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [path for path in files_there if _is_ecg(path)]
    collections = sum(path.suffix.lower() in _MANY for path in files_there)
    if collections:
        text = "%d HDF5 or .pt files may hold many recordings and are left out; ecg=FILE#17 embeds one of them"
        logger.warning(text, collections)
    segments = {part for header in found if header.suffix == ".hea" for part in _segments(header)}
    if not found:
        searched = ", ".join([*SUFFIXES, *sorted(_BY_CONTENT)])
        raise DataError(f"{folder} holds no ECG (searched for {searched}). Give a file, or its folder.")
    return [path for path in found if path not in segments]


def _segments(header: Path) -> set[Path]:
    try:
        return {part for part in parts_of(header) if part.suffix == ".hea"}
    except (OSError, ValueError):  # whoever reads the record says so
        return set()


def _is_ecg(path: Path) -> bool:
    """Whether a file of a folder is a recording, or cannot be opened to see."""
    if is_mac_companion(path):
        return False
    try:
        kind = format_of(path)
    except OSError:
        return True
    declared = kind == "text table" and path.with_suffix(".json").is_file()
    return path.suffix in SUFFIXES or kind in _BY_CONTENT or declared


def record_name(path: Path) -> str:
    """How an ECG is called in the output: a WFDB record without `.hea`, any other file by its whole name."""
    return str(path.with_suffix("") if path.suffix == ".hea" else path)


def single_windows(path: Path, spec: EcgSpec, wfdb_scale: str) -> Iterator[tuple[str, Windows]]:
    """The one recording of a file. Raises DataError that names the file as it was typed."""
    try:
        yield record_name(Path(path.name)), read_windows(path, spec, wfdb_scale)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def folder_windows(
    folder: Path, paths: list[Path], spec: EcgSpec, wfdb_scale: str, rejects: list[tuple[str, str]]
) -> Iterator[tuple[str, Windows]]:
    """Every recording that can be read, named by its path below the folder; the others go to `rejects`."""
    for number, path in enumerate(paths, start=1):
        record = record_name(path.relative_to(folder))
        try:
            yield record, read_windows(path, spec, wfdb_scale)
        except RefusedError as error:
            rejects.append((record, str(error)))
            logger.warning("recording %d of %d left out: %s", number, len(paths), error)


def prepared_windows(path: Path, spec: EcgSpec) -> tuple[int, Iterator[tuple[str, Windows]]]:
    """Number and rows of an array (n, L, T) that is prepared already; row numbers are the names."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            names = loaded.files
            if len(names) != 1:
                raise DataError(f"{path} holds the arrays {', '.join(names)}; prepared=true takes a file with one.")
            loaded = loaded[names[0]]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Give a .npy or .npz file.") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no whole .npy or .npz array ({error}).") from None
    expected = (len(spec.leads), spec.samples)
    if loaded.ndim != 3 or loaded.shape[1:] != expected or loaded.dtype.kind != "f":
        raise DataError(
            f"{path} holds {loaded.dtype} {loaded.shape}; prepared=true needs floats "
            f"(n, {expected[0]}, {expected[1]}): {spec.seconds:g} s at {spec.sampling_rate:g} Hz, "
            f"leads {' '.join(spec.leads)}."
        )
    if not np.isfinite(loaded).all():
        raise DataError(f"{path} holds NaN or infinite values; a prepared ECG has none.")
    return len(loaded), ((str(row), np.asarray(loaded[row], dtype=np.float32)[None]) for row in range(len(loaded)))


def write_rejects(path: Path, rejects: list[tuple[str, str]]) -> None:
    """One line per recording that was left out. Readable by the owner only: a file's name may name a patient."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["record", "reason"])
    writer.writerows(rejects)
    files.write_text(path, text.getvalue(), mode=0o600)
