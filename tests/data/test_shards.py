"""A shard set as other code reads it, and every way to damage one."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stence_dist.config.build import BuildConfig, ColumnsConfig
from stence_dist.data.build import build
from stence_dist.data.cohort import read_cohort
from stence_dist.data.index import SPLITS, fingerprint_of
from stence_dist.data.shards import ShardSet
from stence_dist.data.sidecar import SIDECAR, SampleTable
from stence_dist.data.verify import verify
from stence_dist.errors import CheckFailedError, DataError
from stence_dist.files import sha256_file

SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def tampered(small_shards: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(small_shards, tmp_path / "set"))


def refused(folder: Path) -> str:
    """The message that opening `folder` is refused with; verify must refuse it, too."""
    with pytest.raises(CheckFailedError):
        verify(folder)
    with pytest.raises(DataError) as caught:
        ShardSet.open(folder)
    return str(caught.value)


def found(folder: Path) -> str:
    """What verify finds in `folder`."""
    with pytest.raises(CheckFailedError) as caught:
        verify(folder)
    return str(caught.value)


def edit_index(folder: Path, seal: bool = True, **changes: Any) -> None:
    """Write other values into index.json, with a fingerprint that fits unless `seal` is off."""
    index = json.loads((folder / "index.json").read_text()) | changes
    if seal:
        index["fingerprint"] = fingerprint_of(index)
    (folder / "index.json").write_text(json.dumps(index))


def test_tables_equal_the_cohort(small_cohort: Path, small_shards: Path) -> None:
    """Every column of every row against the cohort table, read on its own."""
    shards = ShardSet.open(small_shards)
    cohort = {row.row: row for row in read_cohort(small_cohort, ColumnsConfig(), SECRET, 0).rows}
    seen = []
    for split in SPLITS:
        table = shards.table(split)
        for place in range(len(table)):
            row = cohort[int(table.sample[place])]
            seen.append(row.row)
            assert row.split == split
            assert table.patient_key[place] == row.patient_key
            assert table.patient[place] == int(row.patient_key[:16], 16) >> 1
            expected = [np.nan if percent is None else percent for percent in row.segments]
            np.testing.assert_array_equal(table.segments[place], np.array(expected, dtype=np.float32))
            assert table.has_study[place] == bool(row.study_path)
            assert table.view_count[place] == (1 + (row.row - 1) % 3 if row.study_path else 0)
            assert (table.age[place], table.sex[place], table.site[place]) == (
                row.columns["age"],
                row.columns["sex"],
                row.columns["site"],
            )
            days = row.columns["days_between"]
            assert np.isnan(table.days_between[place]) if days is None else table.days_between[place] == days
    assert sorted(seen) == sorted(cohort)


def test_read_by_row(small_shards: Path) -> None:
    """Every row's members belong to it; views are left out on request; a pickled reader reads on."""
    shards = ShardSet.open(small_shards)
    assert (shards.dataset.kind, shards.dataset.image_size, shards.dataset.max_views) == ("pixels", 32, 3)
    shards.read("train", 0)
    again = pickle.loads(pickle.dumps(shards))
    for split in SPLITS:
        table = shards.table(split)
        for row in range(len(table)):
            sample = again.read(split, row, verify=True)
            assert sample.meta["sample"] == table.sample[row]
            assert sample.meta["patient_key"] == table.patient_key[row]
            assert sample.meta["split"] == split
            assert sample.values.shape == (12, 2000)
            views = sample.views if sample.views is not None else ()
            assert len(views) == len(sample.angulation) == table.view_count[row]
            assert all(view.shape == (1, 32, 32) and view.dtype == np.uint8 for view in views)
            assert again.read(split, row, views=False).views is None
    with pytest.raises(IndexError):
        shards.read("train", len(shards.table("train")))


def test_a_whole_set_passes(small_shards: Path) -> None:
    """verify returns; so the failures below come from the damage."""
    verify(small_shards)


def test_files_that_are_not_there(tampered: Path, tmp_path: Path) -> None:
    """No folder, no index, a missing shard, a missing sidecar, an extra shard."""
    with pytest.raises(DataError, match="is not a folder"):
        ShardSet.open(tmp_path / "absent")
    with pytest.raises(DataError, match="is not a folder"):
        verify(tmp_path / "absent")
    shutil.copy(tampered / "val-000000.tar", tampered / "train-000009.tar")
    assert "train-000009.tar is not in the index" in refused(tampered)
    (tampered / "train-000009.tar").unlink()
    (tampered / "train-000001.tar").unlink()
    (tampered / "val-000000.npy").unlink()
    message = refused(tampered)
    assert "train-000001.tar is missing" in message
    assert "val-000000.npy is missing" in message
    (tampered / "index.json").unlink()
    assert "holds no index.json" in refused(tampered)


def test_a_truncated_shard(tampered: Path) -> None:
    """Cut at a member's header, where tar readers see nothing wrong: the index knows better."""
    path = tampered / "train-000000.tar"
    with tarfile.open(path) as archive:
        cut = archive.getmembers()[6].offset
    path.write_bytes(path.read_bytes()[:cut])
    assert "truncated" in refused(tampered)
    assert "is missing" in found(tampered)


