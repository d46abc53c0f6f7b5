"""Two tables joined into a cohort table, and what falls out."""

import csv
import stat
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from stence_dist.config.build import BuildConfig
from stence_dist.config.pair import PairConfig
from stence_dist.data.build import build
from stence_dist.data.cohort_table import SEGMENT_COLUMNS
from stence_dist.data.pair import pair, parse_date
from stence_dist.data.shards import ShardSet
from stence_dist.errors import ConfigError, DataError


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A CSV of rows that all have the same columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, str]:
    """Patient 1: four ECGs around two studies; 2: an ECG long before its study; 3: no study; 4: no ECG; bad rows."""
    ecgs = [("1", "2024-03-01 08:00"), ("1", "2024-03-09"), ("1", "20240311"), ("1", "2024-06-30"), ("2", "2020-01-01")]
    ecgs += [("3", "2024-03-01"), ("1", "first of May"), ("", "2024-03-01")]
    studies = [("1", "2024-03-10", "80"), ("1", "2024-07-01", "10"), ("2", "2024-03-10", "0"), ("4", "2024-03-10", "0")]
    write_table(
        tmp_path / "ecg" / "ecgs.csv",
        [{"patient_id": p, "date": d, "ecg_path": f"r{n}", "age": 60, "sex": ""} for n, (p, d) in enumerate(ecgs)],
    )
    others = dict.fromkeys(SEGMENT_COLUMNS[1:], "")
    write_table(
        tmp_path / "cath" / "studies.csv",
        [
            {"mrn": p, "when": d, "study_path": f"s{n}", "seg_1": s, **others, "age": 61, "sex": "F"}
            for n, (p, d, s) in enumerate(studies)
        ],
    )
    lines = (tmp_path / "cath" / "studies.csv").read_text().replace("mrn", "patient_id")
    (tmp_path / "cath" / "studies.csv").write_text(lines)
    return {
        "ecg": str(tmp_path / "ecg" / "ecgs.csv"),
        "studies": str(tmp_path / "cath" / "studies.csv"),
        "study_date": "when",
        "out": str(tmp_path / "out" / "cohort.csv"),
    }


def chosen(tables: dict[str, str], **changes: Any) -> dict[str, tuple[str, str, str]]:
    """ECG -> (study, days between, after the procedure) of the cohort table."""
    pair(PairConfig(**{**tables, "window_days": 30, **changes}))
    rows = read_rows(Path(tables["out"]))
    return {
        Path(row["ecg_path"]).name: (Path(row["study_path"]).name, row["days_between"], row["after_procedure"])
        for row in rows
    }


def test_policies(tables: dict[str, str]) -> None:
    """Nearest takes one ECG per study, before the last one before it, all every ECG with its nearest study."""
    assert chosen(tables) == {"r1": ("s0", "1", "0"), "r3": ("s1", "1", "0")}
    assert chosen(tables, policy="before") == {"r1": ("s0", "1", "0"), "r3": ("s1", "1", "0")}
    every = {"r0": ("s0", "9", "0"), "r1": ("s0", "1", "0"), "r2": ("s0", "-1", "1"), "r3": ("s1", "1", "0")}
    assert chosen(tables, policy="all") == every
    assert chosen(tables, policy="all", window_days=2000)["r4"] == ("s2", "1530", "0")
    left = [row for row in read_rows(Path(tables["out"] + ".left_out.csv")) if row["table"] == "ecg"]
    assert [row["row"] for row in left] == ["6", "7", "8"]
    assert [row["reason"].split(",")[0] for row in left] == ["the patient has no study", "no date", "no patient"]


