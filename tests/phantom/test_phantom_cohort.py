"""A cohort on disk: standard readers open it, workers and size do not matter, another config is refused."""

import csv
import stat
from pathlib import Path

import numpy as np
import pydicom
import pytest
import wfdb
from forks import run_script

from stence_dist import files
from stence_dist.config.phantom import PhantomConfig
from stence_dist.ecg import LEADS
from stence_dist.errors import DataError
from stence_dist.phantom.cohort import split_of, write_cohort
from stence_dist.phantom.ecg import SITE_STEP_MV
from stence_dist.phantom.patient import patient

# Of the cohort in test_version_is_told, written by commit 25ac13b.
FINGERPRINT_BEFORE_VERSIONS = "88b2a73f2f349164af497966d4c74a4788dcc6a4e36195b9c2624ae3a8b77fc2"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> PhantomConfig:
    """3 pairs and 2 patients with an ECG alone, written by two processes."""
    config = PhantomConfig(out=str(tmp_path_factory.mktemp("cohort")), patients=3, ecg_only=2, seed=8, workers=2)
    write_cohort(config)
    return config


def rows(config: PhantomConfig) -> list[dict[str, str]]:
    with open(Path(config.out) / "cohort.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.dist
def test_the_script_writes_the_same(cohort: PhantomConfig, tmp_path: Path) -> None:
    """As typed: the table and the fingerprint of the cohort of the same config; what it holds, its path last."""
    typed = [f"out={tmp_path}", "patients=3", "seed=8", "ecg_only=2", "workers=1"]
    printed = run_script("launch/phantom.py", typed).splitlines()
    assert (tmp_path / "cohort.csv").read_bytes() == (Path(cohort.out) / "cohort.csv").read_bytes()
    here, there = (files.read_json(Path(folder) / "phantom.json") for folder in (tmp_path, cohort.out))
    assert here["fingerprint"] == there["fingerprint"]
    assert printed[-1] == str(tmp_path / "cohort.csv")
    assert f"3 pairs with {here['summary']['views']} runs, 2 with an ECG alone" in printed


def test_table(cohort: PhantomConfig) -> None:
    """The columns of the cohort table, relative paths that exist, and the segments that `patient` draws."""
    table = rows(cohort)
    segments = [f"seg_{number}" for number in range(1, 17)]
    head = ["patient_id", "ecg_path", "study_path", "days_between", "age", "sex", "site"]
    assert list(table[0]) == [*head, *segments, "device"]
    assert [row["patient_id"] for row in table] == [f"P{index:06d}" for index in range(5)]
    assert [bool(row["study_path"]) for row in table] == [True] * 3 + [False] * 2
    for index, row in enumerate(table):
        drawn = patient(8, index, cohort, images=False)
        assert [float(row[name]) for name in segments] == drawn.segments.tolist()
        assert (int(row["age"]), row["sex"]) == (drawn.age, drawn.sex)
        assert (Path(cohort.out) / f"{row['ecg_path']}.hea").is_file()
        if row["study_path"]:
            assert len(list((Path(cohort.out) / row["study_path"]).iterdir())) == len(patient(8, index, cohort).views)


def test_records_read_by_wfdb(cohort: PhantomConfig) -> None:
    """wfdb returns the drawn signal to half a step of the recorder, with lead names and unit; checksums hold."""
    for index, row in enumerate(rows(cohort)):
        record = wfdb.rdrecord(str(Path(cohort.out) / row["ecg_path"]))
        drawn = patient(8, index, cohort, images=False)
        assert (record.fs, record.sig_name, set(record.units)) == (500, list(LEADS), {"mV"})
        assert np.abs(record.p_signal.T - drawn.ecg).max() <= 0.5 * SITE_STEP_MV[drawn.ecg_site] + 1e-9
        digital = wfdb.rdrecord(str(Path(cohort.out) / row["ecg_path"]), physical=False)
        assert digital.calc_checksum() == digital.checksum


def test_runs_read_by_pydicom(cohort: PhantomConfig) -> None:
    """pydicom returns the drawn frames, angles and key frame of every run, in the order of InstanceNumber."""
    for index in range(3):
        folder = Path(cohort.out) / rows(cohort)[index]["study_path"]
        datasets = sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=lambda one: int(one.InstanceNumber))
        for dataset, run in zip(datasets, patient(8, index, cohort).views, strict=True):
            assert dataset.SOPClassUID.name == "X-Ray Angiographic Image Storage"
            np.testing.assert_array_equal(dataset.pixel_array, run.frames)
            assert float(dataset.PositionerPrimaryAngle) == run.primary
            assert float(dataset.PositionerSecondaryAngle) == run.secondary
            assert dataset.RepresentativeFrameNumber == run.key_frame + 1
            assert float(dataset.FrameTime) > 0


