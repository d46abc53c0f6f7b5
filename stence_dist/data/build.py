"""From a cohort table to a shard set: rows are assigned to shards, shards are built in parallel, an index seals them.

Until the index is there, `OUT/.build/` holds the plan and a record per finished shard, so that a build that was killed
goes on with the shards that are missing. Files are renamed into place whole, and neither the number of workers nor a
restart changes a byte.
"""

import contextlib
import csv
import dataclasses
import io
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from tqdm import tqdm

from stence_dist.config.build import BuildConfig
from stence_dist.data.cohort import (
    PUBLIC_COLUMNS,
    Cohort,
    CohortRow,
    Reject,
    by_field,
    check_splits_filled,
    limit_rows,
    public_names,
    read_cohort,
    read_key,
)
from stence_dist.data.cohort_table import LABEL_COLUMN
from stence_dist.data.frames import FrameSettings
from stence_dist.data.index import FORMAT, INDEX, SPLITS, DatasetSpec, fingerprint_of, read_index
from stence_dist.data.readers import ReaderError, read_study
from stence_dist.data.shard_writer import UNFINISHED, BuildPlan, ShardPlan, build_shard, describe_views, record_of
from stence_dist.data.sidecar import CONFOUNDERS, sidecar_name
from stence_dist.errors import DataError
from stence_dist.files import (
    TEMPORARY_PREFIX,
    FolderLock,
    read_json,
    refuse_pipe,
    remove_tree,
    sha256_json,
    write_json,
    write_text,
)
from stence_dist.seeds import generator

log = logging.getLogger("stence_dist")

_PLAN = "plan.json"


def build(config: BuildConfig) -> Path:
    """Build the shard set that `config` describes, or go on with it; the path of its index.json.

    Raises DataError for a cohort that cannot be used and for a folder that holds another set.
    """
    assert config.cohort is not None
    assert config.out is not None
    out = refuse_pipe(config.out, "out").absolute()
    table = refuse_pipe(config.cohort, "cohort").absolute()
    if not table.is_file():
        raise DataError(f"cohort={table} is not a file. Expected a CSV or Parquet table.")
    cohort = read_cohort(table, config.columns, read_key(table, config.key_file), config.split_seed)
    rows = limit_rows(cohort.rows, config.limit, config.split_seed)
    identity = _identity(config, rows, cohort.rejects)
    check_splits_filled(Counter(row.split for row in rows), by_field(cohort.rejects))
    lock = FolderLock(out, "build of a shard set").acquire()
    try:
        if _is_built(out, identity):
            log.info("%s is built already from this cohort and configuration; remove it to build again", out)
            return out / INDEX
        log.info("%d rows, %d rejected in the table; splits %s", len(rows), len(cohort.rejects), cohort.split_source)
        return _build_locked(config, cohort, rows, identity, out)
    finally:
        if not (out / UNFINISHED).exists():
            lock.path.unlink(missing_ok=True)  # what is finished or refused is not written to again
        lock.release()


def _build_locked(
    config: BuildConfig, cohort: Cohort, rows: list[CohortRow], identity: dict[str, Any], out: Path
) -> Path:
    settings = FrameSettings(
        config.image_size, config.frames_per_view, config.frame_spacing, config.mask_top, config.mask_bottom
    )
    sites, devices = (public_names(rows, name) for name in PUBLIC_COLUMNS)
    views = _expected_views(cohort.folder, rows, settings)
    plan = BuildPlan(out, cohort.folder, settings, config.wfdb_scale, views, sites, devices, _kept_columns(rows))
    shards = _assign(rows, config.shard_size, config.split_seed)
    _start_or_resume(out, identity)
    missing = [shard for shard in shards if not _is_done(out, shard.name)]
    if len(missing) < len(shards):
        log.info("going on: %d of %d shards are there", len(shards) - len(missing), len(shards))
    parallel = Parallel(n_jobs=min(config.workers, len(missing)) or 1, return_as="generator_unordered")
    with tqdm(total=len(shards), initial=len(shards) - len(missing), unit="shard", disable=None) as bar:
        for _ in parallel(delayed(build_shard)(plan, shard) for shard in missing):
            bar.update()
    return _seal(config, cohort.rejects, plan, shards, identity)


