"""The cohort table: what passes, what is rejected, and who is tested."""

import csv
import hashlib
import hmac
import importlib
import itertools
import stat
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from stence_dist.config.build import ColumnsConfig
from stence_dist.data.cohort import (
    Cohort,
    check_splits_filled,
    drawn_splits,
    limit_rows,
    patient_key,
    read_cohort,
    read_key,
)
from stence_dist.errors import DataError, MissingExtraError

SECRET = b"0123456789abcdef"
FIELDS = ["patient_id", "ecg_path", "study_path", "days_between", "age", "sex", "site"]
SEGMENTS = [f"seg_{number}" for number in range(1, 17)]
Row = dict[str, Any]


def patients(count: int, **changes: Any) -> list[Row]:
    """One pair per patient; every third has a severe stenosis, every fourth no study."""
    rows = []
    for number in range(count):
        percent = 80 if number % 3 == 0 else 30
        row: Row = {"patient_id": f"MRN{number:04d}", "ecg_path": f"e{number}", "study_path": f"s{number}"}
        row |= {"days_between": 1, "age": 60, "sex": "F", "site": "A", **dict.fromkeys(SEGMENTS, 0), "seg_6": percent}
        if number % 4 == 0:
            row["study_path"] = ""
        rows.append({**row, **changes})
    return rows


def write(folder: Path, rows: list[Row]) -> Path:
    path = folder / "cohort.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(folder: Path, rows: list[Row], seed: int = 0) -> Cohort:
    return read_cohort(write(folder, rows), ColumnsConfig(), SECRET, seed)


def by_patient(cohort: Cohort) -> dict[str, str]:
    return {row.patient_key: row.split for row in cohort.rows}


@pytest.mark.parametrize("count", [3, 4, 5, 7, 10, 33, 200])
def test_drawn_splits_have_their_shares(tmp_path: Path, count: int) -> None:
    """70/10/20 of the patients, rounded, and no split without a patient."""
    counts = Counter(by_patient(read(tmp_path, patients(count))).values())
    val, test = max(1, round(0.1 * count)), max(1, round(0.2 * count))
    assert counts == {"train": count - val - test, "val": val, "test": test}


def test_drawn_splits_are_stratified_and_by_patient(tmp_path: Path) -> None:
    """Severe patients keep their shares within one patient; a patient's second row follows the first."""
    rows = patients(200)
    second = [{**row, "ecg_path": row["ecg_path"] + "b"} for row in rows[:50]]
    cohort = read(tmp_path, rows + second)
    splits = by_patient(cohort)
    assert all(row.split == splits[row.patient_key] for row in cohort.rows)
    severe = Counter(row.split for row in cohort.rows[:200] if row.severe)
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert abs(severe[split] - share * 67) <= 2
    paired = Counter(row.split for row in cohort.rows[:200] if row.study_path)
    assert abs(paired["val"] - 15) <= 2


def test_drawn_splits_depend_on_the_seed_alone(tmp_path: Path) -> None:
    """Neither the table's order nor the key file changes who is tested; the seed does."""
    rows = patients(60)
    first = by_patient(read(tmp_path, rows))
    assert by_patient(read(tmp_path, rows[::-1])) == first
    assert by_patient(read(tmp_path, rows, seed=1)) != first
    other = read_cohort(write(tmp_path, rows), ColumnsConfig(), b"another secret key", 0)
    assert [row.split for row in other.rows] == [row.split for row in read(tmp_path, rows).rows]


def test_drawn_splits_hardly_move_when_a_cohort_grows(tmp_path: Path) -> None:
    """Ten more patients and five corrected labels: hardly anyone of 400 changes the split, so test stays untouched."""
    before = by_patient(read(tmp_path, patients(400)))
    grown = patients(410)
    for row in grown[:5]:
        row["seg_6"] = "90" if row["seg_6"] != "90" else "10"
    after = by_patient(read(tmp_path, grown))
    moved = sum(after[key] != split for key, split in before.items())
    assert moved <= 12
    assert sum(split == "train" and after[key] == "test" for key, split in before.items()) <= 6