def test_size_and_workers_do_not_matter(cohort: PhantomConfig, tmp_path: Path) -> None:
    """Patients 0 to 2 of a cohort of 4 pairs by one process: byte-identical files."""
    write_cohort(PhantomConfig(out=str(tmp_path / "b"), patients=4, seed=8, workers=1))
    names = [path.relative_to(cohort.out) for path in Path(cohort.out).rglob("P00000[012]*") if path.is_file()]
    names += [path.relative_to(cohort.out) for path in Path(cohort.out).glob("study/*/*")]
    assert len(names) >= 3 * 2 + 3 * 2
    for name in names:
        assert (Path(cohort.out) / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_key_file(cohort: PhantomConfig, tmp_path: Path) -> None:
    """64 hex characters, readable by the owner alone, the same for the same seed and only for it."""
    path = Path(cohort.out) / "patient_key.txt"
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(bytes.fromhex(text.rstrip("\n"))) == 32
    assert len(text) == 65
    for seed, same in ((8, True), (9, False)):
        write_cohort(PhantomConfig(out=str(tmp_path / str(seed)), patients=0, ecg_only=1, seed=seed, workers=1))
        assert ((tmp_path / str(seed) / "patient_key.txt").read_text() == text) is same


def test_reuse_and_refusal(tmp_path: Path) -> None:
    """The same config writes nothing; an interrupted one goes on; another config or a foreign folder is refused."""
    config = PhantomConfig(out=str(tmp_path / "c"), patients=0, ecg_only=2, seed=1, workers=1)
    summary = write_cohort(config)
    table = tmp_path / "c" / "cohort.csv"
    before = table.stat().st_mtime_ns
    assert write_cohort(config) == summary
    assert table.stat().st_mtime_ns == before
    with pytest.raises(DataError, match="another config"):
        write_cohort(PhantomConfig(out=config.out, patients=0, ecg_only=2, seed=2, workers=1))

    content = table.read_bytes()
    (tmp_path / "c" / "phantom.json").rename(tmp_path / "c" / "phantom.started.json")  # as a kill leaves it
    table.unlink()
    write_cohort(config)
    assert table.read_bytes() == content

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match="not an empty folder"):
        write_cohort(PhantomConfig(out=str(tmp_path / "mine"), patients=1, workers=1))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_version_is_told(tmp_path: Path) -> None:
    """phantom.json names version and difficulty; one version's folder is refused to the other.

    What only version 2 has is no part of version 1's fingerprint, which is as it was before there were versions.
    """
    for version, difficulty in ((1, 2), (2, 3)):
        out = tmp_path / str(version)
        config = PhantomConfig(out=str(out), patients=0, ecg_only=1, seed=1, version=version, workers=1)
        write_cohort(config)
        content = files.read_json(out / "phantom.json")
        assert (content["version"], content["difficulty_version"]) == (version, difficulty)
        other = PhantomConfig(out=str(out), patients=0, ecg_only=1, seed=1, version=3 - version, workers=1)
        with pytest.raises(DataError, match="another config or version"):
            write_cohort(other)
    assert files.read_json(tmp_path / "1" / "phantom.json")["fingerprint"] == FINGERPRINT_BEFORE_VERSIONS


def test_split_column(tmp_path: Path) -> None:
    """With ecg_only_test the last patients are the test split, the rest train and val in the stated shares."""
    config = PhantomConfig(out=str(tmp_path / "s"), patients=0, ecg_only=4, ecg_only_test=2, workers=1)
    write_cohort(config)
    assert [row["split"] for row in rows(config)][2:] == ["test", "test"]
    large = PhantomConfig(out="", patients=2000, ecg_only=3000, ecg_only_test=1000)
    splits = np.array([split_of(large, index) for index in range(5000)])
    assert set(splits[4000:]) == {"test"}
    assert "test" not in splits[:4000]
    assert np.mean(splits[:2000] == "val") == pytest.approx(0.10, abs=0.02)
    assert np.mean(splits[2000:4000] == "val") == pytest.approx(0.15, abs=0.025)