def test_what_falls_out_is_counted_without_names(tables: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """Every row of both tables is in the cohort table or in the other one, with its reason."""
    with caplog.at_level("INFO"):
        pairs = chosen(tables)
    left = {(row["table"], int(row["row"])): row["reason"] for row in read_rows(Path(tables["out"] + ".left_out.csv"))}
    assert len(left) == 12 - 2 * len(pairs)
    assert left["ecg", 1] == left["ecg", 3] == "another ECG is nearer"
    assert left["ecg", 5] == "no study within 30 days"
    assert left["studies", 3] == "no ECG within 30 days"
    assert left["studies", 4] == "the patient has no ECG"
    assert "2  ecg: another ECG is nearer" in caplog.text
    kept = chosen(tables, keep_unpaired=True)
    assert sorted(kept) == ["r0", "r1", "r2", "r3", "r4", "r5"]
    assert kept["r5"] == ("", "", "")


def test_columns_and_paths(tables: dict[str, str]) -> None:
    """The ECG's columns win, the study's fill what is empty; paths are those that the new table's folder needs."""
    chosen(tables)
    row = read_rows(Path(tables["out"]))[0]
    assert (row["patient_id"], row["age"], row["sex"], row["seg_1"]) == ("1", "60", "F", "80")
    assert row["ecg_path"] == "../ecg/r1"
    assert row["study_path"] == "../cath/s0"


def test_times_give_parts_of_days(tmp_path: Path, tables: dict[str, str]) -> None:
    """With a time in both tables the order within a day is known; without one after_procedure stays empty."""
    ecg = {"patient_id": "1", "ecg_path": "r"}
    study = {"patient_id": "1", "when": "2024-03-10 06:00", "study_path": "s"}
    write_table(Path(tables["studies"]), [study])
    write_table(Path(tables["ecg"]), [{**ecg, "date": "20240310120000"}])
    assert chosen(tables) == {"r": ("s", "-0.25", "1")}
    with pytest.raises(DataError, match="No ECG of 1 and no study of 1"):
        chosen(tables, policy="before")
    write_table(Path(tables["ecg"]), [{**ecg, "date": "2024-03-10"}])
    assert chosen(tables, policy="before") == {"r": ("s", "0", "")}


def write_pair(tables: dict[str, str], ecg: dict[str, str], study: dict[str, str]) -> None:
    """Tables of one row each, of one patient."""
    write_table(Path(tables["ecg"]), [{"patient_id": "1", "ecg_path": "r", **ecg}])
    write_table(Path(tables["studies"]), [{"patient_id": "1", "study_path": "s", **study}])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "31.05.2024",
        "05/31/2024",
        "2024-13-01",
        "20241301",
        "45443",
        "2024-W22-5",
        "1711121500",
        "2024053110305",
        "2024-05-31 25:00",
        "2024-05-31 10:30 PM",
        "2024-05-31 10-15",
        "2024-05-3110:30",
        "20240531-0500",
        "20240531-103000",
        "٢٠٢٤0531",
    ],
)
def test_dates_that_could_mean_something_else(text: str) -> None:
    """Only year-month-day of fixed widths is a date; ten digits that count seconds since 1970 are none."""
    assert parse_date(text) is None


@pytest.mark.parametrize(
    ("text", "date", "hours"),
    [
        ("2024-05-31", datetime(2024, 5, 31), None),
        ("21800506", datetime(2180, 5, 6), None),
        ("2024053109", datetime(2024, 5, 31, 9), None),
        ("202405311030", datetime(2024, 5, 31, 10, 30), None),
        ("2024-05-31 10:30", datetime(2024, 5, 31, 10, 30), None),
        ("20240531T103000", datetime(2024, 5, 31, 10, 30), None),
        ("20240531103000.25", datetime(2024, 5, 31, 10, 30, 0, 250_000), None),
        ("2024-05-31T10:30:00.1234567", datetime(2024, 5, 31, 10, 30, 0, 123_456), None),
        ("20240531103000+0200", datetime(2024, 5, 31, 10, 30), 2),
        ("20021122091000-0500", datetime(2002, 11, 22, 9, 10), -5),
        ("20021122091000.000-0500", datetime(2002, 11, 22, 9, 10), -5),
        ("2024053110+0100", datetime(2024, 5, 31, 10), 1),
        ("2024-05-31T10:30Z", datetime(2024, 5, 31, 10, 30), 0),
        ("2024-05-31 10:30:00-05:30", datetime(2024, 5, 31, 10, 30), -5.5),
        ("2024-05-31 10:30:00+02", datetime(2024, 5, 31, 10, 30), 2),
    ],
)
def test_dates_of_dicom_hl7_aecg_and_sql(text: str, date: datetime, hours: float | None) -> None:
    """DICOM PS3.5 6.2 (DA, DT), HL7 TS as in aECG, ISO 8601, PostgreSQL; expected values read by eye."""
    zone = None if hours is None else timezone(timedelta(hours=hours)) if hours else UTC
    assert parse_date(text) == (date.replace(tzinfo=zone), date.time() != datetime.min.time())