def test_drawn_splits_of_any_strata_add_up() -> None:
    """All cohorts of up to five patients in each of four strata: the shares of the whole, whatever the parts."""
    kinds = [(study, severe) for study in ("", "study") for severe in (False, True)]
    for sizes in itertools.product(range(6), repeat=4):
        count = sum(sizes)
        if count < 3:
            continue
        found = {
            f"{kind}-{number}": [SimpleNamespace(study_path=study, severe=severe)]
            for kind, ((study, severe), size) in enumerate(zip(kinds, sizes, strict=True))
            for number in range(size)
        }
        val, test = max(1, round(0.1 * count)), max(1, round(0.2 * count))
        counts = Counter(drawn_splits(found, 0).values())
        assert counts == {"train": count - val - test, "val": val, "test": test}, sizes


def test_given_splits_are_taken_and_checked(tmp_path: Path) -> None:
    """A filled column is used; a patient in two splits, a gap and another word are errors that name rows, never ids."""
    rows = [{**row, "split": ("train", "val", "test")[number % 3]} for number, row in enumerate(patients(9))]
    cohort = read(tmp_path, rows)
    assert cohort.split_source == "column"
    assert [row.split for row in cohort.rows] == [row["split"] for row in rows]

    torn = [*rows, {**rows[4], "ecg_path": "other", "split": "test"}]
    key = patient_key(SECRET, "MRN0004")
    with pytest.raises(DataError, match=rf"patient {key[:8]}… is in val \(row 5\) and test \(row 10\)") as caught:
        read(tmp_path, torn)
    assert "MRN" not in str(caught.value)
    rows[6]["split"] = ""
    with pytest.raises(DataError, match=r"row 7: split is empty; expected train, val or test in every row"):
        read(tmp_path, rows)
    rows[6]["split"] = "Mustermann"
    with pytest.raises(DataError, match="row 7: split is something else; expected train") as caught:
        read(tmp_path, rows)
    assert "Mustermann" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("seg_6", "140", "seg_6 is 140; expected 0 to 100"),
        ("seg_1", "-1", "seg_1 is -1; expected 0 to 100"),
        ("seg_1", "severe", "seg_1 is not a number"),
        ("seg_1", "inf", "seg_1 is inf"),
        ("sex", "X", "sex holds 1 characters; expected M, F or empty"),
        ("age", "230", "age is 230; expected 0 to 130"),
        ("days_between", "soon", "days_between is not a number"),
        ("patient_id", "", "patient_id is empty"),
        ("ecg_path", "", "ecg_path is empty"),
        ("ecg_path", "pipe:rm x", "ecg_path holds 'pipe:'"),
        ("study_path", "pipe:rm x", "study_path holds 'pipe:'"),
        ("site", "x" * 65, "site is 65 characters"),
    ],
)
def test_a_bad_field_rejects_its_row(tmp_path: Path, field: str, value: str, reason: str) -> None:
    """One bad row of six: the five others pass, the reject names row, key and field, and no identifier."""
    rows = patients(6)
    rows[3][field] = value
    cohort = read(tmp_path, rows)
    assert [row.row for row in cohort.rows] == [1, 2, 3, 5, 6]
    (reject,) = cohort.rejects
    assert (reject.row, reject.field) == (4, field)
    assert reason in reject.reason
    assert reject.patient_key == ("" if field == "patient_id" else patient_key(SECRET, "MRN0003"))
    assert "MRN" not in reject.message()
    assert reject.message().startswith("row 4, ")


def test_optional_columns_are_checked_and_kept(tmp_path: Path) -> None:
    """acute, prior_revascularization, lvef and device arrive as numbers and text; a bad flag is a reject."""
    rows = patients(4, acute="yes", prior_revascularization="0", lvef="55.5", device="AT-101")
    rows[1]["acute"] = "maybe"
    rows[2]["lvef"] = ""
    cohort = read(tmp_path, rows)
    assert [reject.field for reject in cohort.rejects] == ["acute"]
    columns = cohort.rows[0].columns
    assert (columns["acute"], columns["prior_revascularization"], columns["lvef"], columns["device"]) == (
        1,
        0,
        55.5,
        "AT-101",
    )
    assert cohort.rows[1].columns["lvef"] is None


