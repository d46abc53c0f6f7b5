"""What a check finds in cohorts, folders, files and shard sets with planted faults, and that it never tells whose."""

import csv
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from forks import Forks
from hospital import Person, write_dicom_ecg
from pydicom.uid import MPEG4HP41, DeflatedExplicitVRLittleEndian
from recordings import LEADS, sine_ecg, write_cohort, write_run, write_wfdb

from stence_dist.check.examine import check, examine
from stence_dist.check.findings import NOTE, PROBLEM, WARNING, Finding, Result, Section, Table
from stence_dist.check.page import render
from stence_dist.check.recordings import clipped_leads, plain_reason
from stence_dist.check.studies import look_at_study, look_at_view
from stence_dist.config.build import BuildConfig
from stence_dist.config.check import CheckConfig
from stence_dist.config.command import run
from stence_dist.config.targets import TargetsConfig
from stence_dist.data.build import build
from stence_dist.data.frames import FrameSettings
from stence_dist.data.index import SPLITS, fingerprint_of
from stence_dist.data.readers import ReaderError, read_study
from stence_dist.data.readers.images import codecs
from stence_dist.data.shards import ShardSet
from stence_dist.errors import CheckFailedError, ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]
PLANTED = "ZZPLANTED"
Rows = list[dict[str, str]]


def looked_at(path: Path, **changes: Any) -> Result:
    return examine(path, CheckConfig(str(path), workers=1, **changes))