def test_a_flipped_byte(tampered: Path) -> None:
    """Reading with verify=True names shard and sample; verify names the member; other samples stay readable."""
    shards = ShardSet.open(tampered)
    path = tampered / "val-000000.tar"
    content = bytearray(path.read_bytes())
    content[512 + 5000] ^= 1  # within the first member, ecg.npy
    path.write_bytes(content)
    sample = int(shards.table("val").sample[0])
    with pytest.raises(DataError, match=rf"val-000000\.tar, sample {sample}: the CRC-32 of ecg\.npy differs"):
        ShardSet.open(tampered).read("val", 0, verify=True)
    shards.read("val", 1, verify=True)
    message = found(tampered)
    assert "its sha256 differs" in message
    assert f"member val-{sample:09d}.ecg.npy differs" in message


def test_a_shard_that_shrinks_while_it_is_open(tampered: Path) -> None:
    """The reader meets the end of the file: an error that names it, not a short array."""
    shards = ShardSet.open(tampered)
    path = tampered / "val-000000.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"val-000000\.tar, sample \d+: ecg\.npy ends after"):
        shards.read("val", 0)


def test_a_damaged_sidecar(tampered: Path) -> None:
    """A changed percent of stenosis in a sidecar is found at opening."""
    path = tampered / "val-000000.npy"
    content = bytearray(path.read_bytes())
    content[-60] ^= 1
    path.write_bytes(content)
    assert "val-000000.npy is damaged or of another set" in refused(tampered)


def test_the_index_of_another_set(tampered: Path, small_cohort: Path, tmp_path: Path) -> None:
    """Equal cohort and shape, another split seed: names and counts agree, the files do not."""
    other = tmp_path / "other"
    build(BuildConfig(str(small_cohort), str(other), image_size=32, workers=1, shard_size=10, split_seed=1))
    shutil.copy(other / "index.json", tampered / "index.json")
    assert "is not the set that its index describes" in refused(tampered)


def test_the_index_itself(tampered: Path) -> None:
    """A newer format, an older one, an edited index, a shard name that leaves the folder, no JSON."""
    edit_index(tampered, format=99)
    assert "has format 99; this version reads format 2. Update stence_dist" in refused(tampered)
    edit_index(tampered, format=0)
    assert "Build the set again" in refused(tampered)
    edit_index(tampered, format=2, seal=False, rejected=7)
    assert "its fingerprint differs" in refused(tampered)
    index = json.loads((tampered / "index.json").read_text())
    index["shards"][0]["name"] = "../train-000000.tar"
    edit_index(tampered, shards=index["shards"])
    assert "names a shard '../train-000000.tar'" in refused(tampered)
    (tampered / "index.json").write_text("{")
    assert "not valid JSON" in refused(tampered)


@pytest.mark.parametrize("kind", ["pickle", "parent", "symlink"])
def test_foreign_members(tampered: Path, kind: str) -> None:
    """A tar with one more member, which fits into its padding, is not opened; verify refuses the member itself.

    It does so where the index agrees with the new bytes, too.
    Nothing is unpickled, extracted or followed: the folder holds the same files afterwards.
    """
    path = tampered / "val-000000.tar"
    name = {"pickle": "val-000000001.views.pkl", "parent": "../evil.ecg.npy", "symlink": "val-000000001.ecg.npy"}[kind]
    info = tarfile.TarInfo(name)
    if kind == "symlink":
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    content = b"cos\nsystem\n(S'touch evil'\ntR."
    with tarfile.open(path, "a") as archive:
        info.size = 0 if kind == "symlink" else len(content)
        archive.addfile(info, io.BytesIO(content))
    assert "val-000000.tar holds more than its sidecar lists" in refused(tampered)
    index = json.loads((tampered / "index.json").read_text())
    for shard in index["shards"]:
        if shard["name"] == path.name:
            shard |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    edit_index(tampered, shards=index["shards"])
    before = sorted(tampered.parent.rglob("*"))
    expected = "is no regular file" if kind == "symlink" else "does not belong in a shard"
    assert f"member {name!r} {expected}" in found(tampered)
    assert sorted(tampered.parent.rglob("*")) == before


def test_a_shard_that_is_a_link(tampered: Path, small_shards: Path) -> None:
    """A link to a shard elsewhere is no shard, even one of equal bytes."""
    (tampered / "val-000000.tar").unlink()
    (tampered / "val-000000.tar").symlink_to(small_shards / "val-000000.tar")
    assert "val-000000.tar is not a regular file" in refused(tampered)


@pytest.mark.parametrize("call", [ShardSet.open, verify])
def test_pipe_in_a_path(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """webdataset runs such a path as a command; nothing runs here."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="'pipe:'"):
        call("pipe:touch evil")
    assert not any(tmp_path.iterdir())


def test_patient_numbers_of_known_keys() -> None:
    """Two keys by hand, one with letters and the top bit set."""
    entries = np.zeros(2, dtype=SIDECAR)
    keys = ["f" * 16 + "0" * 16, "0000000000000abc" + "9" * 16]
    entries["patient_key"] = [key.encode() for key in keys]
    table = SampleTable(entries, ())
    assert table.patient.tolist() == [0x7FFFFFFFFFFFFFFF, 0xABC >> 1]
    assert table.patient_key.tolist() == keys