def test_empty_segments_are_unknown(tmp_path: Path) -> None:
    """Empty is None, never 0."""
    rows = patients(3)
    rows[0]["seg_2"] = ""
    assert read(tmp_path, rows).rows[0].segments[1] is None


def test_a_repeated_row_is_rejected(tmp_path: Path) -> None:
    """Same ECG and study as row 2, in any spelling; the same ECG with another study is no repetition, but never
    another patient's.
    """
    rows = patients(5)
    spelled = f"./{rows[1]['ecg_path']}".removesuffix(".hea") + ".hea"
    rows += [dict(rows[1]), {**rows[1], "study_path": "other"}, {**rows[1], "ecg_path": spelled}]
    rows += [{**rows[2], "ecg_path": rows[1]["ecg_path"]}]
    cohort = read(tmp_path, rows)
    assert [(reject.row, reject.reason) for reject in cohort.rejects] == [
        (6, "duplicate of row 2 (same ecg_path and study_path)."),
        (8, "duplicate of row 2 (same ecg_path and study_path)."),
        (9, "the ECG of row 2, which is another patient's."),
    ]
    assert cohort.rows[-1].row == 7


def test_a_study_of_another_patient_is_rejected(tmp_path: Path) -> None:
    """In any spelling of its path, as an ECG is; a patient's own rows share it, and a rejected row owns nothing."""
    rows = patients(5)
    rows += [{**rows[1], "ecg_path": "second"}, {**rows[2], "ecg_path": "third", "study_path": "./s1/"}]
    rows += [{**rows[3], "ecg_path": "third", "study_path": ""}]
    cohort = read(tmp_path, rows)
    (reject,) = cohort.rejects
    assert (reject.row, reject.field, reject.path) == (7, "study_path", "./s1/")
    assert reject.reason == "the study of row 2, which is another patient's."


@pytest.mark.parametrize("nothing", ["NA", "nan", "NULL", "None", "#N/A", "NaT", "<NA>", "-"])
def test_words_for_nothing_are_empty(tmp_path: Path, nothing: str) -> None:
    """What R, pandas, SQL and Excel write, in text, numbers and splits alike; a patient of that name is none."""
    unknown = dict.fromkeys(("site", "sex", "device", "split", "age", "label_af"), nothing)
    rows = patients(6, **unknown)
    rows[0] |= {"study_path": nothing, "seg_1": nothing}
    rows[4]["patient_id"] = rows[5]["patient_id"] = nothing
    cohort = read(tmp_path, rows)
    assert [(reject.row, reject.field) for reject in cohort.rejects] == [(5, "patient_id"), (6, "patient_id")]
    assert cohort.split_source == "drawn"
    first = cohort.rows[0]
    assert (first.study_path, first.segments[0]) == ("", None)
    assert {first.columns[name] for name in ("site", "sex", "device", "age", "label_af")} == {None}


def test_a_study_inside_another_patients_is_refused(tmp_path: Path) -> None:
    """A folder of studies given for one of them; one patient's folders may lie in each other."""
    rows = patients(6)
    rows[0]["study_path"], rows[3]["study_path"] = "all", "all/2024/s3"
    (reject,) = read(tmp_path, rows).rejects
    assert (reject.row, reject.field) == (1, "study_path")
    assert reject.reason == "a folder that holds the study of row 4, another patient's."
    for whole in (f"../{tmp_path.name}/all", str(tmp_path / "all"), "."):
        rows[0]["study_path"] = whole
        assert [(reject.row, reject.field) for reject in read(tmp_path, rows).rejects] == [(1, "study_path")]
    rows[0]["study_path"], rows[3]["patient_id"] = "all", rows[0]["patient_id"]
    assert read(tmp_path, rows).rejects == []


