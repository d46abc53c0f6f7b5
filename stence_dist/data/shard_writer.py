"""One shard of a set: its rows read, its tar and sidecar written, and a record that says so."""

import dataclasses
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stence_dist.data.cohort import CohortRow, Reject
from stence_dist.data.frames import FrameSettings
from stence_dist.data.index import DatasetSpec
from stence_dist.data.readers import EcgRecord, ImageStudy, ReaderError, read_ecg, read_study
from stence_dist.data.readers.record import DOUBTFUL_FLAGS
from stence_dist.data.sample import MEMBERS, encode, sample_key
from stence_dist.data.sidecar import sidecar_name, sidecar_type
from stence_dist.data.tar import scan
from stence_dist.files import replacing, save_array, sha256_file, write_json

UNFINISHED = ".build"  # folder of a build's plan and records, until its index is there


@dataclass(frozen=True)
class ShardPlan:
    """What one shard is to hold: decided before any row is read, so that a reject leaves a gap."""

    name: str
    split: str
    rows: list[CohortRow]


@dataclass(frozen=True)
class BuildPlan:
    """What every worker needs to build any shard."""

    out: Path
    cohort_folder: Path
    settings: FrameSettings
    wfdb_scale: str
    views: DatasetSpec  # what every study must hold; max_views is still 0
    sites: tuple[str, ...]
    devices: tuple[str, ...]
    columns: tuple[str, ...]  # of `CohortRow.columns`: confounders and labels that any row has


def record_of(out: Path, name: str) -> Path:
    """Where a finished shard is recorded until the index is there."""
    return out / UNFINISHED / f"{name}.json"


def describe_views(study: ImageStudy) -> DatasetSpec:
    """What the first view of a study looks like; max_views is left 0."""
    shape = study.views[0].frames.shape
    if study.kind == "pixels":
        return DatasetSpec("pixels", shape[0], shape[1], 0, 0, study.dtype, 0)
    return DatasetSpec("tokens", shape[0], 0, shape[1], shape[2], study.dtype, 0)


# Bytes. Linux keeps what is written at once in large pages of its cache: a random read of it takes half the time.
_WRITTEN_AT_ONCE = 2**22


def _read_row(plan: BuildPlan, row: CohortRow) -> tuple[EcgRecord, ImageStudy | None]:
    record = read_ecg(plan.cohort_folder / row.ecg_path, wfdb_scale=plan.wfdb_scale)
    if not row.study_path:
        return record, None
    study = read_study(plan.cohort_folder / row.study_path, plan.settings)
    if study.kind != plan.views.kind:
        raise ReaderError(
            f"the study holds {study.kind}, the set's first one {plan.views.kind}; they do not mix in one set, "
            "because every batch goes through one image tower. Build two sets.",
            "study_path",
        )
    shapes = {view.frames.shape for view in study.views}
    expected = describe_views(dataclasses.replace(study, views=[study.views[0]]))
    if len(shapes) > 1 or expected != plan.views:
        found = " and ".join(sorted(map(str, shapes)))
        raise ReaderError(
            f"views of shape {found} ({study.dtype}); every view of the set has the shape of the first one: "
            f"{plan.views.frames} frames, {plan.views.tokens} tokens of width {plan.views.width} ({plan.views.dtype}).",
            "study_path",
        )
    return record, study


def _meta(row: CohortRow) -> dict[str, Any]:
    return {
        "split": row.split,
        "patient_key": row.patient_key,
        "sample": row.row,
        "segments": list(row.segments),
        "columns": row.columns,
    }


def _entry(row: CohortRow, study: ImageStudy | None, plan: BuildPlan) -> NDArray[np.void]:
    """The sidecar entry (1,) of a row, its members' places still to be filled in."""

    def number(value: float | None) -> float:
        return float("nan") if value is None else value

    entry = np.zeros(1, dtype=sidecar_type(len(plan.columns)))
    entry["sample"] = row.row
    entry["patient_key"] = row.patient_key.encode()
    entry["view_count"] = len(study.views) if study else 0
    entry["segments"] = [number(percent) for percent in row.segments]
    entry["age"] = number(row.columns["age"])
    entry["sex"] = (row.columns["sex"] or "").encode()
    entry["site"] = plan.sites.index(row.columns["site"]) if row.columns["site"] else -1
    entry["days_between"] = number(row.columns["days_between"])
    if plan.columns:
        device = row.columns["device"]
        values = {**row.columns, "device": plan.devices.index(device) if device else None}
        entry["columns"] = [number(values[name]) for name in plan.columns]
    return entry


def build_shard(plan: BuildPlan, shard: ShardPlan) -> None:
    """Write one shard's tar and sidecar, then the record that says so."""
    from webdataset.writer import TarWriter  # imports torch: seconds, in each worker once

    rejects: list[Reject] = []
    entries: list[NDArray[np.void]] = []
    saturated, doubtful = 0, 0
    path = plan.out / shard.name
    with replacing(path) as temporary, open(temporary, "wb", buffering=_WRITTEN_AT_ONCE) as file:
        writer = TarWriter(file, encoder=False, mtime=0)
        for row in shard.rows:
            try:
                record, study = _read_row(plan, row)
            except ReaderError as error:
                place = row.study_path if error.field == "study_path" else row.ecg_path
                rejects.append(Reject(row.row, row.patient_key, error.field, str(error), place))
                continue
            # One call per member: within a call the writer would sort them by name.
            for name, content in encode(record, study, _meta(row)).items():
                writer.write({"__key__": sample_key(shard.split, row.row), name: content})
            entries.append(_entry(row, study, plan))
            doubtful += any(map(record.flags.get, DOUBTFUL_FLAGS))
            saturated += sum("saturated" in view.meta for view in study.views) if study else 0
        writer.close()
    table = np.concatenate([np.zeros(0, dtype=sidecar_type(len(plan.columns))), *entries])
    _fill_places(table, path, shard.split)
    sidecar = plan.out / sidecar_name(shard.name)
    save_array(sidecar, table)
    made = {
        "name": shard.name,
        "split": shard.split,
        "samples": len(table),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "sidecar_bytes": sidecar.stat().st_size,
        "sidecar_sha256": sha256_file(sidecar),
        "sidecar_crc32": zlib.crc32(sidecar.read_bytes()),
        "pairs": int((table["view_count"] > 0).sum()),
        "max_views": int(table["view_count"].max(initial=0)),
    }
    listed = [dataclasses.asdict(reject) for reject in rejects]
    finished = {"shard": made, "rejects": listed, "saturated": saturated, "doubtful": doubtful}
    write_json(record_of(plan.out, shard.name), finished, mode=0o600)


def _fill_places(table: NDArray[np.void], path: Path, split: str) -> None:
    """Offsets, lengths and CRC-32s of a written tar, as a reader of the tar finds them."""
    rows = {sample_key(split, int(sample)): number for number, sample in enumerate(table["sample"])}
    for member in scan(path):
        place = rows[member.key], MEMBERS.index(member.name)
        table["offset"][place], table["length"][place], table["crc"][place] = member.offset, member.length, member.crc