def test_a_column_of_midnights_holds_dates(tables: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """What SQL prints of dates: the order within a day is unknown, which is said once; one other time makes times."""
    ecgs = [{"patient_id": n, "ecg_path": f"r{n}", "date": "2024-03-10 00:00:00"} for n in range(3)]
    studies = [{"patient_id": n, "study_path": f"s{n}", "when": "2024-03-10 09:00:00"} for n in range(3)]
    write_table(Path(tables["ecg"]), ecgs)
    write_table(Path(tables["studies"]), studies)
    with caplog.at_level("INFO"):
        assert set(chosen(tables, policy="before").values()) == {(f"s{n}", "0", "") for n in range(3)}
    assert caplog.text.count("every time in column date is 00:00:00") == 1
    write_table(Path(tables["ecg"]), [*ecgs[:2], ecgs[2] | {"date": "2024-03-10 10:00:00"}])
    assert chosen(tables) == {"r0": ("s0", "0.375", "0"), "r1": ("s1", "0.375", "0"), "r2": ("s2", "-0.0416667", "1")}


def test_offsets_count_where_both_state_one(tables: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """12:00 at +2 is an hour before 11:00 UTC; against a clock without offset it is 12:00, with a warning."""
    write_pair(tables, {"date": "20240310120000+0200"}, {"when": "2024-03-10T11:00:00Z"})
    assert chosen(tables) == {"r": ("s", "0.0416667", "0")}
    assert "offset" not in caplog.text
    write_pair(tables, {"date": "20240310120000+0200"}, {"when": "2024-03-10T11:00:00"})
    assert chosen(tables) == {"r": ("s", "-0.0416667", "1")}
    assert "some times state their offset from UTC and some do not" in caplog.text


def test_an_ecg_before_wins_a_tie(tables: dict[str, str]) -> None:
    """One day before and one after, whichever row comes first."""
    ecgs = [{"patient_id": "1", "ecg_path": f"r{day}", "date": f"2024-03-{day}"} for day in (11, "09")]
    studies = [{"patient_id": "1", "study_path": "s", "when": "2024-03-10"}]
    write_table(Path(tables["studies"]), studies)
    for order in (ecgs, ecgs[::-1]):
        write_table(Path(tables["ecg"]), order)
        assert chosen(tables) == {"r09": ("s", "1", "0")}


def test_an_ecg_known_to_be_before_goes_first(tmp_path: Path, tables: dict[str, str]) -> None:
    """Under `before` one of the same day without a time may have been after; it counts as a day away."""
    write_table(tmp_path / "cath" / "studies.csv", [{"patient_id": 1, "when": "2024-03-10T12:00", "study_path": "s"}])
    for early, expected in (("2024-03-10T08:00", "b"), ("2024-03-08T12:00", "a")):
        ecgs = [("a", "2024-03-10"), ("b", early)]
        rows = [{"patient_id": 1, "date": date, "ecg_path": name} for name, date in ecgs]
        write_table(tmp_path / "ecg" / "ecgs.csv", rows)
        assert list(chosen(tables, policy="before")) == [expected]


def test_tables_that_contradict_each_other(
    tmp_path: Path, tables: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Stenosis is that of the study, other columns are the ECG's, and both are said; no segment is left out."""
    mine, theirs = {"seg_6": "90", "age": "60", "site": ""}, {"seg_6": "10", "age": "66", "site": "x"}
    ecg = {"patient_id": 1, "date": "2024-03-10", "ecg_path": "e", **mine}
    write_table(tmp_path / "ecg" / "ecgs.csv", [ecg])
    study = {"patient_id": 1, "when": "2024-03-10", "study_path": "s", **theirs}
    write_table(tmp_path / "cath" / "studies.csv", [study])
    pair(PairConfig(**tables, window_days=1))
    (row,) = read_rows(Path(tables["out"]))
    assert (row["seg_6"], row["age"], row["site"], row["seg_1"], row["seg_16"]) == ("10", "60", "x", "", "")
    assert "1 pairs differ in column seg_6; the studies' is kept (ECG row 1)" in caplog.text
    assert "1 pairs differ in column age; the ECGs' is kept (ECG row 1)" in caplog.text


def test_patients_that_are_written_in_two_ways_are_counted(
    tmp_path: Path, tables: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Leading zeros, the .0 of a column of floats, small letters; nothing is joined by guessing."""
    ecgs, studies = ["007", "12", "A3", "9"], ["7", "12.0", "a3", "9"]
    rows = [{"patient_id": name, "date": "2024-03-10", "ecg_path": f"e{name}"} for name in ecgs]
    write_table(tmp_path / "ecg" / "ecgs.csv", rows)
    rows = [{"patient_id": name, "when": "2024-03-10", "study_path": f"s{name}"} for name in studies]
    write_table(tmp_path / "cath" / "studies.csv", rows)
    assert list(chosen(tables)) == ["e9"]
    assert "3 patients would be in both tables but for how these write identifiers" in caplog.text


def test_a_second_column_of_patients_is_not_copied(tables: dict[str, str]) -> None:
    """patient_id=MRN: another column patient_id, or date, stays out, whatever it holds."""
    write_pair(
        tables,
        {"MRN": "A", "patient_id": "7", "date": "1951-03-12", "taken": "20240310"},
        {"MRN": "A", "patient_id": "8", "date": "1951-03-12", "when": "20240311"},
    )
    assert chosen(tables, patient_id="MRN", ecg_date="taken") == {"r": ("s", "1", "0")}
    (row,) = read_rows(Path(tables["out"]))
    assert row["patient_id"] == "A"
    assert "1951-03-12" not in row.values()


def test_nothing_pairs_and_the_list_says_why(tables: dict[str, str]) -> None:
    """The list is written before the refusal, all ECGs in it; a table without a usable row is named with its dates."""
    write_pair(tables, {"date": "30.05.2024"}, {"when": "2024-05-31"})
    listed = Path(tables["out"] + ".left_out.csv")
    with pytest.raises(DataError, match=r"No row of .*ecgs\.csv can be used \(1: no date, .*Dates are read as 2024"):
        chosen(tables, keep_unpaired=True)
    assert [row["table"] for row in read_rows(listed)] == ["ecg", "studies"]
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600
    assert not Path(tables["out"]).exists()
    write_pair(tables, {"date": "2020-05-30"}, {"when": "2024-05-31"})
    with pytest.raises(DataError, match=r"No ECG of 1 and no study of 1 belong .*cohort\.csv\.left_out\.csv has"):
        chosen(tables, keep_unpaired=True)
    assert [row["reason"] for row in read_rows(listed)] == ["no study within 30 days", "no ECG within 30 days"]


@pytest.mark.parametrize("nothing", ["NA", "nan", "NULL", "#N/A"])
def test_words_for_nothing_are_empty(tables: dict[str, str], nothing: str) -> None:
    """Two unknown patients are no pair, such a study is no folder, and what the ECG does not state is the study's."""
    ecgs = [{"patient_id": p, "ecg_path": f"r{p}", "date": "2024-03-10", "site": nothing} for p in (nothing, "1", "2")]
    studies = [{"patient_id": p, "study_path": f"s{p}", "when": "2024-03-10", "site": "B"} for p in (nothing, "1", "2")]
    studies[2]["study_path"] = nothing
    write_table(Path(tables["ecg"]), ecgs)
    write_table(Path(tables["studies"]), studies)
    assert chosen(tables) == {"r1": ("s1", "0", "")}
    assert read_rows(Path(tables["out"]))[0]["site"] == "B"
    reasons = [row["reason"] for row in read_rows(Path(tables["out"] + ".left_out.csv"))]
    assert reasons == ["no patient", "the patient has no study", "no patient", "no study_path"]


def test_refusals(tables: dict[str, str]) -> None:
    """A missing column, a table as its own output, an unknown policy."""
    with pytest.raises(DataError, match=r"has no column day \(found patient_id, date"):
        chosen(tables, ecg_date="day")
    with pytest.raises(DataError, match="one of the tables to join"):
        chosen(tables, out=tables["ecg"])
    listed = Path(tables["out"] + ".left_out.csv")
    listed.parent.mkdir()
    listed.write_bytes(Path(tables["studies"]).read_bytes())
    with pytest.raises(DataError, match="one of the tables to join"):
        chosen(tables, studies=str(listed))
    for out in ("", str(listed.parent), tables["out"].replace(".csv", ".xlsx")):
        with pytest.raises(DataError, match="cannot be the cohort table, which is CSV"):
            chosen(tables, out=out)
    assert list(listed.parent.iterdir()) == [listed]
    with pytest.raises(ConfigError, match="policy=closest"):
        PairConfig(**tables, window_days=1, policy="closest")


def test_the_result_builds(small_cohort: Path, tmp_path: Path) -> None:
    """Two tables made of a cohort give the same patients, pairs and labels; several ECGs of a patient share a split."""
    rows = [row for row in read_rows(small_cohort) if row["study_path"]]
    ecgs = [{"patient_id": r["patient_id"], "date": "2024-01-02", "ecg_path": r["ecg_path"]} for r in rows]
    for number, row in enumerate(rows):
        row |= {"patient_id": f"p{number // 2}", "date": "2024-01-03"}
        ecgs[number]["patient_id"] = row["patient_id"]
    source = small_cohort.parent
    ecg_table = write_table(tmp_path / "ecgs.csv", [{**row, "ecg_path": source / row["ecg_path"]} for row in ecgs])
    studies = [{k: v for k, v in row.items() if k not in ("ecg_path", "days_between")} for row in rows]
    for row in studies:
        row["study_path"] = str(source / row["study_path"])
    study_table = write_table(tmp_path / "studies.csv", studies)
    out = tmp_path / "cohort.csv"
    pair(PairConfig(ecg=str(ecg_table), studies=str(study_table), window_days=7, policy="all", out=str(out)))
    build(BuildConfig(cohort=str(out), out=str(tmp_path / "set"), image_size=16, workers=1))
    opened = ShardSet.open(tmp_path / "set")
    tables = [opened.table(split) for split in ("train", "val", "test")]
    assert sum(int(table.has_study.sum()) for table in tables) == len(rows)
    assert sum(len(set(table.patient.tolist())) for table in tables) == len({row["patient_id"] for row in rows})