def test_absolute_paths_are_the_relative_ones(tmp_path: Path) -> None:
    """Another patient's study by its whole path, and one's own row once more."""
    rows = patients(6)
    rows[1] |= {"ecg_path": "e1", "study_path": "s1"}
    rows[3]["study_path"] = str(tmp_path / "s1")
    rows.append({**rows[1], "ecg_path": str(tmp_path / "e1"), "study_path": "./s1/"})
    found = [(reject.row, reject.reason.split(" row ")[0]) for reject in read(tmp_path, rows).rejects]
    assert found == [(4, "the study of"), (7, "duplicate of")]


def test_columns_that_are_nearly_known_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Capital letters and blanks refuse a table: a split that is not read would be drawn. Other labels are told."""
    for name in ("Split", " split", "SITE"):
        known = name.strip().lower()
        given = patients(6, split="train")
        rows = [{name if field == known else field: text for field, text in row.items()} for row in given]
        with pytest.raises(DataError, match=f"a column '{name}', which is not read"):
            read(tmp_path, rows)
    read(tmp_path, patients(6, Label_AF="1", seg_17="5"))
    assert "columns not read, for their names: Label_AF, seg_17" in caplog.text


@pytest.mark.parametrize(("text", "sex"), [("male", "M"), ("Female", "F"), ("m", "M"), ("F", "F")])
def test_sex_is_a_letter_or_a_word(tmp_path: Path, text: str, sex: str) -> None:
    """Kept as M or F."""
    assert {row.columns["sex"] for row in read(tmp_path, patients(3, sex=text)).rows} == {sex}


@pytest.mark.parametrize(
    ("field", "value"),
    [("sex", "Mustermann"), ("label_af", "Mustermann"), ("age", "19510312"), ("seg_3", "4711081"), ("lvef", "4711081")],
)
def test_no_reason_quotes_a_cell(tmp_path: Path, field: str, value: str) -> None:
    """A name, a date or a number that stands in the wrong column goes into no list and no log."""
    rows = patients(4)
    rows = [{**row, field: value if row is rows[2] else ""} for row in rows]
    (reject,) = read(tmp_path, rows).rejects
    assert reject.field == field
    assert value[:4] not in reject.message()


def test_a_table_without_header_is_not_quoted(tmp_path: Path) -> None:
    """Its first line is a patient's; it is said that no heading is a known one, and which columns repeat a text."""
    path = tmp_path / "cohort.csv"
    path.write_text("Mustermann,4711,1951-03-12\nDoe,4712,1952-03-12\n")
    with pytest.raises(
        DataError, match="none of the usual ones among the 3 of its first line; is that a header"
    ) as one:
        read_cohort(path, ColumnsConfig(), SECRET, 0)
    path.write_text("Mustermann,4711,Mustermann\nDoe,4712,Doe\n")
    with pytest.raises(DataError, match="the columns 1 and 3 have one name") as two:
        read_cohort(path, ColumnsConfig(), SECRET, 0)
    assert not [error for error in (one, two) if "Mustermann" in str(error.value)]


def test_other_column_names(tmp_path: Path) -> None:
    """columns.* renames; without it, and for a name that is not there, the message names the key to set."""
    rows = [{("MRN" if name == "patient_id" else name): value for name, value in row.items()} for row in patients(4)]
    path = write(tmp_path, rows)
    assert len(read_cohort(path, ColumnsConfig(patient_id="MRN"), SECRET, 0).rows) == 4
    with pytest.raises(DataError, match=r"no column patient_id \(found.*columns\.patient_id="):
        read_cohort(path, ColumnsConfig(), SECRET, 0)
    with pytest.raises(DataError, match=r"no column 'fraction', which columns\.lvef names"):
        read_cohort(path, ColumnsConfig(patient_id="MRN", lvef="fraction"), SECRET, 0)


