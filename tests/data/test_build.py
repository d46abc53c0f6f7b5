"""Building a shard set: bytes, restarts, rejects, and what never gets in."""

import csv
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from recordings import write_cohort

from stence_dist.check.examine import examine
from stence_dist.check.findings import PROBLEM
from stence_dist.config.build import BuildConfig
from stence_dist.config.check import CheckConfig
from stence_dist.data.build import build
from stence_dist.data.index import SPLITS
from stence_dist.data.readers import read_ecg
from stence_dist.data.shards import ShardSet
from stence_dist.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]


def config(cohort: Path, out: Path, **changes: Any) -> BuildConfig:
    return BuildConfig(
        **{"cohort": str(cohort), "out": str(out), "image_size": 32, "workers": 1, "shard_size": 10} | changes
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(cohort: Path, change: Callable[[list[dict[str, str]]], None]) -> None:
    """Rewrite a cohort table."""
    with open(cohort, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with open(cohort, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rejected(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("column", ["site", "device"])
def test_names_that_may_be_patients_are_not_written(tmp_path: Path, column: str) -> None:
    """A column of identifiers as the one of sites or devices: refused before anything is written, and by a check."""
    cohort = write_cohort(tmp_path, pairs=0, ecg_only=24)
    edit(cohort, lambda rows: [row.update({column: row["patient_id"]}) for row in rows] and None)
    with pytest.raises(DataError, match=f"the column {column} has 24 different values in 24 rows"):
        build(config(cohort, tmp_path / "set"))
    assert not list((tmp_path / "set").glob("*.tar"))
    result = examine(cohort, CheckConfig(path=str(cohort)))
    assert [finding for finding in result.of_level(PROBLEM) if "may identify patients" in finding.text]


def test_any_number_of_workers_writes_the_same_bytes(small_cohort: Path, small_shards: Path, tmp_path: Path) -> None:
    """Two processes against one, file by file; nothing temporary stays behind."""
    build(config(small_cohort, tmp_path / "set", workers=2))
    assert contents(tmp_path / "set") == contents(small_shards)
    assert not [name for name in contents(small_shards) if not name.endswith((".tar", ".npy", ".json", ".csv"))]


def test_a_killed_build_goes_on(small_cohort: Path, tmp_path: Path) -> None:
    """kill -9 after three shards of many; the same call keeps those (same inode) and ends with the same bytes."""
    whole = tmp_path / "whole"
    build(config(small_cohort, whole, shard_size=1))
    out = tmp_path / "set"
    script = (
        "from stence_dist.config.build import BuildConfig\nfrom stence_dist.data.build import build\n"
        f"build(BuildConfig({str(small_cohort)!r}, {str(out)!r}, image_size=32, workers=1, shard_size=1))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(list(out.glob(".build/*.tar.json"))) < 3 and time.monotonic() < deadline:
            assert process.poll() is None, "the build ended before it was killed"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "index.json").exists()
    (out / ".tmp-train-000000.tar-torn").write_bytes(b"half")
    done = {path.name.removesuffix(".json") for path in out.glob(".build/*.tar.json")}
    assert len(done) >= 3
    inodes = {name: (out / name).stat().st_ino for name in done}
    with pytest.raises(DataError, match="holds no index"):
        ShardSet.open(out)
    build(config(small_cohort, out, shard_size=1))
    assert {name: (out / name).stat().st_ino for name in done} == inodes
    assert contents(out) == contents(whole)


def test_a_second_call_changes_nothing(small_cohort: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The identical call says so; another setting, another cohort and a foreign folder are refused, by name."""
    out = tmp_path / "set"
    build(config(small_cohort, out))
    before = contents(out)
    with caplog.at_level("INFO", logger="stence_dist"):
        build(config(small_cohort, out, workers=2))
    assert "is built already" in caplog.text
    with pytest.raises(DataError, match=r"another shard set: image_size \(32, now 16\) differ"):
        build(config(small_cohort, out, image_size=16))
    other_key = tmp_path / "other_key.txt"
    other_key.write_text("another key of sufficient length")
    with pytest.raises(DataError, match="rows or key file differ"):
        build(config(small_cohort, out, key_file=str(other_key)))
    assert contents(out) == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="holds 1 other files"):
        build(config(small_cohort, tmp_path / "foreign"))
    assert list(contents(tmp_path / "foreign")) == ["thesis.txt"]


def test_webdataset_reads_the_shards(small_shards: Path) -> None:
    """The library's own pipeline finds every sample with the members that the index describes, in the same order."""
    shards = ShardSet.open(small_shards)
    for split in SPLITS:
        urls = sorted(map(str, small_shards.glob(f"{split}-*.tar")))
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
        table = shards.table(split)
        assert len(samples) == len(table)
        for row, sample in enumerate(samples):
            names = [name for name in sample if not name.startswith("__")]
            expected = (
                ["ecg.npy", "views.safetensors", "meta.json"] if table.has_study[row] else ["ecg.npy", "meta.json"]
            )
            assert names == expected
            assert json.loads(sample["meta.json"])["sample"] == table.sample[row]
            assert sample["__key__"].isascii()
            assert "." not in sample["__key__"]


def test_stored_signals_are_those_of_the_files(small_cohort: Path, small_shards: Path) -> None:
    """Bit for bit, NaN included: what a shard gives and what the reader gives for the raw file."""
    shards = ShardSet.open(small_shards)
    with open(small_cohort, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, sample in enumerate(shards.table("train").sample.tolist()):
        record = read_ecg(small_cohort.parent / rows[sample - 1]["ecg_path"])
        stored = shards.read("train", row)
        np.testing.assert_array_equal(stored.signal().view(np.uint32), record.signal().view(np.uint32))
        assert stored.sampling_rate == record.sampling_rate


def test_no_identifier_gets_in(small_cohort: Path, small_shards: Path) -> None:
    """Neither patient ids nor file names stand in any file of the set; the cohort holds them."""
    assert b"patient-7," in small_cohort.read_bytes()
    for name, content in contents(small_shards).items():
        for secret in (b"patient-7", b"patient-12", b"s007", b"run0.dcm", b"ecg/r0"):
            assert secret not in content, name


def test_rejects_leave_gaps(
    cohort_writer: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bad rows among twenty-four: listed 0600 with reasons and paths, counted in the log without them.

    The other rows keep the shards and the order that they have without the damage.
    """
    cohort = cohort_writer(tmp_path / "cohort", pairs=18, ecg_only=6)
    build(config(cohort, tmp_path / "whole", shard_size=4))
    folder = cohort.parent
    (folder / "ecg" / "r001.dat").write_bytes(b"short")
    (folder / "ecg" / "r020.hea").unlink()
    (folder / "study" / "s002" / "run0.dcm").write_bytes(b"\0" * 128 + b"DICM")
    for run in (folder / "study" / "s003").iterdir():
        run.unlink()

    def add_stenosis(rows: list[dict[str, str]]) -> None:
        rows[4]["seg_6"] = "140"

    with caplog.at_level("INFO", logger="stence_dist"):
        build(config(cohort, tmp_path / "set", shard_size=4, rejects=str(tmp_path / "r.csv")))
    rows = rejected(tmp_path / "r.csv")
    assert [(int(row["row"]), row["field"]) for row in rows] == [
        (2, "ecg_path"),
        (3, "study_path"),
        (4, "study_path"),
        (21, "ecg_path"),
    ]
    assert [row["path"] for row in rows] == ["ecg/r001", "study/s002", "study/s003", "ecg/r020"]
    assert "truncated" in rows[0]["reason"]
    assert "zero views" in rows[2]["reason"]
    assert stat.S_IMODE((tmp_path / "r.csv").stat().st_mode) == 0o600
    assert "4 rows rejected (ecg_path 2, study_path 2)" in caplog.text
    assert "r001" not in caplog.text
    assert "s002" not in caplog.text

    whole, damaged = ShardSet.open(tmp_path / "whole"), ShardSet.open(tmp_path / "set")
    for split in SPLITS:
        kept = [sample for sample in whole.table(split).sample.tolist() if sample not in (2, 3, 4, 21)]
        assert damaged.table(split).sample.tolist() == kept

    edit(cohort, add_stenosis)
    build(config(cohort, tmp_path / "third", shard_size=4))
    assert [row["row"] for row in rejected(tmp_path / "third" / "rejects.csv")] == ["2", "3", "4", "5", "21"]


def test_doubtful_ecgs_are_counted(
    cohort_writer: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One record of six lacks samples of a lead: kept, and counted with where to look."""
    cohort = cohort_writer(tmp_path / "cohort", pairs=6, ecg_only=0)
    path = cohort.parent / "ecg" / "r001.dat"
    values = np.fromfile(path, dtype="<i2")
    values[: 12 * 100 : 12] = -32768  # WFDB's mark of a sample that is missing
    values.tofile(path)
    build(config(cohort, tmp_path / "set"))
    assert "1 ECGs are kept with leads that lack samples" in caplog.text


def test_when_every_row_of_a_split_is_rejected(cohort_writer: Callable[..., Path], tmp_path: Path) -> None:
    """Three patients, one of them without a file: no set, an error that names the split, and the reasons on disk."""
    cohort = cohort_writer(tmp_path / "cohort", pairs=0, ecg_only=3)
    mended = (cohort.parent / "ecg" / "r001.dat").read_bytes()
    (cohort.parent / "ecg" / "r001.dat").unlink()
    with pytest.raises(DataError, match=r"the split \w+ has no row .*rows rejected: 1 for ecg_path"):
        build(config(cohort, tmp_path / "set"))
    assert not (tmp_path / "set" / "index.json").exists()
    assert len(rejected(tmp_path / "set" / "rejects.csv")) == 1
    (cohort.parent / "ecg" / "r001.dat").write_bytes(mended)
    build(config(cohort, tmp_path / "set"))  # the same call, once the file is there
    assert not rejected(tmp_path / "set" / "rejects.csv")


def test_an_ecg_only_cohort(cohort_writer: Callable[..., Path], tmp_path: Path) -> None:
    """No study anywhere: a set without views."""
    build(config(cohort_writer(tmp_path / "cohort", pairs=0, ecg_only=6), tmp_path / "set"))
    shards = ShardSet.open(tmp_path / "set")
    assert shards.dataset.kind == "none"
    assert shards.read("train", 0).views is None
    assert not shards.table("train").has_study.any()


def test_stored_features_and_pixels_do_not_mix(cohort_writer: Callable[..., Path], tmp_path: Path) -> None:
    """Tokens come back as stored; a study of pixels among them, and one of another width, are rejected with reasons."""
    cohort = cohort_writer(tmp_path / "cohort", pairs=8, ecg_only=0)
    tokens = {}
    for number in range(6):
        folder = cohort.parent / "study" / f"s{number:03d}"
        for run in folder.iterdir():
            run.unlink()
        width = 16 if number == 5 else 8
        tokens[number] = np.random.default_rng(number).normal(size=(1, 4, width)).astype(np.float16)
        np.save(folder / "view.npy", tokens[number])
    build(config(cohort, tmp_path / "set"))
    shards = ShardSet.open(tmp_path / "set")
    assert (shards.dataset.kind, shards.dataset.tokens, shards.dataset.width) == ("tokens", 4, 8)
    reasons = {int(row["row"]): row["reason"] for row in rejected(tmp_path / "set" / "rejects.csv")}
    assert sorted(reasons) == [6, 7, 8]
    assert "views of shape (1, 4, 16)" in reasons[6]
    assert "do not mix in one set" in reasons[7]
    for row, sample in enumerate(shards.table("train").sample.tolist()):
        views = shards.read("train", row).views
        assert views is not None
        np.testing.assert_array_equal(views[0], tokens[sample - 1])


def test_limit(small_cohort: Path, tmp_path: Path) -> None:
    """10 of 32 rows, every split among them."""
    build(config(small_cohort, tmp_path / "set", limit=10))
    counts = [len(ShardSet.open(tmp_path / "set").table(split)) for split in SPLITS]
    assert sum(counts) == 10
    assert min(counts) >= 1


def test_calls_that_are_refused(small_cohort: Path, tmp_path: Path) -> None:
    """A missing table, a pipe, and configurations that make no sense; nothing is left in the output folder."""
    with pytest.raises(DataError, match="is not a file"):
        build(config(tmp_path / "absent.csv", tmp_path / "set"))
    with pytest.raises(DataError, match="'pipe:'"):
        build(config(small_cohort, Path("pipe:touch evil")))
    with pytest.raises(ConfigError, match="verify=FOLDER"):
        BuildConfig(cohort="cohort.csv")
    with pytest.raises(ConfigError, match="leave out cohort"):
        BuildConfig(cohort="cohort.csv", out="x", verify="y")
    with pytest.raises(ConfigError, match="auto, header or raw"):
        config(small_cohort, tmp_path / "set", wfdb_scale="einthoven")
    assert not (tmp_path / "set").exists()