def _kept_columns(rows: list[CohortRow]) -> tuple[str, ...]:
    """The confounders and labels that any row has, in a fixed order."""
    labels = sorted(name for name in (rows[0].columns if rows else ()) if LABEL_COLUMN.fullmatch(name))
    return tuple(name for name in (*CONFOUNDERS, *labels) if any(row.columns[name] is not None for row in rows))


def _identity(config: BuildConfig, rows: list[CohortRow], rejects: list[Reject]) -> dict[str, Any]:
    """What a set is made of: its settings, and a hash over the rows that go in."""
    settings = (
        "image_size",
        "frames_per_view",
        "frame_spacing",
        "mask_top",
        "mask_bottom",
        "limit",
        "split_seed",
        "shard_size",
        "wfdb_scale",
    )
    named = [dataclasses.asdict(row) for row in rows] + [dataclasses.asdict(reject) for reject in rejects]
    return {**{name: getattr(config, name) for name in settings}, "format": FORMAT, "cohort_sha256": sha256_json(named)}


def _is_built(out: Path, identity: dict[str, Any]) -> bool:
    """Whether `out` holds this very set. Raises DataError where it holds another one, or foreign files."""
    if (out / INDEX).exists():
        there = read_index(out)["build"]
        if there != identity:
            raise _other_set(out, there, identity)
        if (out / UNFINISHED).exists():  # killed between the index and the last clean-up
            _clean(out)
        return True
    plan = out / UNFINISHED / _PLAN
    if plan.exists():
        there = read_json(plan)
        if there != identity:
            raise _other_set(out, there, identity)
        return False
    foreign = [entry.name for entry in out.iterdir() if entry.name not in (".lock", UNFINISHED)]
    if foreign:
        raise DataError(f"out={out} holds {len(foreign)} other files. Choose an empty folder.")
    return False


def _other_set(out: Path, there: dict[str, Any], identity: dict[str, Any]) -> DataError:
    names = [name for name in identity if there.get(name) != identity[name]]
    differing = ", ".join(
        "the cohort's rows or key file"
        if name == "cohort_sha256"
        else f"{name} ({there.get(name)}, now {identity[name]})"
        for name in names
    )
    return DataError(
        f"out={out} holds another shard set: {differing} differ. Choose another folder, or remove that one first."
    )


def _start_or_resume(out: Path, identity: dict[str, Any]) -> None:
    folder = out / UNFINISHED
    folder.mkdir(mode=0o700, exist_ok=True)  # its records hold the paths of rejected files
    for place in (out, folder):
        for torn in place.glob(f"{TEMPORARY_PREFIX}*"):
            torn.unlink()
    write_json(folder / _PLAN, identity)


def _clean(out: Path) -> None:
    remove_tree(out / UNFINISHED)
    for torn in out.glob(".trash-*"):
        with contextlib.suppress(OSError):
            torn.rmdir()


def _expected_views(folder: Path, rows: list[CohortRow], settings: FrameSettings) -> DatasetSpec:
    """What the set's studies hold, taken from the first readable one in table order; every other must agree."""
    for row in rows:
        if row.study_path:
            try:
                return describe_views(read_study(folder / row.study_path, settings))
            except ReaderError:
                continue
    return DatasetSpec("none", 0, 0, 0, 0, "", 0)