def test_columns_that_are_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A table of patients, ECGs and studies will do, with a warning; some of the segments only are an error."""
    rows = [{name: row[name] for name in FIELDS[:3]} | {"alter": 60} for row in patients(4)]
    cohort = read(tmp_path, rows)
    assert cohort.rows[0].segments == (None,) * 16
    assert cohort.rows[0].columns["age"] is None
    assert "no column days_between, age, sex, site, seg_1 ... seg_16: unknown in every row" in caplog.text
    assert "columns not used: alter" in caplog.text
    with pytest.raises(DataError, match=r"no column seg_16 \(found"):
        read(tmp_path, [{name: value for name, value in row.items() if name != "seg_16"} for row in patients(4)])
    with pytest.raises(DataError, match=r"no column study_path \(found"):
        read(tmp_path, [{name: value for name, value in row.items() if name != "study_path"} for row in patients(4)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a,b\n1,2,3\n", "row 1 has 3 fields, the header 2"),
        (b"\xff\xfe,\n", "is text in UTF-16"),
        (b"a,\xe9\n1,2\n", "no CSV in UTF-8"),
        (b"PK\x03\x04", "is a workbook of a spreadsheet program"),
        (b"sep=;\na;b\n", "with semicolons between its columns"),
        (b"a\tb\n1\t2\n", "with tabs between its columns"),
        (",".join(["age", *FIELDS, *SEGMENTS]).encode() + b"\n", "columns 1 and 6 have one name"),
        (",".join([*FIELDS, *SEGMENTS]).encode() + b"\n", "a header and no row"),
        (b"PAR1garbage", "no readable Parquet file"),
    ],
)
def test_unusable_tables(tmp_path: Path, content: bytes, message: str) -> None:
    """Each ends with a message that says what to do, whatever the file's name."""
    path = tmp_path / "cohort.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_cohort(path, ColumnsConfig(), SECRET, 0)


def test_parquet_equals_csv(tmp_path: Path) -> None:
    """The same typed table through pyarrow, with nulls and integer identifiers."""
    arrow = importlib.import_module("pyarrow")
    rows = [{**row, "patient_id": 1000 + number} for number, row in enumerate(patients(6))]
    rows[2]["seg_3"] = None
    table = arrow.Table.from_pylist(rows)
    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "cohort.parquet")
    parquet = read_cohort(tmp_path / "cohort.parquet", ColumnsConfig(), SECRET, 0)
    assert parquet.rows == read(tmp_path, rows).rows


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine without the extra says."""
    original = importlib.import_module

    def without_pyarrow(name: str, package: str | None = None) -> ModuleType:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", without_pyarrow)
    (tmp_path / "cohort.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtraError, match=r'pip install "stence_dist\[parquet\]"'):
        read_cohort(tmp_path / "cohort.parquet", ColumnsConfig(), SECRET, 0)


def test_patient_keys(tmp_path: Path) -> None:
    """Against the standard library's HMAC; the key file is made once, 0600; a named one must be there."""
    cohort = tmp_path / "cohort.csv"
    secret = read_key(cohort, None)
    made = tmp_path / "patient_key.txt"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert read_key(cohort, None) == secret == made.read_bytes().strip()
    expected = hmac.new(secret, b"MRN1", hashlib.sha256).hexdigest()[:32]
    assert patient_key(secret, " MRN1 ") == expected
    with pytest.raises(DataError, match="does not exist"):
        read_key(cohort, str(tmp_path / "absent.txt"))
    (tmp_path / "short.txt").write_text("abc\n")
    with pytest.raises(DataError, match="16 or more are needed"):
        read_key(cohort, str(tmp_path / "short.txt"))


def test_an_empty_split_is_named() -> None:
    """No row in val."""
    with pytest.raises(DataError, match=r"val has no row \(train 5, val 0, test 2; rows rejected: 1 for sex\)"):
        check_splits_filled({"train": 5, "test": 2}, {"sex": 1})
    check_splits_filled({"train": 1, "val": 1, "test": 1}, {})


def test_limit_keeps_the_shares(tmp_path: Path) -> None:
    """20 of 200 rows: 14, 2 and 4, in table order; the same call draws the same rows."""
    rows = read(tmp_path, patients(200)).rows
    chosen = limit_rows(rows, 20, 0)
    assert Counter(row.split for row in chosen) == {"train": 14, "val": 2, "test": 4}
    assert [row.row for row in chosen] == sorted(row.row for row in chosen)
    assert limit_rows(rows, 20, 0) == chosen
    assert limit_rows(rows, None, 0) == rows