def edit(cohort: Path, change: Callable[[Rows], None]) -> Path:
    """Rewrite a cohort table; columns come from its first row."""
    with open(cohort, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with open(cohort, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return cohort


def found(result: Result, level: str, part: str) -> Finding:
    """The one finding of a level whose text holds `part`."""
    matching = [finding for finding in result.of_level(level) if part in finding.text]
    assert len(matching) == 1, [finding.text for finding in result.of_level(level)]
    return matching[0]


def rows_of(result: Result, title: str) -> dict[Any, list[Any]]:
    """The rows of the table whose title begins with `title`, by their first cell."""
    tables = [table for section in result.sections for table in section.tables if table.title.startswith(title)]
    assert len(tables) == 1, title
    return {row[0]: list(row[1:]) for row in tables[0].rows}


def deflate(path: Path) -> None:
    """Rewrite a DICOM file with a deflated data set."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.SOPInstanceUID = "1.2.3"
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of 12 pairs and 8 ECGs: row 3 flat in V2, row 4 clipped in V5, row 6 with the ECG of row 5, row 7 cut
    short, row 8 without DICOM header, rows 9 and 10 without labels, identifiers wherever a file may hold them."""
    folder = tmp_path_factory.mktemp("faulty")
    cohort = write_cohort(folder, pairs=12, ecg_only=8, seed=3)
    signal = sine_ecg(100)
    signal[LEADS.index("V2")] = 0.25
    write_wfdb(folder / "ecg", "r002", signal)
    signal = sine_ecg(101)
    signal[LEADS.index("V5")] = np.clip(3 * signal[LEADS.index("V5")], -0.7, 0.7)
    write_wfdb(folder / "ecg", "r003", signal)
    for number in (4, 5):
        write_wfdb(folder / "ecg", f"r{number:03d}", sine_ecg(102))
    data = folder / "ecg" / "r006.dat"
    data.write_bytes(data.read_bytes()[:-10])
    (folder / "study" / "s007" / "run0.dcm").write_bytes(b"no DICOM at all" * 20)
    with open(folder / "ecg" / "r000.hea", "a", encoding="utf-8") as file:
        file.write(f"# {PLANTED} seen on 1961-02-03 by {PLANTED}\n")
    run = folder / "study" / "s000" / "run0.dcm"
    frames = np.zeros((3, 32, 32), dtype=np.uint8)
    named = {"PatientName": f"{PLANTED}^A", "PatientID": f"{PLANTED}1", "PatientBirthDate": "19610203"}
    write_run(run, frames, InstitutionName=PLANTED, OperatorsName=f"{PLANTED}^B", AccessionNumber="Q87654321", **named)
    place = folder / "ecg" / f"{PLANTED}_19610203"
    place.mkdir()
    for file in (folder / "ecg").glob("r001.*"):
        shutil.copy(file, place / file.name)

    def change(rows: Rows) -> None:
        rows[1]["ecg_path"] = f"ecg/{PLANTED}_19610203/r001"
        for row in rows:
            row["patient_id"] = f"{PLANTED}-{row['patient_id']}"
            row["patient_name"] = f"{PLANTED} {PLANTED}"
            row["label_af"] = "1" if row is rows[0] else ""
        for row in (rows[8], rows[9]):
            row.update({f"seg_{segment}": "" for segment in range(1, 17)})
        rows[11]["age"] = f"{PLANTED}"

    return edit(cohort, change)


@pytest.fixture(scope="module")
def faults(faulty: Path) -> Result:
    return looked_at(faulty)


def test_a_sound_cohort_has_no_problem(small_cohort: Path) -> None:
    """32 rows without a fault; every count as they were written, nothing written beside the table."""
    before = sorted(path.name for path in small_cohort.parent.iterdir())
    result = looked_at(small_cohort)
    assert result.of_level(PROBLEM) == []
    assert result.totals == {"rows": 32, "patients": 32, "pairs": 24, "ECGs read": 32, "views": 48}
    assert rows_of(result, "Formats") == {"WFDB": [32]}
    assert rows_of(result, "Sampling rates") == {"500 Hz": [32]}
    assert rows_of(result, "Lengths") == {"4.0 s": [32]}
    assert rows_of(result, "Units") == {"mV": [32]}
    assert rows_of(result, "Leads stored") == {"all 12": [32]}
    assert rows_of(result, "Einthoven")["largest"][0] < 0.002
    assert rows_of(result, "Codecs") == {"Explicit VR Little Endian": [48, "yes"]}
    assert rows_of(result, "Angles")["not known"] == [8]
    assert sorted(path.name for path in small_cohort.parent.iterdir()) == before


def test_prevalence_is_that_of_the_table(small_cohort: Path) -> None:
    """Against labels worked out here, segment by segment, from the table's text."""
    with open(small_cohort, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by_row = []
    for row in rows:
        percents = [row[f"seg_{segment}"] for segment in range(1, 17)]
        severe = any(text and float(text) >= 50 for text in percents)
        by_row.append(1 if severe else None if "" in percents else 0)
    known = [value for value in by_row if value is not None]
    result = looked_at(small_cohort, targets=TargetsConfig(threshold=50))
    line = rows_of(result, "Positive from 50 %")["patient"]
    assert line[:4] == [len(known), len(rows) - len(known), sum(known), sum(known) / len(known)]


def test_planted_faults_are_found(faults: Result) -> None:
    """Each fault by its row: flat, clipped, copied, cut short, no DICOM, a field of no number, labels that lack."""
    assert found(faults, WARNING, "lead V2 is flat throughout").places == ("row 3",)
    assert rows_of(faults, "Leads with a fault")["V2"] == [0, 0, 1, 0, 0]
    assert found(faults, WARNING, "clipped").places == ("row 4",)
    assert rows_of(faults, "Leads with a fault")["V5"] == [0, 0, 0, 0, 1]
    copied = [f for f in faults.of_level(PROBLEM) if f.text.startswith("equal waveforms")]
    assert [finding.places for finding in copied] == [("row 5 = row 6",)]
    assert found(faults, WARNING, "truncated").places == ("row 7",)
    assert found(faults, WARNING, "holds no DICOM header").places == ("row 8",)
    assert found(faults, WARNING, "age holds what the column does not take").places == ("row 12",)
    assert found(faults, NOTE, "some segments not reported").count == 3
    assert rows_of(faults, "Positive")["label_af"][:3] == [1, 18, 1]
    assert rows_of(faults, "Columns")["any segment"][0] == 18


def test_identifiers_are_counted_by_kind(faults: Result) -> None:
    """What was planted: a name, number, birth date, institution, staff and accession number in one run; a comment with
    a date in one record; a folder's name; a column of names."""
    table = next(table for section in faults.sections for table in section.tables if "fill a field" in table.title)
    counts = {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}
    for kind in ("patient's name", "patient's number", "date of birth", "institution, department or room"):
        assert counts[kind]["DICOM images"] == 1, kind
    assert counts["name or number of staff"]["DICOM images"] == 1
    assert counts["accession, order, visit or study number"]["DICOM images"] == 1
    assert counts["free text"]["WFDB"] == 1
    assert counts["date of the recording or of its report"]["WFDB"] == 1
    assert counts["date in a file or folder name"]["file names"] == 1
    assert counts["patient's name"]["columns not used"] == 1


def test_no_output_tells_whose_data_it_is(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing planted and no path in text, JSON or page; both files are the owner's alone."""
    with pytest.raises(CheckFailedError, match="1 problem"):
        check(CheckConfig(str(faulty), out=str(tmp_path / "out"), workers=1))
    printed = capsys.readouterr()
    written = {name: (tmp_path / "out" / name).read_text() for name in ("check.json", "check.html")}
    for text in (printed.out, printed.err, caplog.text.replace("patient_name", ""), *written.values()):
        for secret in (PLANTED, "19610203", "1961-02-03", "87654321", str(faulty.parent), "r001", "s007"):
            assert secret not in text, secret
    for name in written:
        assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == 0o600
    saved = json.loads(written["check.json"])
    assert saved["kind"] == "cohort table"
    assert not saved["usable"]
    assert saved["levels"]["problem"] == 1


def test_the_page_needs_nothing_else(faulty: Path, tmp_path: Path) -> None:
    """No script, no link, no address to load from; pictures of the faults inside, texts escaped."""
    with pytest.raises(CheckFailedError):
        check(CheckConfig(str(faulty), out=str(tmp_path), workers=1))
    page = (tmp_path / "check.html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"<script|javascript:|@import|url\(|https?:", page)
    assert set(re.findall(r'(?:src|href)="([a-z]+:[a-z/]*)', page)) <= {"data:image/png", "data:"}
    assert "row 4: a lead is clipped at its highest or lowest value (V5)" in page
    section = Section("x", "<b>title</b>", [Table("t", ("a", "b"), [("<i>", 1)])], [Finding(NOTE, "a < b", 2)])
    escaped = render(Result("file", {"<u>": 1}, [section]))
    assert not re.search("<[biu]>title|<i>|<u>", escaped)
    assert "&lt;i&gt;" in escaped


def test_patients_in_two_splits_and_odd_splits(tmp_path: Path) -> None:
    """Both stop a build; what the files hold is said all the same."""

    def torn(rows: Rows) -> None:
        for number, row in enumerate(rows):
            row["split"] = ("train", "val", "test")[number % 3]
        rows[4]["patient_id"] = rows[0]["patient_id"]

    cohort = edit(write_cohort(tmp_path, pairs=0, ecg_only=6), torn)
    result = looked_at(cohort)
    assert found(result, PROBLEM, "more than one split").places == ("row 1 (train) and row 5 (val)",)
    assert rows_of(result, "Formats") == {"WFDB": [6]}
    edit(cohort, lambda rows: rows[2].update(split=""))
    assert found(looked_at(cohort), PROBLEM, "split is not train, val or test").places == ("row 3",)


def test_equal_waveforms_in_two_splits(tmp_path: Path) -> None:
    """Copies on both sides of a split are a problem of their own; copies of one patient are a note."""

    def split(rows: Rows) -> None:
        for number, row in enumerate(rows):
            row["split"] = ("train", "val", "test")[number % 3]
        rows[3]["patient_id"] = rows[0]["patient_id"]

    cohort = edit(write_cohort(tmp_path, pairs=0, ecg_only=6), split)
    for number in (0, 3, 1, 2):
        write_wfdb(tmp_path / "ecg", f"r{number:03d}", sine_ecg(7 if number in (0, 3) else 8))
    result = looked_at(cohort)
    assert found(result, PROBLEM, "different splits").places == ("row 2 = row 3",)
    assert found(result, NOTE, "equal waveforms of one patient").places == ("row 1 = row 4",)


def test_a_lead_of_another_size_than_the_others(tmp_path: Path) -> None:
    """One wrong gain among twelve leads: the median says nothing of it."""
    cohort = write_cohort(tmp_path, pairs=0, ecg_only=6)
    header = tmp_path / "ecg" / "r002.hea"
    lines = header.read_text().splitlines()
    gain = re.search(r" (\S+?)\(", lines[9])
    assert gain is not None
    lines[9] = lines[9].replace(gain[1], "1", 1)
    header.write_text("\n".join(lines))
    fault = found(looked_at(cohort), WARNING, "larger than any ECG")
    assert fault.places == ("row 3",)


def test_an_ecg_of_two_patients(tmp_path: Path) -> None:
    """One file under two patients is a problem, although a build would only reject the second row."""
    cohort = edit(write_cohort(tmp_path, pairs=0, ecg_only=6), lambda rows: rows[4].update(ecg_path="ecg/r000.hea"))
    assert found(looked_at(cohort), PROBLEM, "another patient").places == ("row 5",)


def test_a_study_of_two_patients(tmp_path: Path) -> None:
    """One study under two patients, likewise."""
    cohort = edit(write_cohort(tmp_path, pairs=6, ecg_only=0), lambda rows: rows[4].update(study_path="./study/s000"))
    assert found(looked_at(cohort), PROBLEM, "another patient").places == ("row 5",)


def test_a_run_of_two_patients(tmp_path: Path) -> None:
    """A copy of another patient's run is told by its own identifier; one patient may have it twice."""
    cohort = write_cohort(tmp_path, pairs=6, ecg_only=0)
    runs = [tmp_path / "study" / name / "run0.dcm" for name in ("s000", "s004")]
    for path in runs:
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = "1.2.3.4"
        dataset.save_as(path, enforce_file_format=False)
    assert found(looked_at(cohort), WARNING, "are they copies?").places == ("row 5",)
    edit(cohort, lambda rows: rows[4].update(patient_id=rows[0]["patient_id"]))
    assert not [finding for finding in looked_at(cohort).of_level(WARNING) if "copies" in finding.text]


def test_a_split_that_loses_all_its_rows(tmp_path: Path) -> None:
    """The only row of `val` cannot be read: a build would stop at the end."""

    def split(rows: Rows) -> None:
        for row, name in zip(rows, ("train", "train", "val", "test"), strict=True):
            row["split"] = name

    cohort = edit(write_cohort(tmp_path, pairs=0, ecg_only=4), split)
    (tmp_path / "ecg" / "r002.dat").unlink()
    assert "the split val has no row" in found(looked_at(cohort), PROBLEM, "unusable files").text


def test_an_absent_codec_is_a_problem(small_cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named with what installs it, and its rows count as lost."""
    monkeypatch.setattr(codecs, "codec_of", lambda syntax, bits: None)
    result = looked_at(small_cohort)
    assert found(result, PROBLEM, "no codec here for Explicit VR Little Endian").count == 48
    assert sum(row[3] for row in rows_of(result, "Splits").values()) == 24


def test_odd_paths_and_names_end_no_check(tmp_path: Path) -> None:
    """A study whose name no file system takes, a deflated run, and a WFDB header that names `.` as its signal file."""
    cohort = write_cohort(tmp_path, pairs=6, ecg_only=0, seed=4)
    edit(cohort, lambda rows: rows[1].update(study_path="s" * 300))
    run = tmp_path / "study" / "s000" / "run0.dcm"
    deflate(run)
    result = looked_at(cohort)
    lost = [finding for finding in result.of_level(WARNING) if "study cannot be used" in finding.text]
    assert [finding.places for finding in lost] == [("row 2",)]
    assert "sss" not in result.to_text()
    header = tmp_path / "ecg" / "r003.hea"
    header.write_text(header.read_text().replace("r003.dat", "."))
    assert found(looked_at(tmp_path / "ecg"), WARNING, "outside its own folder").count == 1


def test_fractions_and_lesions_only(tmp_path: Path) -> None:
    """Segments from 0 to 1 are no percent; without any 0 % normal segments may have been left out."""

    def fractions(rows: Rows) -> None:
        for row in rows:
            row.update({f"seg_{segment}": "0.9" if segment == 6 else "" for segment in range(1, 17)})

    result = looked_at(edit(write_cohort(tmp_path, pairs=4, ecg_only=0), fractions))
    assert found(result, WARNING, "are these fractions?")
    assert found(result, WARNING, "targets.unreported=normal")


def test_kinds_of_studies_do_not_mix(tmp_path: Path) -> None:
    """A study of stored features among runs, a study of both, and one without any view, each by its row."""
    cohort = write_cohort(tmp_path, pairs=6, ecg_only=0)
    shutil.rmtree(tmp_path / "study" / "s001")
    (tmp_path / "study" / "s001").mkdir()
    for folder in ("s001", "s002"):
        np.save(tmp_path / "study" / folder / "view.npy", np.zeros((1, 4, 8), dtype=np.float32))
    shutil.rmtree(tmp_path / "study" / "s003")
    (tmp_path / "study" / "s003").mkdir()
    result = looked_at(cohort)
    assert found(result, WARNING, "studies of pixels and of stored tokens do not mix").places == ("row 2",)
    assert found(result, WARNING, "mixes kinds of views").places == ("row 3",)
    assert found(result, WARNING, "no view").places == ("row 4",)
    assert rows_of(result, "Where key frames come from") == {"header": [9]}  # tokens have none


def test_limit_draws_from_every_split(small_cohort: Path) -> None:
    """A limit of 8 rows reads about as many of 32; counts of the table stay whole."""
    result = looked_at(small_cohort, limit=8)
    assert result.totals["rows"] == 32
    assert result.totals["ECGs read"] in (8, 9)
    assert len(rows_of(result, "Splits")) == 3


def test_a_sound_shard_set(small_shards: Path) -> None:
    """All samples, views and labels of the set, with the angles that pixels bring along."""
    result = looked_at(small_shards)
    assert result.of_level(PROBLEM) == []
    assert result.totals == {"samples": 32, "patients": 32, "pairs": 24, "samples read": 32, "views": 48}
    assert rows_of(result, "What every study")["frames per view"] == ["1 of 32 x 32 pixels"]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["usable"]
    assert rows_of(result, "Angles")["not known"] == [8]
    assert sum(row[0] for row in rows_of(result, "Splits").values()) == 32


def test_a_shard_set_says_what_its_cohort_says(small_cohort: Path, small_shards: Path) -> None:
    """The same prevalences, residuals and angles by two ways."""
    cohort, shards = looked_at(small_cohort), looked_at(small_shards)
    for title in ("Positive", "Einthoven", "Angles", "Sampling", "Lengths"):
        assert rows_of(cohort, title) == rows_of(shards, title), title


def test_saturated_views_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line when the set is built, and where they are when it is checked; other views say nothing."""
    cohort = write_cohort(tmp_path / "cohort", pairs=6, ecg_only=0)
    for view in range(2):
        white = np.full((3, 32, 32), 255, dtype=np.uint8)
        write_run(tmp_path / "cohort" / "study" / "s004" / f"run{view}.dcm", white, InstanceNumber=view + 1)
    build(BuildConfig(cohort=str(cohort), out=str(tmp_path / "set"), image_size=32, workers=1, shard_size=2))
    lines = [line for line in caplog.messages if "of one gray" in line]
    assert [line.partition(" are")[0] for line in lines] == ["2 views"]
    finding = found(looked_at(tmp_path / "set"), WARNING, "of one gray")
    assert (finding.count, [place.split()[-1] for place in finding.places]) == (2, ["5"])
    shards = ShardSet.open(tmp_path / "set")
    samples = [shards.read(split, row) for split in SPLITS for row in range(len(shards.table(split)))]
    marked = [sample.meta["sample"] for sample in samples for view in sample.meta["views"] if "saturated" in view]
    assert marked == [5, 5]


def test_a_damaged_shard_set(small_shards: Path, tmp_path: Path) -> None:
    """A flipped byte and a foreign file are problems, named without the folder or the foreign name."""
    copy = tmp_path / "copy"
    shutil.copytree(small_shards, copy)
    shard = copy / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    (copy / f"{PLANTED}.tar").write_bytes(b"")
    result = looked_at(copy)
    texts = [finding.text for finding in result.of_level(PROBLEM)]
    assert any("train-000000.tar" in text and "sha256" in text for text in texts)
    assert any("a file of another name" in text for text in texts)
    assert not any(PLANTED in text or str(tmp_path) in text for text in texts)


def test_equal_waveforms_in_a_shard_set(tmp_path: Path) -> None:
    """Copies under two patients are found after a build, too."""
    cohort = write_cohort(tmp_path / "cohort", pairs=0, ecg_only=6)
    for number in range(6):
        write_wfdb(tmp_path / "cohort" / "ecg", f"r{number:03d}", sine_ecg(number % 5))
    build(BuildConfig(cohort=str(cohort), out=str(tmp_path / "set"), workers=1))
    finding = next(f for f in looked_at(tmp_path / "set").of_level(PROBLEM) if "equal waveforms" in f.text)
    assert re.fullmatch(r"\w+ sample [16] = \w+ sample [16]", finding.places[0])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of: two WFDB records (one without its signals), two recordings in one .npy, a table of numbers with and
    one without sidecar, a run, a run of another class, a picture, stored features, a text, and an ECG in DICOM."""
    from PIL import Image
    from pydicom.data import get_testdata_file

    folder = tmp_path / "mixed"
    write_wfdb(folder, "a", sine_ecg(1))
    write_wfdb(folder, "b", sine_ecg(2))
    (folder / "b.dat").unlink()
    declared = json.dumps({"sampling_rate": 250, "unit": "uV", "leads": list(LEADS)})
    signals = np.stack([1000 * sine_ecg(3, sampling_rate=250), 1000 * sine_ecg(4, sampling_rate=250)])
    np.save(folder / "c.npy", signals)
    np.savetxt(folder / "d.csv", sine_ecg(5).T, delimiter=",")
    np.savetxt(folder / "e.csv", np.arange(12.0).reshape(4, 3), delimiter=",")
    (folder / "c.json").write_text(declared)
    (folder / "d.json").write_text(declared)
    write_run(folder / "f.dcm", np.zeros((3, 32, 32), dtype=np.uint8), BurnedInAnnotation="NO", FrameTime=40)
    write_run(folder / "g.dcm", np.zeros((1, 32, 32), dtype=np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    Image.fromarray(np.zeros((20, 30), dtype=np.uint8)).save(folder / "h.png")
    np.save(folder / "i.npy", np.zeros((1, 4, 8), dtype=np.float32))
    (folder / "j.txt").write_text(PLANTED)
    shutil.copy(str(get_testdata_file("waveform_ecg.dcm")), folder / "k.dcm")
    (folder / "views.csv").write_text("file,key_frame,primary,secondary\nh.png,,-30,20\n")
    return folder


def test_a_folder_of_many_formats(mixed: Path) -> None:
    """Every file by what it is; recordings of one file apart; what is broken by its number in sorted order."""
    result = looked_at(mixed)
    assert result.totals == {"files": 15, "ECGs": 6, "views and other DICOM files": 4}
    assert rows_of(result, "By content")["tables of numbers without a sidecar"] == [1]
    assert rows_of(result, "By content")["parts of recordings (signals, annotations, sidecars)"] == [4]
    assert rows_of(result, "Formats") == {"WFDB": [2], "npy": [2], "text table": [1], "DICOM": [1]}
    assert rows_of(result, "Units") == {"mV": [2], "uV": [4]}
    assert rows_of(result, "Sampling rates") == {"250 Hz": [3], "500 Hz": [1], "1000 Hz": [1]}
    listed = subprocess.run(
        "find . -xtype f | LC_ALL=C sort", shell=True, cwd=mixed, capture_output=True, text=True, check=True
    )
    place = found(result, WARNING, "signal file").places[0]
    assert listed.stdout.split()[int(place.removeprefix("file ")) - 1] == "./b.hea"
    assert found(result, WARNING, "are not of the size of an ECG's").places[0].startswith("file ")
    assert rows_of(result, "DICOM objects") == {"run": [1], "other object": [1]}
    assert rows_of(result, "Angles") == {"RAO cranial": [1], "not known": [2]}
    assert rows_of(result, "Frame rates") == {"25 per second": [1]}


def test_dicom_without_preamble_is_found(tmp_path: Path) -> None:
    """A run and an ECG, each said to be what it is."""
    write_run(tmp_path / "a", np.zeros((3, 32, 32), dtype=np.uint8))
    write_dicom_ecg(tmp_path, Person(0), 1).rename(tmp_path / "b")
    for name in "ab":
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[132:])
    result = looked_at(tmp_path)
    assert result.totals == {"files": 2, "ECGs": 1, "views and other DICOM files": 1}
    found_at = [finding.places for finding in result.of_level(WARNING) if "lacks its header" in finding.text]
    assert sorted(found_at) == [("file 1",), ("file 2",)]


def test_companions_of_macos_are_counted(tmp_path: Path) -> None:
    """They are neither recordings nor damaged views."""
    write_wfdb(tmp_path, "a", sine_ecg(1))
    for name in ("._a.hea", "._b.dcm"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7" + bytes(400))
    result = looked_at(tmp_path)
    assert result.totals == {"files": 4, "ECGs": 1, "views and other DICOM files": 0}
    assert rows_of(result, "By content")["companions of macOS (._NAME, __MACOSX)"] == [2]
    assert not result.of_level(WARNING)


def test_single_files(mixed: Path, tmp_path: Path) -> None:
    """A record by its name, one recording of many, a run; a broken one is a problem, an unknown one is refused."""
    assert looked_at(mixed / "a").totals["ECGs"] == 1
    assert looked_at(mixed / "c.npy").totals["ECGs"] == 2
    assert looked_at(mixed / "c.npy#1").totals["ECGs"] == 1
    assert rows_of(looked_at(mixed / "f.dcm"), "Frames of a run") == {"2 to 9": [1]}
    assert found(looked_at(mixed / "b.hea"), PROBLEM, "nothing here can be used")
    (tmp_path / "empty").mkdir()
    for unknown in (mixed / "j.txt", mixed / "absent", tmp_path / "empty"):
        with pytest.raises(DataError, match="path="):
            looked_at(unknown)


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A CSV without the column of patients; an `out` that is a file; a limit below three."""
    (tmp_path / "cohort.csv").write_text("ecg_path,study_path\na,b\n")
    with pytest.raises(DataError, match="no column patient_id"):
        looked_at(tmp_path / "cohort.csv")
    with pytest.raises(DataError, match="cannot be a folder"):
        check(CheckConfig(str(tmp_path), out=str(tmp_path / "cohort.csv")))
    with pytest.raises(ConfigError, match="Use 3 or more"):
        CheckConfig("x", limit=2)


def test_what_is_no_file_folder_or_set_is_refused(small_shards: Path, tmp_path: Path) -> None:
    """Nothing, a pipe that nobody writes to, a set whose build was interrupted or whose index is gone."""
    os.mkfifo(tmp_path / "pipe")
    copy = shutil.copytree(small_shards, tmp_path / "set")
    (copy / "index.json").unlink()
    unfinished = tmp_path / "other"
    (unfinished / ".build").mkdir(parents=True)
    for path, message in (
        ("", "path= is empty"),
        (tmp_path / "pipe", "a pipe or a device"),
        (copy, "a shard set without its index"),
        (unfinished, "a shard set without its index"),
    ):
        with pytest.raises((DataError, ConfigError), match=message):
            examine(Path(path), CheckConfig(path=str(path)))


def test_exit_codes(faulty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """1 where a build would stop or be wrong, 2 for a path that is not there, each with a word on stderr."""
    process = Forks([str(ROOT / "launch" / "check.py"), f"path={faulty}", "workers=1"], [os.environ])
    output, _ = process.communicate()
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith("1 problem: a build would stop here")
    monkeypatch.setattr(sys, "argv", ["check.py", f"path={faulty.parent / 'absent'}"])
    with pytest.raises(SystemExit) as ended:
        run(CheckConfig, "check", check)
    assert ended.value.code == 2
    assert "does not exist" in capsys.readouterr().err


def test_what_counts_as_clipped() -> None:
    """Sharp waves cut at a rail do; the same waves whole, rounded coarsely, with gaps or padded with a constant do
    not."""
    time = np.arange(5000) / 500
    beats = np.exp(-(((time % 0.8) - 0.4) ** 2) / (2 * 0.012**2)) + 0.2 * np.sin(2 * np.pi * time)
    whole = np.round(1500 * beats).astype(np.int16)
    cut = np.clip(whole, -32768, 900)
    coarse = (whole // 60 * 60).astype(np.int16)
    padded = whole.copy()
    padded[:400] = padded[-400:] = whole.min() - 50
    gaps = whole.copy()
    gaps[1000:1400] = -32768
    names = ["whole", "cut", "coarse", "padded", "gaps", "flat"]
    values = np.stack([whole, cut, coarse, padded, gaps, np.zeros_like(whole)])
    assert clipped_leads(values, names, 500.0) == ("cut",)


def test_reasons_hold_no_text_of_a_file() -> None:
    """Quoted words, found names, figures and entries go; packages to install stay."""
    text = f"unit '{PLANTED}' is not known (found {PLANTED} II); recording #{PLANTED} has 12345 bytes; lead V3 missing."
    reason = plain_reason(ReaderError(text))
    assert PLANTED not in reason
    assert "12345" not in reason
    assert "lead V3 missing" in reason
    needs = 'HDF5 files need h5py: pip install "stence_dist[hdf5]".'
    assert plain_reason(ReaderError(needs)) == needs
    assert PLANTED not in plain_reason(ValueError(PLANTED))
    assert PLANTED not in plain_reason(PermissionError(13, "Permission denied", PLANTED))


XRF, CT = "1.2.840.10008.5.1.4.1.1.12.2", "1.2.840.10008.5.1.4.1.1.2"


@pytest.mark.parametrize(
    ("frames", "elements", "what"),
    [
        (3, {}, "run"),
        (3, {"SOPClassUID": XRF}, "run"),
        (3, {"NumberOfFrames": None}, "run"),
        (1, {}, "single frame"),
        (1, {"NumberOfFrames": None}, "single frame"),
        (3, {"SOPClassUID": CT}, "other object"),
        (3, {"SOPClassUID": None}, "no SOP class"),
        (3, {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "in color"),
        (3, {"PhotometricInterpretation": None}, "in color"),
        (3, {"BitsAllocated": 32}, "of 32 bits"),
        (3, {"BitsStored": 12}, "stores 12 of 8 bits"),
        (3, {"HighBit": 15}, "up to bit 15"),
        (3, {"Rows": 5000}, "at most"),
        (3, {"Rows": None}, "at most"),
    ],
)
def test_a_run_is_what_its_reader_takes(tmp_path: Path, frames: int, elements: dict[str, Any], what: str) -> None:
    """A study of one object: a build and a check take it alike, or refuse it for the same reason."""
    write_run(tmp_path / "a.dcm", np.zeros((frames, 32, 32), dtype=np.uint8), **elements)
    try:
        read_study(tmp_path, FrameSettings(32, 1, 1))
        refusal = None
    except ReaderError as error:
        refusal = plain_reason(error)
    ((_, view),), _, reason = look_at_study(tmp_path)
    assert (reason is None) == (refusal is None) == (what == "run")
    assert view.reason in (None, refusal)
    assert what in (view.reason or view.what)


def test_a_deflated_run_is_what_its_reader_takes(tmp_path: Path) -> None:
    """One in color is refused and one with a single frame is none, although their headers are not searched."""
    for frames, elements, what in ((3, {}, "run"), (3, {"SamplesPerPixel": 3}, "in color"), (1, {}, "not looked at")):
        write_run(tmp_path / "a.dcm", np.zeros((frames, 32, 32), dtype=np.uint8), **elements)
        deflate(tmp_path / "a.dcm")
        view = look_at_view(tmp_path / "a.dcm")
        assert view is not None
        assert what in (view.reason or view.what)


def test_a_key_frame_beyond_its_run_is_found(tmp_path: Path) -> None:
    """A build refuses the study; a check says why."""
    write_run(tmp_path / "a.dcm", np.zeros((3, 32, 32), dtype=np.uint8))
    (tmp_path / "views.csv").write_text("file,key_frame,primary,secondary\na.dcm,3,,\n")
    with pytest.raises(ReaderError, match="key frame 3 of a run of 3 frames"):
        read_study(tmp_path, FrameSettings(32, 1, 1))
    assert found(looked_at(tmp_path), WARNING, "key frame 3 of a run of 3 frames").places == ("file 1",)


def test_only_runs_need_a_codec(tmp_path: Path) -> None:
    """An ultrasound film that nothing here decodes, beside a run: a build takes the study, and so does a check."""
    cohort = write_cohort(tmp_path, pairs=6, ecg_only=0)
    film = tmp_path / "study" / "s001" / "film.dcm"
    write_run(film, np.zeros((3, 32, 32), dtype=np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.3.1")
    dataset = pydicom.dcmread(film)
    del dataset.PixelData
    dataset.file_meta.TransferSyntaxUID = MPEG4HP41
    dataset.save_as(film, enforce_file_format=False)
    assert read_study(film.parent, FrameSettings(32, 1, 1)).others == 1
    result = looked_at(cohort)
    assert rows_of(result, "DICOM objects")["other object"] == [1]
    assert sum(row[3] for row in rows_of(result, "Splits").values()) == 0


def test_angles_of_a_study_hold_for_its_series(tmp_path: Path) -> None:
    """A study's views.csv that names SERIES/run.dcm, two folders below the one that is checked; the nearest one counts,
    and none above that folder."""
    study = tmp_path / "studies" / "s1"
    for series in ("a", "b"):
        write_run(study / series / "run.dcm", np.zeros((3, 32, 32), dtype=np.uint8))
    heading = "file,key_frame,primary,secondary\n"
    (study / "views.csv").write_text(f"{heading}a/run.dcm,1,-30,20\nb/run.dcm,1,-30,20\n")
    (study / "b" / "views.csv").write_text(f"{heading}run.dcm,,30,-20\n")
    result = looked_at(tmp_path / "studies")
    assert rows_of(result, "Angles") == {"RAO cranial": [1], "LAO caudal": [1]}
    assert rows_of(result, "Where key frames come from") == {"views.csv": [1], "contrast": [1]}
    assert rows_of(looked_at(study / "a"), "Angles") == {"not known": [1]}


def test_an_index_of_another_spec_is_named(small_shards: Path, tmp_path: Path) -> None:
    """A dataset spec without `leads` is the index's fault, not the sidecars'."""
    copy = tmp_path / "copy"
    shutil.copytree(small_shards, copy)
    index = json.loads((copy / "index.json").read_text())
    del index["dataset"]["leads"]
    (copy / "index.json").write_text(json.dumps({**index, "fingerprint": fingerprint_of(index)}))
    assert [f.text.partition(" has the keys")[0] for f in looked_at(copy).of_level(PROBLEM)] == ["the dataset spec"]