def _assign(rows: list[CohortRow], shard_size: int, seed: int) -> list[ShardPlan]:
    """Rows to shards: shuffled once within each split, then cut every `shard_size` rows."""
    shards = []
    for split in SPLITS:
        members = [row for row in rows if row.split == split]
        order = generator(seed, "shards", split).permutation(len(members)).tolist()
        for number, start in enumerate(range(0, len(members), shard_size)):
            chosen = [members[place] for place in order[start : start + shard_size]]
            shards.append(ShardPlan(f"{split}-{number:06d}.tar", split, chosen))
    return shards


def _is_done(out: Path, name: str) -> bool:
    """Whether a shard was finished by an earlier call: its record is written last."""
    record = record_of(out, name)
    if not record.exists():
        return False
    made = read_json(record)["shard"]
    sizes = ((name, made["bytes"]), (sidecar_name(name), made["sidecar_bytes"]))
    return all((out / file).is_file() and (out / file).stat().st_size == size for file, size in sizes)


def _seal(
    config: BuildConfig, rejects: list[Reject], plan: BuildPlan, shards: list[ShardPlan], identity: dict[str, Any]
) -> Path:
    """Write rejects.csv, then index.json: the moment at which the set exists."""
    records = [read_json(record_of(plan.out, shard.name)) for shard in shards]
    made = [record["shard"] for record in records]
    every = rejects + [Reject(**reject) for record in records for reject in record["rejects"]]
    every.sort(key=lambda reject: reject.row)
    destination = Path(config.rejects).absolute() if config.rejects else plan.out / "rejects.csv"
    _write_rejects(destination, every)
    counts = {split: sum(shard["samples"] for shard in made if shard["split"] == split) for split in SPLITS}
    pairs = {split: sum(shard.pop("pairs") for shard in made if shard["split"] == split) for split in SPLITS}
    _report(every, counts, pairs, destination)
    _report_doubtful(plan.out, *(sum(record.get(name, 0) for record in records) for name in ("saturated", "doubtful")))
    try:
        check_splits_filled(counts, by_field(every))
    except DataError:
        for shard, record in zip(shards, records, strict=True):
            if record["rejects"]:  # read again by the next call, which may find the files mended
                record_of(plan.out, shard.name).unlink()
        raise
    most = max(shard.pop("max_views") for shard in made)
    index: dict[str, Any] = {
        "format": FORMAT,
        "build": identity,
        "dataset": dataclasses.replace(plan.views, max_views=most).to_dict(),
        "sites": list(plan.sites),
        "devices": list(plan.devices),
        "columns": list(plan.columns),
        "shards": made,
        "samples": counts,
        "pairs": pairs,
        "rejected": len(every),
    }
    write_json(plan.out / INDEX, {**index, "fingerprint": fingerprint_of(index)})
    _clean(plan.out)
    return plan.out / INDEX


def _write_rejects(path: Path, rejects: list[Reject]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["row", "patient_key", "field", "reason", "path"])
    writer.writerows([reject.row, reject.patient_key, reject.field, reject.reason, reject.path] for reject in rejects)
    write_text(path, buffer.getvalue(), mode=0o600)


def _report(rejects: list[Reject], counts: dict[str, int], pairs: dict[str, int], destination: Path) -> None:
    for split in SPLITS:
        log.info("%s: %d samples, %d of them pairs", split, counts[split], pairs[split])
    if not rejects:
        log.info("no row was rejected")
        return
    fields = ", ".join(f"{field} {count}" for field, count in Counter(r.field for r in rejects).most_common())
    log.warning("%d rows rejected (%s); reasons in %s", len(rejects), fields, destination)
    for reject in rejects[:5]:
        log.warning("  %s", reject.message())


def _report_doubtful(out: Path, views: int, ecgs: int) -> None:
    if ecgs:
        text = (
            "%d ECGs are kept with leads that lack samples, stand still for half of it, or contradict each other; "
            "launch/check.py path=%s names them"
        )
        log.warning(text, ecgs, out)
    if views:
        text = (
            "%d views are almost all black, white or of one gray; does their window fit? "
            "launch/check.py path=%s names them"
        )
        log.warning(text, views, out)
